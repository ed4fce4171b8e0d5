"""Numbers as people read them. Whatever is not a number becomes a dash, so a damaged file cannot break the page."""

import math
from typing import Any

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: Any) -> float | None:
    """Return value as a float, None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Any) -> str:
    """Write a fraction as "61.5%"."""
    known = number(value)
    return DASH if known is None else f"{100 * known:.1f}%".replace("-", MINUS)


def points(value: Any) -> str:
    """Write a difference of two fractions in percentage points, "12.5 pp"; minus zero is zero."""
    known = number(value)
    return DASH if known is None else f"{100 * known + 0.0:.1f} pp".replace("-0.0 ", "0.0 ").replace("-", MINUS)


def count(value: Any) -> str:
    """Write a whole number with its thousands apart, a broken one with three digits."""
    known = number(value)
    if known is None:
        return DASH
    return f"{known:,.0f}" if known == int(known) or abs(known) >= 1000 else f"{known:.3g}"


def size(value: Any) -> str:
    """Write bytes as "1.5 MB" (powers of 1000)."""
    known = number(value)
    if known is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(known) < 999.5:
            return f"{known:.3g} {unit}"
        known /= 1000
    return f"{known:,.3g} TB"


def duration(value: Any) -> str:
    """Write seconds as "4.2 s", "3 min 20 s" or "2 h 5 min"."""
    known = number(value)
    if known is None:
        return DASH
    if known < 59.95:
        return f"{known:.3g} s"
    minutes, seconds = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def some(values: list[Any], limit: int = 8) -> str:
    """Write the first values of a list, and how many more there are."""
    shown = ", ".join(map(str, values[:limit]))
    return f"{shown} and {len(values) - limit} more" if len(values) > limit else shown


def end(words: str, letters: int) -> str:
    """Return the end of a long text, behind a word of how much is left out: tracebacks say most in their last line."""
    left = len(words) - letters
    return words if left <= 0 else f"({left:,} letters left out)\n…{words[left:]}"
