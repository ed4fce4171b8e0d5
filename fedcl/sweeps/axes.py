"""What a sweep file is made of: settings as override texts, axes of values, seeds; and one run that it asks for."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcl.errors import ConfigError, nearest, shown
from fedcl.overrides import as_text, as_texts
from fedcl.plain import Plain
from fedcl.shipped import scenario_names

AXIS = "scenario"  # the label that says which scenario a run is of
MOST = 1_000_000  # values of an axis, seeds, runs: more is a mistake, and would not fit into memory
Choice = tuple[str, tuple[str, ...]]  # label, override texts
Axis = tuple[str, list[Choice]]
Labels = Mapping[str, str]  # axis -> value, as tables show it; the scenario first


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep, as it is asked for."""

    labels: Labels
    overrides: tuple[str, ...]
    seed: int
    trial: int | None = None  # of a search; None: a run whose figures are compared

    @property
    def scenario(self) -> str:
        """The scenario it is of."""
        return self.labels[AXIS]

    @property
    def title(self) -> str:
        """The run in a line."""
        trial = "" if self.trial is None else f" trial={self.trial}"
        return f"{titled(self.labels)}{trial} seed={self.seed}"


def titled(labels: Labels) -> str:
    """Return the setting of every axis in a line."""
    return " ".join(value if name == AXIS else f"{name}={value}" for name, value in labels.items())


def combinations(scenarios: Sequence[str], axes: Sequence[Axis]) -> Iterator[tuple[Labels, tuple[str, ...]]]:
    """Yield labels and overrides of every scenario with every combination of the grid, in the order of the file."""
    for scenario in scenarios:
        for choices in itertools.product(*(choices for _, choices in axes)):
            labels = {AXIS: scenario, **{name: label for (name, _), (label, _) in zip(axes, choices, strict=True)}}
            yield labels, tuple(text for _, texts in choices for text in texts)


def block(value: Any, key: str) -> Plain:
    """Return a block of named settings; nothing is an empty one.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{key} = {shown(value)}: must be a block of named settings")
    return dict(value)


def known(plain: Plain, keys: Sequence[str], what: str, path: str = "") -> None:
    """Check the names of a block's settings.

    Raises:
        ConfigError: one is unknown; names the nearest.
    """
    for key in plain.keys() - set(keys):
        raise ConfigError(f"unknown key {path + key!r} (= {shown(plain[key])}) of {what}{nearest(key, keys)}")


def scenarios(value: Any) -> list[str]:
    """Return names of scenarios.

    Raises:
        ConfigError: it is neither a name nor a list of names.
    """
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
        shipped = nearest("", scenario_names())
        raise ConfigError(f"scenarios = {shown(value)}: must be a name or a list of names{shipped}")
    return given


def seeds(value: Any, key: str = "seeds") -> tuple[int, ...]:
    """Return seeds: so many from 0 on, or those of a list.

    Raises:
        ConfigError: it is neither.
    """
    if type(value) is int and value > MOST:
        raise ConfigError(f"{key} = {shown(value)}: must be at most {MOST:,}")
    given = list(range(value)) if type(value) is int else value
    if not isinstance(given, list) or not given or not all(type(each) is int and each >= 0 for each in given):
        raise ConfigError(f"{key} = {shown(value)}: must be how many, or a list of whole numbers from 0")
    if len(set(given)) < len(given):
        raise ConfigError(f"{key} = {shown(value)}: one is there twice")
    return tuple(given)


def choices(name: str, value: Any, where: str) -> list[Choice]:
    """Return the values of a setting, or groups of settings by name.

    Args:
        name: of the setting, or of the axis if the values are groups.
        where: the block in which it stands, for the error.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, Mapping) and set(value) == {"range"}:
        value = _range(value["range"], f"{where}.{name}.range")
    if isinstance(value, list) and value:
        return [(each if isinstance(each, str) else as_text(each), (f"{name}={as_text(each)}",)) for each in value]
    if isinstance(value, Mapping) and value:
        return [(str(label), tuple(as_texts(block(of, f"{where}.{name}.{label}")))) for label, of in value.items()]
    raise ConfigError(
        f"{where}.{name} = {shown(value)}: must be a list of values, {{range: [first, last, step]}}, or groups of "
        "settings by name"
    )


def numbers(value: Any) -> bool:
    """Return whether a value is [first, last] or [first, last, step], all of them numbers."""
    return isinstance(value, list) and len(value) in (2, 3) and all(type(each) in (int, float) for each in value)


def _range(value: Any, key: str) -> list[int | float]:
    """Return first, first + step, .., last."""
    first, last, step = [*value, 1][:3] if numbers(value) else (0, 0, 0)
    if step == 0 or (last - first) / step < 0:
        raise ConfigError(f"{key} = {shown(value)}: must be [first, last, step] or [first, last] with a step of 1")
    steps = (last - first) / step + 1e-9
    if not steps < MOST:
        raise ConfigError(f"{key} = {shown(value)}: must be at most {MOST:,} values")
    count = int(steps) + 1
    found = [first + number * step for number in range(count)]
    return [each if type(each) is int else round(each, 12) for each in found]
