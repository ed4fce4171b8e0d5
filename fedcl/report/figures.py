"""The figures of a report, each with its title, its caption and, where it cannot be drawn, the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcl.errors import ConfigError
from fedcl.report import bars, cells, gap, history, text
from fedcl.report.groups import Group
from fedcl.report.lines import REST, Line, Window, line_chart
from fedcl.report.runs import Run
from fedcl.report.style import NAMED
from fedcl.report.svg import Drawing, Points, ticks
from fedcl.results import client_figures


@dataclass(frozen=True)
class Figure:
    """One figure. Its key names its files; without a drawing it has the reason."""

    key: str
    title: str
    caption: str
    drawing: Drawing | None
    absent: str = ""


@dataclass(frozen=True)
class Room:
    """How much of a run a page has room for; the more runs the less, so that a page stays small.

    Attributes:
        points: of a chart's lines together.
        rows: clients of a chart with a row a client.
        columns: stretches of rounds in such a chart.
        values: cells a side of an accuracy matrix up to which each carries its number.
        letters: of error.log, and of all tracebacks together.
    """

    points: int = 1200
    rows: int = 40
    columns: int = 200
    values: int = cells.MOST_VALUES
    letters: int = 20_000

    @staticmethod
    def of(runs: int) -> "Room":
        """Return the room for each of so many runs."""
        part = min(1.0, 6 / max(runs, 1))
        full = Room()
        return Room(
            points=max(150, int(full.points * part)),
            rows=max(8, int(full.rows * part)),
            columns=max(40, int(full.columns * part)),
            values=full.values if part == 1 else full.values // 2,
            letters=max(1000, int(full.letters * part)),
        )


def _figure(key: str, title: str, caption: str, drawing: Drawing | None, absent: str) -> Figure:
    return Figure(key, title, caption, drawing, "" if drawing is not None else absent)


def matrix(run: Run, room: Room) -> Figure:
    """The accuracy matrix as a heat map."""
    ends, drawing = run.log.ends, None
    if not run.absent("accuracy_matrix") and ends.tasks:
        table = [[None if np.isnan(v) else float(v) for v in row] for row in ends.matrix]
        drawing = cells.heat_map(table, ends.ended, ends.tasks, f"accuracy matrix of {run.name}", room.values)
    numbered = max(len(ends.tasks), len(ends.ended)) <= room.values
    caption = "global model, % on each task after each task's end; " + (
        "outlined: just learnt" if numbered else "the deeper the higher"
    )
    return _figure(
        "matrix", "Accuracy matrix", caption, drawing, run.absent("accuracy_matrix") or "no task has ended yet"
    )


def accuracy(run: Run, room: Room) -> Figure:
    """Accuracy of the global model on every task over rounds, task ends marked."""
    rounds, series = run.log.series
    drawing = None
    if len(rounds) > 1:
        lines = [Line(f"T{task}", _points(rounds, series[:, task])) for task in range(series.shape[1])]
        label = f"accuracy of each task over rounds, {run.name}"
        drawing = line_chart(lines, label, run.marks, most=room.points)
    why = run.absent("accuracy_matrix") or "fewer than two evaluations"
    return _figure(
        "accuracy", "Accuracy over rounds", "global model on each task; dotted lines: task ends", drawing, why
    )


def stability(run: Run, room: Room) -> Figure:
    """The rounds around the largest drop of an old task after a task switch."""
    caption = "old tasks around the switch after which one fell furthest"
    found = gap.largest(run.log)
    if found is None:
        why = run.absent("accuracy_matrix") or "no task that had ended fell after a task switch"
        return Figure("gap", "Stability gap", caption, None, why)
    rounds, series = run.log.series
    named = series.shape[1] <= NAMED  # as in the chart of all rounds
    lines = []
    for task in found.old:
        places = [rounds.index(round) for round in found.rounds if round >= found.ended[task]]
        points = _points([rounds[i] for i in places], series[places, task])
        lines.append(Line(f"T{task}", points, task if named else None))
    known = [y for line in lines for _, y in line.points if y is not None]
    scale = ticks(max(known), 4, min(known))
    window = Window(float(found.rounds[0]), float(found.rounds[-1]), scale[0], scale[-1])
    drawing = line_chart(lines, f"stability gap of {run.name}", run.marks, window=window, most=room.points)
    caption = (
        f"after the switch in round {found.switch} T{found.task} fell from {text.percent(found.before)} to "
        f"{text.percent(found.lowest)} (round {found.at}); {text.points(found.recovered)} came back before the next"
    )
    return Figure("gap", "Stability gap", caption, drawing)


def clients(run: Run) -> Figure:
    """Every client's own accuracy, worst to best."""
    values, drawing = client_figures(run.log)["acc"], None
    if not run.absent("clients.acc") and values:
        mean = float(np.mean(list(values.values())))
        drawing = bars.ranking({str(c): v for c, v in values.items()}, mean, f"accuracy of each client, {run.name}")
    caption = "each client's own accuracy at its own last task end; the worst tenth marked"
    return _figure("clients", "Clients", caption, drawing, run.absent("clients.acc") or "no client has finished a task")


def loss(run: Run, room: Room) -> Figure:
    """The terms of the clients' loss over rounds."""
    terms: dict[str, Points] = {}
    for round, event in sorted(run.log.rounds.items()):
        for name, value in (event.get("loss") or {}).items():
            terms.setdefault(str(name), []).append((float(round), text.number(value)))
    lines = [Line(name, points) for name, points in terms.items()]
    label = f"training loss over rounds, {run.name}"
    drawing = line_chart(lines, label, run.marks, fractions=False, most=room.points) if lines else None
    caption = "mean over the clients of a round, each term by its name"
    return _figure("loss", "Training loss", caption, drawing, "no round has ended yet")


def presence(run: Run, room: Room) -> Figure:
    """Which client was asked when, and for which task."""
    asked, registered = history.visits(run.log), text.number(run.log.start.get("clients")) or 0
    caption, drawing = "rounds in which a client was asked, in the colour of its task then", None
    if asked:
        rows = history.shown(run.log, room.rows)
        rounds = max(run.log.last_round, int(text.number(run.log.start.get("rounds")) or 0))
        tasks = 1 + max(task for client in asked.values() for task in client.values())
        tasks = max(tasks, int(text.number(run.log.start.get("tasks")) or 1))
        drawn = {str(client): history.stretches(asked[client], rounds, room.columns) for client in rows}
        drawing = cells.timeline(drawn, tasks, rounds, f"who was asked when, {run.name}")
        caption += _of_all(len(rows), max(int(registered), len(asked)))
    return _figure("presence", "Who had what when", caption, drawing, "no round names its clients")


def _of_all(rows: int, clients: int) -> str:
    return f"; {rows} of {clients:,} clients, those asked most often" if rows < clients else ""


def mix(run: Run, room: Room, seen: dict[str, int], number: int) -> Figure:
    """How many items of each class clients have.

    Args:
        seen: streams that the page shows already, and of which run; this one is added.
        number: of the run on the page.
    """
    key, title, caption = "mix", "Class mix", "training items of each class, the deeper the more"
    what = str(history.stream_text(run.settings)) if run.settings else f"run {number}"
    if what in seen:
        return Figure(key, title, caption, None, f"the same as in run {seen[what]}")
    rows = history.shown(run.log, room.rows) or list(range(room.rows))
    try:
        stream = history.stream_of(run.settings)
        found = history.mix(stream, [client for client in rows if client < len(stream.train.count)])
    except ConfigError as error:
        return Figure(key, title, caption, None, f"not known: {error}")
    if not found.most:
        return Figure(key, title, caption, None, "these clients have no items")
    seen[what] = number
    table = [[count / found.most for count in row] for row in found.counts]
    columns = "classes of each task" if found.by_class else "tasks"
    drawing = cells.shares(table, found.names, found.heads, columns, f"who has what, {run.name}")
    caption = (
        f"training items of each {'class' if found.by_class else 'task'}, the deeper the more (at most {found.most:,})"
    )
    return Figure(key, title, caption + _of_all(len(found.names), len(stream.train.count)), drawing)


def of_run(run: Run, number: int, room: Room, seen: dict[str, int]) -> list[Figure]:
    """Return the figures of one run, in the order in which they are read; arguments as for `mix`."""
    return [
        *(matrix(run, room), accuracy(run, room), stability(run, room), clients(run)),
        *(presence(run, room), mix(run, room, seen, number), loss(run, room)),
    ]


def against(groups: Sequence[Group], room: Room) -> list[Figure]:
    """Return mean accuracy over rounds, bytes and time, a line a group."""
    many = any(len(group.runs) > 1 for group in groups)
    caption = "global model, mean over the tasks begun so far"
    caption += "; mean over seeds, shaded from the lowest to the highest" if many else ""
    rest = any(group.colour == REST for group in groups)
    caption += "; the highest at the end are named" if rest else ""
    figures = []
    for key, title, unit, x_name in (
        ("rounds", "Accuracy over rounds", "", "round"),
        ("bytes", "Accuracy over bytes sent", "megabytes", "MB up and down"),
        ("time", "Accuracy over time", "seconds", "seconds in rounds"),
    ):
        lines = sorted((line for group in groups if (line := group.line(unit))), key=lambda line: line.colour != REST)
        drawing = line_chart(lines, f"{title.lower()}, every run", x_name=x_name, most=room.points) if lines else None
        figures.append(_figure(key, title, caption, drawing, "no run has a global accuracy"))
    return figures


def over_seeds(groups: Sequence[Group]) -> list[Figure]:
    """Return accuracy and forgetting over seeds, with their intervals."""
    made = []
    for key, title, metric, differences in (
        ("acc", "ACC over seeds", "acc", False),
        ("forgetting", "Forgetting over seeds", "forgetting", True),
    ):
        known = [(group, spread) for group in groups if (spread := group.spread(metric))]
        estimates = [
            bars.Estimate(group.name, list(group.values(metric).values()), spread, group.colour)
            for group, spread in known
        ]
        kinds = sorted({spread.interval for _, spread in known if spread.interval})
        notes = sorted({spread.note for _, spread in known if spread.note})
        caption = "; ".join(
            ["a ring a seed, a dot the mean", *(f"line: 95 % interval ({kind})" for kind in kinds), *notes]
        )
        unit = "percentage points" if differences else "%"
        drawing = (
            bars.intervals(estimates, f"{title.lower()} of every method", differences, unit) if estimates else None
        )
        made.append(_figure(key, title, caption, drawing, f"no run has {metric} yet"))
    return made


def _points(rounds: Sequence[int], values: Iterable[float]) -> Points:
    return [(float(r), None if np.isnan(v) else float(v)) for r, v in zip(rounds, values, strict=True)]
