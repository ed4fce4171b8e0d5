"""A sweep file's block `search`: the space of settings, and the budget that every combination of the grid has alike.

search:
  space:                                                 # as in a grid, but the values are drawn
    client.optimizer.lr: {range: [0.01, 1.0], log: true} # between two numbers, both included
    client.epochs: {range: [1, 5]}                       # whole numbers, as both ends are; a third one is the step
    client.memory.draw: [uniform, class-balanced]        # one of a list, or of groups of settings by name
  own:                                                   # besides, for one choice of an axis of the grid
    method: {derpp: {client.method.beta: {range: [0.1, 2.0], log: true}}}
  trials: 20                                             # settings tried for each combination of the grid
  seeds: [1000, 1001]                                    # each is tried with; others than those that are compared
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedcl import config
from fedcl.errors import ConfigError, nearest, shown
from fedcl.plain import Plain
from fedcl.results import FIGURES
from fedcl.settings import Settings, setting
from fedcl.sweeps.axes import AXIS, Axis, Choice, Labels, Point, block, choices, known, numbers, seeds, titled

DIGITS = 3  # significant ones of a number that is drawn: nobody can tell .0317 from .03171
LOWER = ("forgetting", "intransigence", "first_minus_last")  # figures of which less is better


@dataclass(frozen=True, kw_only=True)
class Search(Settings):
    """How much is tried for each combination of the grid, and by what it is judged."""

    seeds: list[int] = setting([1000, 1001], "each setting is tried with; others than those that are compared")
    trials: int = setting(20, "settings tried for each combination of the grid", low=1)
    metric: str = setting("acc", "figure whose mean over the seeds is judged: acc, a_auc, clients.acc.worst")
    direction: Literal["auto", "maximize", "minimize"] = setting(
        "auto", "whether more of it is better; auto: less forgetting, more of what is not forgetting"
    )
    prune: bool = setting(True, "stop a trial whose any-time accuracy falls behind the finished ones")
    batch: int = setting(1, "trials of a combination chosen together, so that they can run at the same time", low=1)

    @property
    def higher(self) -> bool:
        """Whether more of the figure is better."""
        return self.direction == "maximize" or (self.direction == "auto" and self.metric not in LOWER)


@dataclass(frozen=True, kw_only=True)
class Within:
    """A setting that is drawn between two numbers, both included."""

    name: str
    low: float
    high: float
    step: float | None
    log: bool  # evenly on the scale of its logarithm

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return type(self.low) is int and type(self.high) is int and type(self.step) in (int, type(None))

    @property
    def ends(self) -> tuple[float, float]:
        """Values that must be possible, if all are to be."""
        return self.low, self.high

    @property
    def told(self) -> str:
        """The parameter in a line."""
        said = [
            *(["whole numbers"] if self.whole else []),
            *([f"steps of {self.step}"] if self.step else []),
            *(["evenly in its logarithm"] if self.log else []),
        ]
        return f"{self.name}: {self.low} to {self.high}" + (f" ({', '.join(said)})" if said else "")

    def overrides(self, value: float) -> tuple[str, ...]:
        """Return what sets it; to few digits, but never beyond the ends."""
        if self.whole:
            return (f"{self.name}={int(value)}",)
        short = value if self.step else float(f"{value:.{DIGITS}g}")
        return (f"{self.name}={min(max(round(short, 12), self.low), self.high)}",)


@dataclass(frozen=True, kw_only=True)
class Among:
    """A setting, or several at once, chosen from a list."""

    name: str
    choices: tuple[Choice, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """Labels of all choices."""
        return tuple(label for label, _ in self.choices)

    @property
    def told(self) -> str:
        """The parameter in a line."""
        return f"{self.name}: {', '.join(self.ends)}"

    def overrides(self, value: str) -> tuple[str, ...]:
        """Return what sets it."""
        return dict(self.choices)[value]


Parameter = Within | Among


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search for one combination of the grid."""

    labels: Labels
    fixed: tuple[str, ...]  # overrides that all runs of the sweep have
    chosen: tuple[str, ...]  # those of the combination
    space: tuple[Parameter, ...]

    @property
    def title(self) -> str:
        """The combination in a line."""
        return titled(self.labels)

    def settings(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of a value for every parameter."""
        return tuple(text for each in self.space for text in each.overrides(values[each.name]))

    def point(self, settings: Sequence[str], seed: int, trial: int | None) -> Point:
        """Return the run with these settings."""
        overrides = (*self.fixed, *self.chosen, *settings, f"seed={seed}")
        return Point(labels=self.labels, overrides=overrides, seed=seed, trial=trial)

    def corners(self) -> list[tuple[str, ...]]:
        """Return settings that must be possible: each parameter's ends in turn, the others at their first."""
        first = {each.name: each.ends[0] for each in self.space}
        found = (self.settings({**first, each.name: end}) for each in self.space for end in each.ends)
        return list(dict.fromkeys(found))

    def fingerprint(self, search: Search) -> str:
        """Return what tells this search from another one of the same combination; more trials go on with it."""
        base = config.config_hash(config.load(self.labels[AXIS], (*self.fixed, *self.chosen)))
        judged = [search.metric, search.higher, search.prune, search.batch, search.seeds]
        return hashlib.sha256(json.dumps([base, judged, [repr(each) for each in self.space]]).encode()).hexdigest()[:12]


KEYS = ("space", "own", "seeds", "trials", "metric", "direction", "prune", "batch")


def search(plain: Plain, compared: Sequence[int]) -> Search:
    """Return the budget of a block `search`.

    Args:
        compared: seeds with which the best settings are compared afterwards.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    known(plain, KEYS, "a search", "search.")
    budget = {key: value for key, value in plain.items() if key not in ("space", "own")}
    if "seeds" in plain:
        budget["seeds"] = list(seeds(plain["seeds"], "search.seeds"))
    made: Search = config.build(Search, budget, "search")
    if both := sorted(set(made.seeds) & set(compared)):
        raise ConfigError(f"search.seeds = {shown(made.seeds)}: {both[0]} is among `seeds` too; compare on others")
    if "." not in made.metric and made.metric not in FIGURES:
        raise ConfigError(f"search.metric = {made.metric!r}: unknown{nearest(made.metric, FIGURES)}")
    return made


def studies(
    plain: Plain, fixed: Sequence[str], axes: Sequence[Axis], cells: Sequence[tuple[Labels, tuple[str, ...]]]
) -> tuple[Study, ...]:
    """Return a study for every combination of the grid.

    Args:
        plain: the block `search`.
        cells: labels and overrides of every combination.

    Raises:
        ConfigError: the space is empty, or something in it cannot be.
    """
    shared = block(plain.get("space"), "search.space")
    own = {axis: block(of, f"search.own.{axis}") for axis, of in block(plain.get("own"), "search.own").items()}
    ends = {name: [label for label, _ in each] for name, each in axes}
    for axis, wanted in own.items():
        if axis not in ends:
            raise ConfigError(f"search.own.{axis}: no axis of the grid is called so{nearest(axis, ends)}")
        for label in wanted.keys() - set(ends[axis]):
            raise ConfigError(f"search.own.{axis}.{label}: {axis} has no such choice{nearest(label, ends[axis])}")
    found = []
    for labels, chosen in cells:
        mine = dict(shared)
        for axis, of in own.items():
            mine |= block(of.get(labels[axis]), f"search.own.{axis}.{labels[axis]}")
        for name in mine.keys() & ends.keys():
            raise ConfigError(f"search.space.{name}: the grid has it too; it is either swept or searched for")
        if not mine:
            raise ConfigError(f"search.space has nothing to look for with {titled(labels)}")
        space = tuple(parameter(name, value) for name, value in mine.items())
        found.append(Study(labels=labels, fixed=tuple(fixed), chosen=chosen, space=space))
    return tuple(found)


def parameter(name: str, value: Any) -> Parameter:
    """Return what is searched for.

    Raises:
        ConfigError: it is neither a range nor a list of values.
    """
    where = f"search.space.{name}"
    if not (isinstance(value, Mapping) and "range" in value):
        return Among(name=name, choices=tuple(choices(name, value, "search.space")))
    known(dict(value), ("range", "log"), "a range", f"{where}.")
    ends, log = value["range"], value.get("log", False)
    if not numbers(ends) or not ends[0] < ends[1] or (len(ends) == 3 and ends[2] <= 0):
        raise ConfigError(f"{where}.range = {shown(ends)}: must be [low, high] or [low, high, step], low below high")
    if type(log) is not bool or (log and (ends[0] <= 0 or len(ends) == 3)):
        raise ConfigError(f"{where}.log = {shown(log)}: must be true or false; true for ends above 0 and without step")
    low, high, step = [*ends, None][:3]
    last = high if step is None else round(low + step * int((high - low) / step + 1e-9), 12)
    return Within(name=name, low=low, high=last, step=step, log=log)
