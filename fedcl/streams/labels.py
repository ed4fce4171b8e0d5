"""What a label is, the same in every kind of file: a number is that number however it is written, missing is missing.

"3", "3.0", "3.000e+00", 3 and 3.0 are one class, called "3"; "007" is 7. Other text is itself, in Unicode's form NFC,
so that a letter with an accent is the same from every keyboard and file system. What tables write where a label is
missing is no class. The name of a class folder follows the same rule, but is never missing.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

MOST_LABEL = 200  # characters
MOST_NUMBER = 1 << 64  # a number's size: what any type of whole numbers holds
# What pandas reads as missing, and so what it, NumPy and R write.
MISSING = frozenset(
    (
        *("", "NaN", "nan", "-NaN", "-nan", "NA", "<NA>", "N/A", "n/a", "NULL", "null", "None"),
        *("#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"-?\d{1,20}", re.ASCII)


class BadLabel(ValueError):
    """A value that no class can be called: the value, and what a label must be."""


def tidy(text: str) -> str:
    """Return text without space around it, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", text.strip())


def class_name(value: object) -> str:
    """Return what the class of a label is called; a text that stands for a missing label is a name here.

    Args:
        value: text, or a number of Python's.

    Raises:
        BadLabel: it is neither whole number nor text, or too long.
    """
    text = tidy(str(value))
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if _NUMBER.fullmatch(text) or number:
        exact = Decimal(text)
        if exact.is_finite() and abs(exact) < MOST_NUMBER and exact == exact.to_integral_value():
            return str(int(exact))
        if number or abs(exact) < MOST_NUMBER:
            raise _bad(text)
    if not isinstance(value, str | bool) or len(text) > MOST_LABEL:
        raise _bad(text)
    return text


def _bad(text: str) -> BadLabel:
    return BadLabel(f"the label {text[:40]!r}; labels must be whole numbers, or text of up to {MOST_LABEL} characters")


def label_of(value: object) -> str | None:
    """Return the class of a label as a file holds it, None where it is missing.

    Raises:
        BadLabel: see `class_name`.
    """
    missing = value is None or (isinstance(value, float | Decimal) and math.isnan(value))
    if missing or (isinstance(value, str) and value.strip() in MISSING):
        return None
    return class_name(value)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of classes: numbers by their size, then text by its letters' code points."""
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if _WHOLE.fullmatch(name) else (1, 0, name)))
