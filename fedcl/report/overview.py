"""The tables above the runs: figures side by side, what a sweep found, settings and versions in which runs differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedcl.report import text
from fedcl.report.groups import Group, differences
from fedcl.report.runs import MEANING, Run
from fedcl.sweeps import tables

# Figures that depend on how often one evaluates: unlike `evaluation_every` are not compared.
FREQUENT = ("A-AUC", "min-ACC", "WC-ACC", "WF-10", "WP-10")
SHOWN = ("acc", "aia", "forgetting", "min_acc")
LETTERS = 60  # of a setting's value


@dataclass(frozen=True)
class Cell:
    """What stands in a table, what it is sorted by, and why it is absent."""

    text: str
    value: Any = ""
    absent: str = ""


@dataclass(frozen=True)
class Line:
    """One run in the table of runs."""

    number: int
    run: Run
    key: str  # the class of its colour
    setting: str  # what its group is called, "" where no group is called otherwise than its runs

    @property
    def words(self) -> str:
        """What a reader may look for."""
        return f"{self.run.name} {self.setting} seed {self.run.results.get('seed')} {self.run.status}"


@dataclass(frozen=True)
class Table:
    """Cells under heads."""

    heads: list[str]
    rows: list[list[Cell]]

    @property
    def words(self) -> list[bool]:
        """Which columns read as text, from the left: some cell is known, and is no number."""
        columns = zip(*self.rows, strict=True)
        return [any(isinstance(each.value, str) and each.value for each in column) for column in columns]


def _cell(words: str, value: float | None, absent: str = "") -> Cell:
    return Cell(words, "" if value is None else value, absent)


def named(groups: Sequence[Group]) -> bool:
    """Return whether some group is called otherwise than its runs."""
    return any(run.name != group.name for group in groups for run in group.runs)


def lines(groups: Sequence[Group]) -> list[Line]:
    """Return the runs in the order of their numbers."""
    found = [
        Line(number, run, group.key, group.name if named(groups) else "")
        for group in groups
        for number, run in zip(group.numbers, group.runs, strict=True)
    ]
    return sorted(found, key=lambda line: line.number)


def runs_table(lines: Sequence[Line]) -> Table:
    """Return the table of runs, without the run's name and status."""
    figures = [MEANING[name][0] for name in SHOWN]
    heads = [
        *(["setting"] if lines[0].setting else []), "seed", *figures, "client mean", "worst 10%", "time", "updates/s",
        "bytes up", "evaluated every",
    ]  # fmt: skip
    return Table(heads, [_cells(line.run, line.setting) for line in lines])


def _cells(run: Run, setting: str) -> list[Cell]:
    seed, every = run.results.get("seed"), run.results.get("evaluation_every")
    shown = [_cell(run.figure(name), run.metric(name), run.absent(name)) for name in SHOWN]
    spread = [
        _cell(run.client("acc", part), run.spread("acc", part), run.absent("clients.acc"))
        for part in ("mean", "worst10")
    ]
    costs = [
        _cell(words(run.cost(name)), text.number(run.cost(name)))
        for name, words in (("seconds", text.duration), ("updates_per_second", text.count), ("bytes_up", text.size))
    ]
    return [
        *([Cell(setting, setting)] if setting else []),
        _cell(str(seed), text.number(seed)), *shown, *spread, *costs, _cell(text.count(every), text.number(every)),
    ]  # fmt: skip


def settings(groups: Sequence[Group]) -> Table:
    """Return the settings in which groups differ, a row a group; without heads where they differ in none."""
    keys, values = differences(groups)
    return Table(keys, [[_sorted(value, _cut(value) or text.DASH) for value in each] for each in values])


def _cut(value: str) -> str:
    return value if len(value) <= LETTERS else value[: LETTERS - 1] + "…"


def unlike_versions(runs: Sequence[Run]) -> list[str]:
    """Return what was not the same version, or device, in all runs, with what it was."""
    made = [run.versions | {"device": str(run.results.get("device"))} for run in runs]
    names = dict.fromkeys(name for each in made for name in each)
    found = []
    for name in names:
        values = list(dict.fromkeys(each.get(name, "none") for each in made))
        if len(values) > 1:
            found.append(f"{name} ({text.some(values, 4)})")
    return found


def notes(runs: Sequence[Run]) -> list[str]:
    """Return what must be said beside a comparison of these runs."""
    said = []
    if len({str(run.results.get("evaluation_every")) for run in runs}) > 1:
        said.append(f"These runs were not evaluated equally often: do not compare their {', '.join(FREQUENT)}.")
    orders = {order for run in runs for order in run.log.start.get("orders", ())}
    if orders & {"curr", "anti"} and "rand" not in orders:  # what pacing gains reads like a gain of order then
        said.append(
            "No run here has the order rand, the control of curricula: what pacing gains reads like a gain of order."
        )
    if unlike := unlike_versions(runs):
        said.append(f"These runs were not made alike: {'; '.join(unlike)}. Compare their times with care.")
    return said


def sweep_table(found: tables.Found) -> tuple[str, Table, list[str]]:
    """Return a sweep's title, its table and what must be said beside it."""
    heads, rows = tables.grid(found)
    cells = [["" if each == "-" else each for each in row] for row in rows]
    table = Table(heads, [[_sorted(each, each or text.DASH) for each in row] for row in cells])
    return f"Sweep {found.name}: {found.metric}", table, tables.notes(found)


def _sorted(value: str, words: str) -> Cell:
    """Return a cell that is sorted as a number where its value begins with one: +0.5 to +0.6, <0.001."""
    try:
        return Cell(words, float(value.removeprefix("<").split(" ")[0]))
    except ValueError:
        return Cell(words, value)
