"""Hyper-parameters: a frozen dataclass is schema, range check, help text and docs table in one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


class OutOfRange(ValueError):
    """A setting outside its range; carries the field so that the loader can name the whole key."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"{name} = {value!r}: {reason}")
        self.name, self.value, self.reason = name, value, reason


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    problem: Callable[[Any], str] | None = None,
) -> Any:
    """Declare one setting of a `Settings` dataclass: default, help text and range.

    low <= value <= high, above < value < below; `problem` says why a value cannot be, "" if it can.
    """
    bounds = {"low": low, "above": above, "high": high, "below": below, "problem": problem}
    metadata = {"help": help, **{k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part(kind: str, default: Any, help: str) -> Any:
    """Declare a setting that is chosen by name from the registry of `kind` and brings its own settings."""
    return field(default=default, metadata={"help": help, "part": kind})


def _broken(value: float, bounds: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if "low" in bounds and value < bounds["low"]:
        return f"must be at least {bounds['low']}"
    if "above" in bounds and value <= bounds["above"]:
        return f"must be above {bounds['above']}"
    if "high" in bounds and value > bounds["high"]:
        return f"must be at most {bounds['high']}"
    if "below" in bounds and value >= bounds["below"]:
        return f"must be below {bounds['below']}"
    return None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every block of hyper-parameters: numbers are finite and inside the range that their field declares."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OutOfRange: a number is not finite or outside its declared range, or a value has a problem.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            reason = _broken(value, each.metadata) if number else None
            if "problem" in each.metadata:
                reason = reason or each.metadata["problem"](value)
            if reason:
                raise OutOfRange(each.name, value, reason)
