"""How a run ends without a whole result, each with its exit code, and what their sentences are made of."""

import difflib
from collections.abc import Iterable
from typing import Any

LOSSY = 3  # exit code of a run that went to its end and lost updates by errors, or has diverged


LONGEST = 1000  # letters of a line of an error
LONGEST_WORD = 100  # letters: nothing of ours that could be meant is as long


def shortened(line: str) -> str:
    """Return a line without its middle if it is too long to be read; its end often says what is meant."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 305]} ... {line[-300:]}"


class Told(Exception):
    """An error that people read: whatever value it repeats, its lines stay short."""

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(shortened, str(message).split("\n"))))


class ConfigError(Told):
    """The user asked for something impossible: one sentence, exit code 2."""


class FederationError(Told):
    """The federation could not go on (too few clients answered, a state was lost): exit code 1, resumable."""


class Diverged(FederationError):
    """Training has come to numbers from which nobody can go on: exit code 3, the last sound checkpoint stays."""


def folded(word: str) -> str:
    """Return a word as words are compared: without case, hyphens and underscores."""
    return word.lower().replace("-", "").replace("_", "")


def _shortens(word: str, known: str) -> bool:
    """Return whether a word leaves letters of a known one out, not its first: fmnist of fashionmnist."""
    letters = iter(known)
    return len(word) > 2 and word[0] == known[:1] and all(letter in letters for letter in word)


def close(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the known word closest to `word`, "" if none is close. FashionMNIST and fmnist are near fashion-mnist."""
    if len(word) > LONGEST_WORD:
        return ""
    forms = {folded(each): each for each in sorted(known, reverse=True)}
    mine = folded(word)
    found = difflib.get_close_matches(mine, forms, n=1, cutoff=cutoff)
    if not (found and found[0][:1] == mine[:1]):
        found = difflib.get_close_matches(mine, [each for each in forms if _shortens(mine, each)], 1, 0.0) or found
    return forms[found[0]] if found else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'der'?" for the known word closest to `word`, else the first known words."""
    known = sorted(known)
    if found := close(word, known):
        return f"; did you mean {found!r}?"
    return f"; known: {', '.join(known[:12])}" if known else ""


def shown(value: Any) -> str:
    """Return a value as an error says it: a long one is cut short."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
