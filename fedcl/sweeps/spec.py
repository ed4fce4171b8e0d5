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
search: {..}                         # settings that are looked for instead of listed: see `space`
limits: {runs: 500}
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedcl import config, files
from fedcl.config import Scenario
from fedcl.errors import ConfigError, nearest, shown
from fedcl.overrides import as_texts
from fedcl.plain import Plain, parse
from fedcl.settings import Settings, setting
from fedcl.shipped import sweep_names
from fedcl.sweeps.axes import MOST, Point, block, choices, combinations, known, scenarios, seeds
from fedcl.sweeps.space import Search, Study, search, studies

SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """What a sweep may take."""

    runs: int = setting(1000, "runs; a sweep of more is refused", low=1, high=MOST)
    cpus: float = setting(1.0, "cores that Ray keeps for a run", above=0)
    gpus: float = setting(0.0, "GPUs that Ray keeps for a run, a fraction or a whole number", low=0)
    at_once: int | None = setting(None, "runs at the same time; null: as many as there are cores and GPUs for", low=1)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file, read."""

    name: str
    points: tuple[Point, ...]  # of a search none: its settings are chosen on the way
    seeds: tuple[int, ...]
    limits: Limits = field(default_factory=Limits)
    search: Search | None = None
    studies: tuple[Study, ...] = ()


def read(sweep: str, changes: Iterable[str] = ()) -> Sweep:
    """Read a shipped sweep by name, or a sweep file by path.

    Args:
        changes: `dotted.key=value` texts for every run.

    Raises:
        ConfigError: there is neither, or it is no sweep; names key, value and nearest valid choice.
    """
    shipped = sweep_names()
    if sweep in shipped:
        return of_plain(parse(shipped[sweep].read_text(encoding="utf-8"), sweep), sweep, changes)
    if not os.path.lexists(sweep):
        raise ConfigError(f"no sweep {sweep!r}, neither shipped nor a file{nearest(sweep, shipped)}")
    return of_plain(parse(files.text(sweep, "sweep"), sweep), Path(sweep).stem, changes)


KEYS = ("name", "scenario", "scenarios", "set", "grid", "seeds", "search", "limits")


def of_plain(plain: Plain, name: str, changes: Iterable[str] = ()) -> Sweep:
    """Return the sweep of plain values.

    Raises:
        ConfigError: a key is unknown, or a value cannot be.
    """
    known(plain, KEYS, "a sweep")
    titled = str(plain.get("name", name))
    if wrong := config.one_component(titled):
        raise ConfigError(f"name = {shown(titled)}: {wrong}")
    if "scenario" in plain and "scenarios" in plain:
        raise ConfigError("scenario and scenarios: a sweep has one of them")
    axes = [(key, choices(key, value, "grid")) for key, value in block(plain.get("grid"), "grid").items()]
    named = scenarios(plain.get("scenarios", plain.get("scenario")))
    fixed, compared = (*as_texts(block(plain.get("set"), "set")), *changes), seeds(plain.get("seeds", SEEDS))
    limits: Limits = config.build(Limits, plain.get("limits") or {}, "limits")
    asked = block(plain.get("search"), "search")
    budget = search(asked, compared) if "search" in plain else None
    settings = len(named) * math.prod(len(values) for _, values in axes)  # counted before they are written out
    runs = settings * (len(compared) + (budget.trials * len(budget.seeds) if budget else 0))
    if runs > limits.runs:
        raise ConfigError(
            f"the sweep has {runs if runs < 10**15 else 'countless'} runs, more than limits.runs = {limits.runs}"
        )
    cells = list(combinations(named, axes))
    for text in (*fixed, *(text for _, chosen in cells for text in chosen)):
        if text.startswith("seed="):
            raise ConfigError(f"{text}: a sweep has its seeds from its own key: seeds: 3, or seeds: [0, 1, 2]")
    points = tuple(  # seeds last, so that every method soon has a first figure
        Point(labels=labels, overrides=(*fixed, *chosen, f"seed={seed}"), seed=seed)
        for seed in compared
        for labels, chosen in cells
    )
    return Sweep(
        name=titled, points=() if budget else points, seeds=compared, limits=limits,
        search=budget, studies=studies(asked, fixed, axes, cells) if budget else (),
    )  # fmt: skip


def checked(sweep: Sweep) -> list[Scenario]:
    """Return the scenario of every point; of a search check what lies at the ends of its space.

    Raises:
        ConfigError: some are impossible; each is named.
    """
    tried = [study.point(corner, 0, None) for study in sweep.studies for corner in study.corners()]
    found, wrong = [], []
    for point in (*sweep.points, *tried):
        try:
            found.append(config.load(point.scenario, point.overrides))
        except ConfigError as error:
            wrong.append((point, str(error)))
    if wrong:
        shown_few = "; ".join(f"{point.title}: {error}" for point, error in wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        what = "settings at the ends of the space" if tried else "runs"
        raise ConfigError(f"{len(wrong)} of {len(sweep.points) + len(tried)} {what} are impossible: {shown_few}{more}")
    if sweep.search and sweep.search.prune and (mute := [each for each in found if not each.evaluate.every]):
        raise ConfigError(
            f"search.prune = True: {mute[0].name} is not evaluated between task ends (evaluate.every = 0)"
        )
    return found[: len(sweep.points)]
