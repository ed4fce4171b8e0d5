"""The two ways in which a run ends without a result, each with its exit code."""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """The user asked for something impossible: one sentence, exit code 2."""


class FederationError(Exception):
    """The federation could not go on (too few clients answered, a state was lost): exit code 1, resumable."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'der'?" for the known word closest to `word`, else the first known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known[:12])}" if known else ""
