"""A sweep file, and the runs that it stands for.

name: demo
scenarios: [split-digits]            # or scenario: NAME
set: {stream.schedule.rounds_per_task: 10}
grid:
  client.memory.size: [50, 100]      # a setting and its values; {range: [50, 200, 50]}: ends included
  method:                            # a name of its own: groups of settings by name
    er: {client.method: er}
    fot: {client.method: finetune, server.method: fot}
seeds: 3                             # 0, 1, 2; or a list
limits: {runs: 500}
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcl import config
from fedcl.config import Scenario
from fedcl.errors import ConfigError, nearest, shown
from fedcl.overrides import Plain, as_text, as_texts
from fedcl.settings import Settings, setting
from fedcl.shipped import scenario_names, sweep_names

AXIS = "scenario"  # the label that says which scenario a run is of
SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """What a sweep may take."""

    runs: int = setting(1000, "runs; a sweep of more is refused", low=1)
    cpus: float = setting(1.0, "cores that Ray keeps for a run", above=0)
    gpus: float = setting(0.0, "GPUs that Ray keeps for a run, a fraction or a whole number", low=0)
    at_once: int | None = setting(None, "runs at the same time; null: as many as there are cores and GPUs for", low=1)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep, as it is asked for."""

    labels: Mapping[str, str]  # axis -> value, as tables show it; the scenario first
    overrides: tuple[str, ...]
    seed: int

    @property
    def scenario(self) -> str:
        """The scenario it is of."""
        return self.labels[AXIS]

    @property
    def title(self) -> str:
        """The run in a line."""
        said = [value if name == AXIS else f"{name}={value}" for name, value in self.labels.items()]
        return f"{' '.join(said)} seed={self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file, read."""

    name: str
    points: tuple[Point, ...]
    limits: Limits = field(default_factory=Limits)


def read(sweep: str, overrides: Iterable[str] = ()) -> Sweep:
    """Read a shipped sweep by name, or a sweep file by path.

    Args:
        overrides: `dotted.key=value` texts for every run.

    Raises:
        ConfigError: there is neither, or it is no sweep; names key, value and nearest valid choice.
    """
    shipped, path = sweep_names(), Path(sweep)
    try:
        if sweep not in shipped and not path.is_file():
            raise ConfigError(f"no sweep {sweep!r}, neither shipped nor a file{nearest(sweep, shipped)}")
        text = (shipped.get(sweep) or path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read sweep {sweep!r}: {error}") from error
    return of_plain(config.parse(text, sweep), sweep if sweep in shipped else path.stem, overrides)


KEYS = ("name", "scenario", "scenarios", "set", "grid", "seeds", "limits")


def of_plain(plain: Plain, name: str, overrides: Iterable[str] = ()) -> Sweep:
    """Return the sweep of plain values.

    Raises:
        ConfigError: a key is unknown, or a value cannot be.
    """
    for key in plain.keys() - set(KEYS):
        raise ConfigError(f"unknown key {key!r} (= {shown(plain[key])}) of a sweep{nearest(key, KEYS)}")
    if "scenario" in plain and "scenarios" in plain:
        raise ConfigError("scenario and scenarios: a sweep has one of them")
    scenarios = _texts(plain.get("scenarios", plain.get("scenario")), "scenarios")
    axes = [_axis(key, value) for key, value in _block(plain.get("grid"), "grid").items()]
    settings = [*as_texts(_block(plain.get("set"), "set")), *overrides]
    for text in [*settings, *(text for _, choices in axes for _, texts in choices for text in texts)]:
        if text.startswith("seed="):
            raise ConfigError(f"{text}: a sweep has its seeds from its own key: seeds: 3, or seeds: [0, 1, 2]")
    limits: Limits = config.build(Limits, plain.get("limits") or {}, "limits")
    points = tuple(_points(scenarios, axes, settings, _seeds(plain.get("seeds", SEEDS))))
    if len(points) > limits.runs:
        raise ConfigError(f"the sweep has {len(points)} runs, more than limits.runs = {limits.runs}")
    return Sweep(name=str(plain.get("name", name)), points=points, limits=limits)


Choice = tuple[str, tuple[str, ...]]  # label, overrides
Axis = tuple[str, list[Choice]]


def _points(
    scenarios: Sequence[str], axes: Sequence[Axis], fixed: Sequence[str], seeds: Sequence[int]
) -> Iterator[Point]:
    """Yield the runs in the order of the file: seeds last, so that every method soon has a first figure."""
    for seed in seeds:
        for scenario in scenarios:
            for choices in itertools.product(*(choices for _, choices in axes)):
                labels = {AXIS: scenario, **{name: label for (name, _), (label, _) in zip(axes, choices, strict=True)}}
                settings = [text for _, texts in choices for text in texts]
                yield Point(labels=labels, overrides=(*fixed, *settings, f"seed={seed}"), seed=seed)


def _block(value: Any, key: str) -> Plain:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{key} = {shown(value)}: must be a block of named settings")
    return dict(value)


def _texts(value: Any, key: str) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"{key} = {shown(value)}: must be a name or a list of names{nearest('', scenario_names())}")
    return given


def _seeds(value: Any) -> list[int]:
    given = list(range(value)) if type(value) is int else value
    if not isinstance(given, list) or not given or not all(type(each) is int and each >= 0 for each in given):
        raise ConfigError(f"seeds = {shown(value)}: must be how many, or a list of whole numbers from 0")
    if len(set(given)) < len(given):
        raise ConfigError(f"seeds = {shown(value)}: one is there twice")
    return given


def _axis(key: str, value: Any) -> Axis:
    """Return an axis of the grid: the values of a setting, or groups of settings by name."""
    if isinstance(value, Mapping) and set(value) == {"range"}:
        value = _range(value["range"], f"grid.{key}.range")
    if isinstance(value, list) and value:
        return key, [(each if isinstance(each, str) else as_text(each), (f"{key}={as_text(each)}",)) for each in value]
    if isinstance(value, Mapping) and value:
        groups = {str(name): as_texts(_block(block, f"grid.{key}.{name}")) for name, block in value.items()}
        return key, [(name, tuple(texts)) for name, texts in groups.items()]
    raise ConfigError(
        f"grid.{key} = {shown(value)}: must be a list of values, {{range: [first, last, step]}}, or groups of settings "
        "by name"
    )


def _range(value: Any, key: str) -> list[int | float]:
    """Return first, first + step, .., last."""
    numbers = isinstance(value, list) and len(value) in (2, 3) and all(type(each) in (int, float) for each in value)
    first, last, step = [*value, 1][:3] if numbers else (0, 0, 0)
    if not numbers or step == 0 or (last - first) / step < 0:
        raise ConfigError(f"{key} = {shown(value)}: must be [first, last, step] or [first, last] with a step of 1")
    count = int((last - first) / step + 1e-9) + 1
    found = [first + number * step for number in range(count)]
    return [each if type(each) is int else round(each, 12) for each in found]


def checked(sweep: Sweep) -> list[Scenario]:
    """Return the scenario of every point.

    Raises:
        ConfigError: some are impossible; each is named.
    """
    found, wrong = [], []
    for point in sweep.points:
        try:
            found.append(config.load(point.scenario, point.overrides))
        except ConfigError as error:
            wrong.append((point, str(error)))
    if wrong:
        shown_few = "; ".join(f"{point.title}: {error}" for point, error in wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(f"{len(wrong)} of {len(sweep.points)} runs are impossible: {shown_few}{more}")
    return found
