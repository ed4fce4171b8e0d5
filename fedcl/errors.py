"""The two ways in which a run ends without a result, each with its exit code, and what their sentences are made of."""

import difflib
from collections.abc import Iterable
from typing import Any


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


def shown(value: Any) -> str:
    """Return a value as an error says it: a long one is cut short."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
