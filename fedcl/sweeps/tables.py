"""What a sweep has found: figures over seeds, differences paired by seed, ranks over scenarios, in five formats."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedcl import foreign, kept
from fedcl.errors import ConfigError, nearest
from fedcl.journal import RESULTS, ended, read_results, replace_file, write_json
from fedcl.statistics import Paired, Spread, adjusted, paired, ranks, spread
from fedcl.sweeps.axes import AXIS, titled
from fedcl.sweeps.folder import read_plan, run_folder
from fedcl.sweeps.space import LOWER

METRIC = "acc"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scenario with one setting of every axis, over seeds."""

    labels: dict[str, str]
    values: dict[int, float]  # seed -> the metric, of the runs that have it
    spread: Spread | None  # None: no run has it
    versus: Paired | None = None  # beside the first row of its setting; None: it is that row, or shares no seed

    @property
    def setting(self) -> tuple[str, ...]:
        """Scenario and choices in which the rows that are compared are alike: all but that of the first axis."""
        scenario, *choices = self.labels.values()
        return scenario, *choices[1:]

    @property
    def method(self) -> str:
        """The setting of the axes in a line."""
        return " ".join(f"{name}={value}" for name, value in self.labels.items() if name != AXIS) or "-"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sweep's figures."""

    name: str
    metric: str
    rows: list[Row]
    ranks: dict[str, float] = field(default_factory=dict)  # method -> mean rank; empty: one scenario or one method
    search: dict[str, Any] | None = None  # what a search has found, as sweep.json has it; None: a grid


def value_of(results: dict[str, Any], metric: str) -> float | None:
    """Return a figure of results.json: one of `metrics`, or a dotted path such as clients.acc.worst.

    Raises:
        ConfigError: there is no such figure.
    """
    known, path = results["metrics"], metric.split(".")
    if len(path) == 1 and metric not in known:
        raise ConfigError(f"--metric {metric!r}: unknown{nearest(metric, known)}")
    found: Any = known if len(path) == 1 else results
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def collect(out: Path, metric: str = METRIC) -> Found:
    """Read the figures of a sweep's finished runs.

    Raises:
        ConfigError: the folder holds no sweep, or there is no such metric.
    """
    plan = read_plan(out)
    values: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
    for point in plan["points"]:
        mine = values.setdefault(tuple(point["labels"].items()), {})
        folder = run_folder(out, point["key"])
        results = read_results(folder)
        with kept.sound(folder / RESULTS):
            if results and ended(results) and (value := value_of(results, metric)) is not None:
                mine[point["seed"]] = value
    rows = [
        Row(labels=dict(labels), values=mine, spread=spread([mine[seed] for seed in sorted(mine)]) if mine else None)
        for labels, mine in values.items()
    ]
    return Found(
        name=plan["name"], metric=metric, rows=_compared(rows), ranks=_ranked(rows, metric), search=plan.get("search")
    )  # fmt: skip


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each but the first of its setting compared with that one."""
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first.setdefault(row.setting, row)
    bases = [(row, first[row.setting]) for row in rows]
    pairs = [(row, base) for row, base in bases if row is not base and row.values.keys() & base.values.keys()]
    tests = adjusted([paired(row.values, base.values, len(pairs)) for row, base in pairs])
    by_row = {id(row): test for (row, _), test in zip(pairs, tests, strict=True)}
    return [Row(**{**vars(row), "versus": by_row.get(id(row))}) for row in rows]


def _ranked(rows: Sequence[Row], metric: str) -> dict[str, float]:
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.spread:
            scores.setdefault(row.labels[AXIS], {})[row.method] = row.spread.mean
    methods = {row.method for row in rows}
    whole = [each for each in scores.values() if len(each) == len(methods)]
    if len(whole) < 2 or len(methods) < 2:
        return {}
    return ranks(scores, higher=metric not in LOWER)


# As text.

HEAD = ("seeds", "mean", "std", "interval", "iqm", "difference", "its interval", "p", "test")


def _number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def _ends(found: Spread, signed: bool = False) -> str:
    return "-" if found.low is None else f"{_number(found.low, signed)} to {_number(found.high, signed)}"


def cells(row: Row) -> list[str]:
    """Return what HEAD names of a row."""
    if not row.spread:
        return ["0", *["-"] * (len(HEAD) - 1)]
    mine = [str(row.spread.n), _number(row.spread.mean), _number(row.spread.std), _ends(row.spread)]
    mine.append(_number(row.spread.iqm))
    if not row.versus:
        return [*mine, *["-"] * 4]
    p = row.versus.adjusted
    told = "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    difference = row.versus.difference
    return [*mine, _number(difference.mean, True), _ends(difference, True), told, row.versus.test or row.versus.note]


def grid(found: Found) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of the table: a column for each axis, then HEAD."""
    axes = list(dict.fromkeys(name for row in found.rows for name in row.labels))
    lines = [[*(row.labels.get(name, "") for name in axes), *cells(row)] for row in found.rows]
    return [*axes, *HEAD], lines


def notes(found: Found) -> list[str]:
    """Return what must be said beside the table."""
    spreads = [row.spread for row in found.rows if row.spread]
    axis, *rest = list(found.rows[0].labels)[1:] or ["line"] if found.rows else ["line"]
    kind = " and ".join([AXIS, *rest])
    said = [
        f"{found.metric}: mean over seeds, standard deviation, 95 % interval "
        f"({', '.join(sorted({each.interval for each in spreads if each.interval})) or 'none'}), interquartile mean.",
        f"difference: to the first {axis} of the same {kind}, on the seeds that both have; p adjusted by Holm.",
    ]
    said += sorted({each.note for each in spreads if each.note})
    tests = {row.versus.test or row.versus.note for row in found.rows if row.versus}
    said += [f"p: {', '.join(sorted(tests))}."] if tests else []
    if found.ranks:
        order = sorted(found.ranks.items(), key=lambda each: each[1])
        said.append("mean rank over scenarios: " + ", ".join(f"{name} {rank:.2f}" for name, rank in order))
    return [*said, *searched(found.search)] if found.search else said


def searched(search: dict[str, Any]) -> list[str]:
    """Return what a search has found: its budget, and of every study what has become of its trials, and the best."""
    trials, metric, seeds = search["trials"], search["metric"], ", ".join(map(str, search["seeds"]))
    said = [f"search: {trials} trials each, judged by {metric} over the seeds {seeds}, which are not among these."]
    for study in search["studies"]:
        counts = ", ".join(f"{study[each]} {each}" for each in ("done", "pruned", "hopeless") if study[each])
        best = study["best"]
        what = f"{best['value']:.3f} with {' '.join(best['settings'])}" if best else "no trial has gone to its end"
        said.append(f"best of {titled(study['labels'])} ({counts or 'none tried'}): {what}")
    return said


def _inert(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: behind an apostrophe where it begins like one."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.lstrip()[:1] in tuple("=+-@") else text
    return text


def as_csv(found: Found) -> str:
    """Return the table as CSV, without its notes."""
    file = io.StringIO()
    head, lines = grid(found)
    axes = len(head) - len(HEAD)  # labels: texts of the sweep's author
    told = [[*map(_inert, line[:axes]), *line[axes:]] for line in (head, *lines)]
    csv.writer(file, lineterminator="\n").writerows(told)
    return file.getvalue()


def as_markdown(found: Found) -> str:
    """Return the table as Markdown."""
    head, lines = grid(found)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_in_markdown, cells)) + " |"

    said = map(foreign.line, notes(found))
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, lines), "", *said, ""])


def _in_markdown(text: str) -> str:
    """Return a text that stays in its cell, as it is."""
    return re.sub(r"([\\|`*<>\[\]])", r"\\\1", foreign.line(text))


_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def escaped(text: str) -> str:
    """Return a text as LaTeX prints it."""
    return "".join(_ESCAPED.get(letter, letter) for letter in foreign.line(text))


def as_latex(found: Found) -> str:
    """Return the table as a LaTeX tabular (package booktabs)."""
    head, lines = grid(found)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    columns = "l" * (len(head) - len(HEAD)) + "r" * (len(HEAD) - 1) + "l"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(head), r"\midrule", *map(line, lines)]
    said = ["% " + foreign.line(each) for each in notes(found)]
    return "\n".join([*said, *body, r"\bottomrule", r"\end{tabular}", ""])


def as_plain(found: Found) -> dict[str, Any]:
    """Return everything as JSON has it."""
    rows = [
        {
            "labels": row.labels, "values": {str(seed): value for seed, value in row.values.items()},
            "spread": asdict(row.spread) if row.spread else None, "versus": asdict(row.versus) if row.versus else None,
        }
        for row in found.rows
    ]  # fmt: skip
    search = {"search": found.search} if found.search else {}
    return {"schema": 1, "name": found.name, "metric": found.metric, "rows": rows, "ranks": found.ranks, **search}


def write(found: Found, out: Path) -> None:
    """Write the table in every format beside the sweep."""
    texts = {"csv": as_csv(found), "md": as_markdown(found), "tex": as_latex(found)}
    for kind, text in texts.items():
        replace_file(out / f"table.{kind}", [text.encode()], sync=False)
    write_json(out / "table.json", as_plain(found))
    from fedcl.sweeps.latex import paper_table

    replace_file(out / "paper.tex", [paper_table(out).encode()], sync=False)
