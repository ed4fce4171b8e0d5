"""Runs that differ in nothing but the seed, together; and in which settings such groups differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedcl.config import PLACE
from fedcl.journal import ended
from fedcl.plain import flat_texts
from fedcl.report.lines import REST, Line
from fedcl.report.runs import Run
from fedcl.report.style import NAMED
from fedcl.report.svg import Points
from fedcl.statistics import Spread, spread

ORACLES = ("joint", "local-only", "single-task")
# Settings that name a run before all others.
FIRST = ("stream.joint", "model.personal", "client.method.name", "server.method.name", "client.curriculum.order")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, a seed each.

    Attributes:
        name: short; no other group has it.
        numbers: of the runs on the page, from 1.
        runs: at least one.
        colour: of its lines and marks; REST where it is one of too many.
    """

    name: str
    numbers: list[int]
    runs: list[Run]
    colour: int

    @property
    def key(self) -> str:
        """The class of its colour, "" for none."""
        return "" if self.colour == REST else f"c{self.colour % NAMED}"

    def values(self, metric: str) -> dict[str, float]:
        """Return a figure by the seed, of the runs that have it."""
        known = ((str(run.results.get("seed")), run.metric(metric)) for run in self.runs)
        return {seed: value for seed, value in known if value is not None}

    def spread(self, metric: str) -> Spread | None:
        """Return what a figure comes to over seeds; None where no run has it."""
        values = list(self.values(metric).values())
        return spread(values) if values else None

    @cached_property
    def seeds(self) -> list[str]:
        """The runs' seeds."""
        return list(dict.fromkeys(str(run.results.get("seed")) for run in self.runs))

    def line(self, unit: str = "") -> Line | None:
        """Return mean accuracy on the tasks begun so far, over seeds, in a band from the lowest to the highest.

        Of a group with finished runs only these count: others end earlier.

        Args:
            unit: what x counts: "" rounds, else "megabytes" or "seconds" spent by then (the mean over seeds).
        """
        finished = [run for run in self.runs if ended(run.results)]
        tracks = [track for run in finished or self.runs if (track := _track(run, unit))]
        if not tracks:
            return None
        shared = sorted(set.intersection(*(set(track) for track in tracks)))
        at = [[track[round] for track in tracks] for round in shared]
        xs = [sum(x for x, _ in each) / len(each) for each in at]
        ys = [[y for _, y in each] for each in at]
        points: Points = [(x, sum(y) / len(y)) for x, y in zip(xs, ys, strict=True)]
        if len(tracks) == 1:
            return Line(self.name, points, self.colour)
        low: Points = [(x, min(y)) for x, y in zip(xs, ys, strict=True)]
        high: Points = [(x, max(y)) for x, y in zip(xs, ys, strict=True)]
        return Line(self.name, points, self.colour, low, high)


def _track(run: Run, unit: str) -> dict[int, tuple[float, float]]:
    """Return (x, accuracy) by the round of evaluation."""
    known = {int(round): y for round, y in run.mean_line if y is not None}
    spent = run.spent[unit] if unit else {round: float(round) for round in known}
    return {round: (spent[round], y) for round, y in known.items() if round in spent}


def _identity(run: Run) -> str:
    """Return what runs have in common that differ in seed, name and place only; a run without one is alone."""
    if not run.settings:
        return str(run.directory)
    return json.dumps(_compared(run, "name"), sort_keys=True)


def _compared(run: Run, *left_out: str) -> dict[str, str]:
    """Return the settings of a run that say what comes out, the seed and those named left out."""
    apart = {"seed", *PLACE, *left_out}
    return {key: value for key, value in flat_texts(run.settings).items() if key not in apart}


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of runs, in the order in which they come."""
    members: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        members.setdefault(_identity(run), []).append(i)
    firsts = [runs[places[0]] for places in members.values()]
    names = _names(firsts)
    colours = _colours(firsts)
    return [
        Group(name, [i + 1 for i in places], [runs[i] for i in places], colour)
        for name, colour, places in zip(names, colours, members.values(), strict=True)
    ]


def _colours(firsts: Sequence[Run]) -> list[int]:
    """Return colours by place; of more than there are colours only those that end highest have one."""
    if len(firsts) <= NAMED:
        return list(range(len(firsts)))
    ends = [run.mean_line[-1][1] or 0.0 if run.mean_line else -1.0 for run in firsts]
    best = sorted(sorted(range(len(firsts)), key=lambda i: -ends[i])[:NAMED])
    return [best.index(i) if i in best else REST for i in range(len(firsts))]


def _names(firsts: Sequence[Run]) -> list[str]:
    """Name groups by what a sweep calls them, else by the runs' names, else by the settings in which they differ."""
    if len(firsts) == 1:
        return [firsts[0].name]
    labels = [run.labels for run in firsts]
    axes = list(dict.fromkeys(axis for each in labels for axis in each))
    varying = [axis for axis in axes if len({each.get(axis) for each in labels}) > 1]
    for tried in (
        [" ".join(_said(axis, each[axis]) for axis in varying if axis in each) for each in labels],
        [run.name for run in firsts],
        _told_apart(firsts),
    ):
        if all(tried) and len(set(tried)) == len(firsts):
            return tried
    return [f"{run.name} in {run.directory.name}" for run in firsts]


def _told_apart(firsts: Sequence[Run]) -> list[str]:
    """Name runs by the few settings that tell them apart: "er, size 50", "joint"."""
    configs = [_compared(run, "name") for run in firsts]
    keys = differing(configs)
    scenarios = [[run.name] if len({each.name for each in firsts}) > 1 else [] for run in firsts]
    chosen = _telling([*_leading(keys), *keys], configs)
    words = [
        [*names, *filter(None, (_word(key, each.get(key, "")) for key in chosen))]
        for names, each in zip(scenarios, configs, strict=True)
    ]
    return [", ".join(_shortest(each, words)) or run.name for each, run in zip(words, firsts, strict=True)]


def _telling(keys: Sequence[str], configs: Sequence[dict[str, str]]) -> list[str]:
    """Return the first keys, methods and oracles before all others, that tell all configurations apart."""
    chosen: list[str] = []
    for key in sorted(dict.fromkeys(keys), key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST)):
        splits = len({_values(each, [*chosen, key]) for each in configs}) > len(
            {_values(each, chosen) for each in configs}
        )
        if splits or any(_word(key, each.get(key, "")) in ORACLES for each in configs):
            chosen.append(key)
    return chosen


def _values(config: dict[str, str], keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(config.get(key) for key in keys)


def _shortest(words: list[str], among: Sequence[list[str]]) -> list[str]:
    """Return the first words that no other run begins with; all where one does. A single oracle has its own name."""
    oracle = [each for each in ORACLES if each in words]
    if oracle and sum(oracle[0] in each for each in among) == 1:
        return oracle
    for n in range(1, len(words)):
        if sum(each[:n] == words[:n] for each in among) == 1:
            return words[:n]
    return words


def _word(key: str, value: str) -> str:
    """Return a setting as a word of a name; "" where it is off or absent."""
    name = key.rpartition(".")[2]
    if key == "model.personal" and value == '["*"]':
        return "local-only"
    if value in ("", "false", "null", "[]"):
        return ""
    if value == "true":
        return name
    return value if name in ("name", "kind", "policy", "order") else f"{name.replace('_', ' ')} {value}"


def _leading(keys: Sequence[str]) -> list[str]:
    """Leave out the settings of parts that are not the same part: server.method.epsilon beside server.method.name."""
    parts = {key.removesuffix("name") for key in keys if key.endswith(".name")}
    return [key for key in keys if key.endswith(".name") or not any(key.startswith(part) for part in parts)]


def _said(key: str, value: str) -> str:
    """Return a setting in short: a word speaks for itself, a number does not."""
    return value if value[:1].isalpha() else f"{key.rpartition('.')[2]}={value}"


def differing(configs: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all flattened configurations, in their order."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def differences(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return the settings in which groups differ, and each group's values of them; "" where it has no such setting."""
    configs = [_compared(group.runs[0]) for group in groups]
    keys = differing(configs)
    return keys, [[config.get(key, "") for key in keys] for config in configs]
