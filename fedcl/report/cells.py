"""Cells: accuracy matrices, who was asked when and for which task, who has how much of which class."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from fedcl.report import style
from fedcl.report.svg import LETTER, WIDTH, Drawing, Frame, canvas, columns, node
from fedcl.report.text import percent

MOST_VALUES = 12  # cells a side of a heat map up to which each carries its number
HIGH = 0.62  # cells above are so deep that their number turns to the ground's colour
LEVELS = 20  # of depth, where cells are drawn together
HEIGHT = 200.0  # of the rows of a chart with a row a client


def _depth(value: float) -> float:
    """Return how much of the heat colour covers the ground: the deeper the more."""
    return 0.04 + 0.96 * min(max(value, 0.0), 1.0)


def _cell(root: Drawing, x: float, y: float, w: float, h: float, value: float | None, mark: bool) -> Drawing:
    box: dict[str, Any] = {"x": x + 1, "y": y + 1, "width": w - 2, "height": h - 2, "rx": 3}
    edge = " just" if mark else ""
    if value is None:
        return node(root, "rect", class_=f"cell unknown{edge}", **box)
    return node(root, "rect", class_=f"cell{edge}", fill_opacity=_depth(value), **box)


def _together(
    root: Drawing, left: float, top: float, w: float, h: float, table: Sequence[Sequence[float | None]]
) -> None:
    """Draw many cells as one path for each of LEVELS depths, equal neighbours as one: a few bytes a cell."""
    depths: dict[int, list[str]] = {}
    for i, values in enumerate(table):
        y, at = top + h * (i + 0.5), 0
        for level, cells in groupby(values, _level):
            n = len(list(cells))
            if level is not None:
                depths.setdefault(level, []).append(_strip(left + w * at, left + w * (at + n), y))
            at += n
    gap = 1.0 if h > 6 else 0.0
    for level, words in sorted(depths.items()):
        looks: dict[str, Any] = {"class_": "level", "stroke_width": h - gap, "stroke_opacity": _depth(level / LEVELS)}
        node(root, "path", d="".join(words), **looks)


def _strip(start: float, stop: float, y: float) -> str:
    """Return a stroke as few letters: its ends fall on whole units, or tenths if it is narrow, so neighbours meet."""
    digits = 0 if stop - start >= 8 else 1
    x, end = round(start, digits), round(stop, digits)
    return f"M{x:g} {y:.4g}h{end - x:.3g}"


def _level(value: float | None) -> int | None:
    return None if value is None else round(LEVELS * min(max(value, 0.0), 1.0))


def heat_map(
    matrix: Sequence[Sequence[float | None]],
    ended: Sequence[int],
    tasks: Sequence[int],
    label: str,
    most: int = MOST_VALUES,
) -> Drawing:
    """Draw an accuracy matrix of fractions, None drawn as unknown; where a row's task is the column's it is outlined.

    Args:
        matrix: (rows, columns) accuracies.
        ended: the task whose end each row is.
        tasks: the task of each column.
        label: what the chart shows, for screen readers.
        most: cells a side up to which each carries its number.
    """
    few = max(len(tasks), len(ended)) <= most
    width = min((WIDTH - 88) / len(tasks), 72.0)
    height = min(width, 42.0)
    root = canvas(label, 26 + height * len(ended) + 4, 88 + width * len(tasks) + 2)
    for j in range(0, len(tasks), math.ceil(len(tasks) / MOST_VALUES)):
        node(root, "text", f"T{tasks[j]}", class_="axis", x=88 + width * (j + 0.5), y=17, text_anchor="middle")
    for i in range(0, len(ended), math.ceil(len(ended) / MOST_VALUES)):
        y = 26 + height * (i + 0.5) + 4
        node(root, "text", f"after T{ended[i]}", class_="axis", x=80, y=y, text_anchor="end")
    if not few:
        _together(root, 88, 26, width, height, matrix)
        return root
    for i, values in enumerate(matrix):
        for j, value in enumerate(values):
            x, y = 88 + width * j, 26 + height * i
            cell = _cell(root, x, y, width, height, value, ended[i] == tasks[j])
            node(cell, "title", f"task {tasks[j]} after task {ended[i]}: {percent(value)}")
            if value is not None:
                _value(root, x + width / 2, y + height / 2 + 4, value, len(tasks) <= 6)
    return root


def _value(root: Drawing, x: float, y: float, value: float, exact: bool) -> None:
    looks = "value high" if value >= HIGH else "value"
    text = f"{100 * value:.1f}" if exact else f"{100 * value:.0f}"
    node(root, "text", text, class_=looks, x=x, y=y, text_anchor="middle")


def colour_of(task: int, tasks: int) -> dict[str, str]:
    """Return how a task's visits are drawn: in the colour of its line; where tasks are many, by a ramp over them."""
    if task < 0:
        return {"class_": "visits all"}
    if tasks <= style.NAMED:
        return {"class_": f"visits c{task}"}
    return {"class_": "visits", "stroke": style.ramp(min(task / (tasks - 1), 1.0))}


def _height(rows: int) -> float:
    """Return how high a row is: as high as there is room for, and a whole number where that is no great loss."""
    high = min(HEIGHT / rows, 20.0)
    return float(int(high)) if high > 6 else high


def _names(root: Drawing, frame: Frame, names: Sequence[str], height: float) -> None:
    """Write the rows' names at the left, as many as there is room for, and above what they are."""
    node(root, "text", "client", class_="axis", x=frame.left - 7, y=frame.above - 9, text_anchor="end")
    for i in range(0, len(names), math.ceil(12 / height)):
        y = frame.above + height * (i + 0.5) + 4
        node(root, "text", names[i], class_="axis", x=frame.left - 7, y=y, text_anchor="end")


def _left(names: Sequence[str]) -> float:
    return 14.0 + LETTER * max(len(name) for name in ("client", *names))


Stretch = tuple[float, float, int]  # from, to (in rounds), task


def timeline(clients: Mapping[str, Sequence[Stretch]], tasks: int, rounds: int, label: str) -> Drawing:
    """Draw which client was asked when, in the colour of the task that it was at.

    Args:
        clients: stretches of rounds by a client's name, one row each from the top; task -1: all of them at once.
        tasks: how many tasks there are.
        rounds: how many rounds there were.
        label: what the chart shows, for screen readers.
    """
    names, height = list(clients), _height(len(clients))
    left = _left(names)
    frame = Frame(float(rounds), 1.0, left, WIDTH - left - 16, height * len(names), 30)
    root = canvas(label, frame.bottom + 42)
    _legend(root, frame, sorted({task for stretches in clients.values() for *_, task in stretches}), tasks)
    _names(root, frame, names, height)
    columns(root, frame, "round")
    ways: dict[int, list[str]] = {}
    for i, stretches in enumerate(clients.values()):
        y = frame.above + height * (i + 0.5)
        for start, stop, task in stretches:
            ways.setdefault(task, []).append(_strip(frame.x(start), frame.x(stop), y))
    for task, words in sorted(ways.items()):
        drawn = node(root, "path", d="".join(words), stroke_width=height * 0.84, **colour_of(task, tasks))
        node(drawn, "title", f"task {task}" if task >= 0 else "all tasks at once")
    return root


def _legend(root: Drawing, frame: Frame, present: Sequence[int], tasks: int) -> None:
    """Name the colours above the rows; of a ramp as many as there is room for."""
    step = math.ceil(len(present) / style.NAMED)
    x = frame.left
    for task in present[::step]:
        node(root, "path", d=f"M{x:.4g} 17h12", stroke_width=10, **colour_of(task, tasks))
        name = f"T{task}" if task >= 0 else "all tasks"
        node(root, "text", name, class_="axis", x=x + 16, y=21)
        x += 28 + LETTER * len(name)


def shares(
    table: Sequence[Sequence[float]], names: Sequence[str], heads: Sequence[tuple[str, int]], x_name: str, label: str
) -> Drawing:
    """Draw how much each has: a row a client, a column a class, the deeper the more.

    Args:
        table: (rows, columns) in [0, 1].
        names: of the rows.
        heads: groups of columns (name, how many), from the left.
        x_name: what the columns are.
        label: what the chart shows, for screen readers.
    """
    height, left = _height(len(names)), _left(names)
    frame = Frame(float(len(table[0])), 1.0, left, WIDTH - left - 16, height * len(names), 24)
    root = canvas(label, frame.bottom + 24)
    _names(root, frame, names, height)
    _together(root, frame.left, frame.above, frame.width / len(table[0]), height, table)
    at, free = 0, -math.inf
    for name, width in heads:
        x, middle = frame.x(at), frame.x(at + width / 2)
        if at:
            node(root, "line", class_="mark", x1=x, x2=x, y1=frame.above - 8, y2=frame.bottom)
        if middle > free:
            node(root, "text", name, class_="axis", x=middle, y=frame.above - 9, text_anchor="middle")
            free = middle + LETTER * len(name) + 4
        at += width
    node(root, "text", x_name, class_="axis", x=frame.left + frame.width / 2, y=frame.bottom + 17, text_anchor="middle")
    return root
