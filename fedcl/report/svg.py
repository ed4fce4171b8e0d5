"""Charts as inline SVG, built as an element tree: its writer escapes every text; colours come from the page's CSS.

A chart is drawn `WIDTH` units wide, so that its letters stay readable on a telephone and it can grow on a wide screen.
Colour is never the only sign: lines are named at their ends and dashed in turn, cells carry their number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from fedcl.report.text import count, percent

WIDTH = 420
NAMED_LINES = 8  # as many lines have a colour, a dash and a name of their own; more are a ramp from first to last
MOST_POINTS = 600
MOST_VALUES = 12  # cells a side of a heat map up to which each carries its number
MOST_TITLES = 40
MOST_LETTERS = 14  # of a name at a line's end; its title has the whole name
HIGH = 0.62  # cells above are so deep that their number turns to the ground's colour
MOST_BARS = 60
# A ramp that reads on light and dark ground and without red-green vision: blue, teal, amber.
RAMP = ((59, 111, 212), (42, 161, 152), (217, 147, 43))

Points = list[tuple[float, float | None]]


def node(parent: ET.Element, tag: str, text: str = "", **attributes: Any) -> ET.Element:
    """Append an element; attribute names lose a trailing "_" and turn "_" to "-", floats are written short."""
    plain = {
        k.rstrip("_").replace("_", "-"): f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in attributes.items()
    }
    child = ET.SubElement(parent, tag, plain)
    child.text = text or None
    return child


def canvas(label: str, height: float, width: float = WIDTH) -> ET.Element:
    """Start a chart that says what it is to those who cannot see it."""
    root = ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label})
    root.set("style", f"max-width: {width * 1.3:.0f}px")
    return root


def written(root: ET.Element) -> str:
    """Return the chart as markup that can stand in a page."""
    return ET.tostring(root, encoding="unicode")


def ticks(top: float, wanted: int = 4) -> list[float]:
    """Return round numbers from 0 that cover [0, top], about `wanted` steps."""
    if not top > 0:
        return [0.0, 1.0]
    rough = top / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def apart(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move labels as little as a sweep can so that they keep `gap` between them inside [top, bottom], order kept."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for before, i in zip([None, *order], order, strict=False):
        placed[i] = max(placed[i], top if before is None else placed[before] + gap)
    limit = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


@dataclass(frozen=True)
class Line:
    """One line of a chart: a short name, its points (unknown: the line breaks), and its colour if that is fixed."""

    name: str
    points: Points
    colour: int | None = None


@dataclass(frozen=True)
class Frame:
    """The plotting area: maps x in [0, right] and y in [0, top] to units of the drawing."""

    right: float
    top: float
    left: float = 46
    width: float = WIDTH - 46 - 44
    height: float = 190
    above: float = 24

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.width * value / (self.right or 1)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        return self.above + self.height * (1 - value / (self.top or 1))


def _axes(root: ET.Element, frame: Frame, fractions: bool, x_name: str) -> None:
    for value in ticks(frame.top):
        y = frame.y(value)
        node(root, "line", class_="grid", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y)
        text = f"{100 * value:.0f}%" if fractions else f"{value:.4g}"
        node(root, "text", text, class_="axis", x=frame.left - 7, y=y + 4, text_anchor="end")
    bottom = frame.above + frame.height
    for value in ticks(frame.right, 5):
        if value <= frame.right:
            node(root, "text", f"{value:g}", class_="axis", x=frame.x(value), y=bottom + 17, text_anchor="middle")
    middle = frame.left + frame.width / 2
    node(root, "text", x_name, class_="axis", x=middle, y=bottom + 36, text_anchor="middle")


def _path(line: Line, frame: Frame) -> str:
    stride = max(1, math.ceil(len(line.points) / MOST_POINTS))
    kept = [point for i, point in enumerate(line.points) if i % stride == 0 or i == len(line.points) - 1]
    words, pen = [], "M"
    for x, y in kept:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{frame.x(x):.1f} {frame.y(min(max(y, 0), frame.top)):.1f}")
        pen = "L"
    return "".join(words)


def ramp(part: float) -> str:
    """Return the colour at `part` in [0, 1] of the ramp."""
    place = part * (len(RAMP) - 1)
    i = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return f"rgb({', '.join(map(str, mixed))})"


def _marks(root: ET.Element, frame: Frame, marks: Sequence[tuple[float, str]]) -> None:
    """Draw the ends of tasks; a name that would touch the one before it is left out, its line stays."""
    free = -math.inf
    for x, name in marks:
        place = frame.x(x)
        node(root, "line", class_="mark", x1=place, x2=place, y1=frame.above - 6, y2=frame.above + frame.height)
        if place > free:
            node(root, "text", name, class_="mark-name", x=place, y=frame.above - 11, text_anchor="middle")
            free = place + 8 * len(name) + 4


def short(name: str) -> str:
    """Return a name that has room beside a chart."""
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _draw(root: ET.Element, frame: Frame, lines: Sequence[Line]) -> None:
    """Draw the lines, then their names; of a ramp of many lines only the first and the last are named."""
    ramped = len(lines) > NAMED_LINES and all(line.colour is None for line in lines)
    ends: dict[int, list[tuple[str, int, float, float]]] = {}
    for i, line in enumerate(lines):
        colour = (i if line.colour is None else line.colour) % NAMED_LINES
        style = (
            {"style": f"stroke: {ramp(i / (len(lines) - 1))}", "class_": "line"}
            if ramped
            else {"class_": f"line c{colour}"}
        )
        node(node(root, "path", d=_path(line, frame), **style), "title", line.name)
        x, y = line.points[-1] if line.points else (0.0, None)
        if y is not None and (not ramped or i in (0, len(lines) - 1)):
            near = round(frame.x(x) / 40)  # names of lines that end close to each other could overlap
            ends.setdefault(near, []).append((line.name, -1 if ramped else colour, x, y))
    for names in ends.values():
        places = apart([frame.y(y) for *_, y in names], 13, frame.above, frame.above + frame.height - 5)
        for (name, colour, x, _), y in zip(names, places, strict=True):
            node(
                root,
                "text",
                short(name),
                class_=f"name c{colour}" if colour >= 0 else "name",
                x=frame.x(x) + 6,
                y=y + 4,
            )


def line_chart(
    lines: Sequence[Line],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    fractions: bool = True,
    x_name: str = "round",
) -> str:
    """Draw lines over rounds.

    Args:
        lines: what to draw; short names, for they stand at the lines' right ends.
        label: what the chart shows, for screen readers.
        marks: vertical marks (x, name): the ends of tasks.
        fractions: the values are fractions, drawn on 0..100 %; otherwise the axis follows the values.
        x_name: what the horizontal axis counts.
    """
    values = [y for line in lines for _, y in line.points if y is not None]
    right = max((x for line in lines for x, _ in line.points), default=1)
    margin = max(44, 12 + 8 * max((len(short(line.name)) for line in lines), default=0))
    top = 1.0 if fractions else ticks(max(values, default=1.0))[-1]
    frame = Frame(right=max(right, 1), top=top, width=WIDTH - 46 - margin)
    root = canvas(label, frame.above + frame.height + 42)
    _axes(root, frame, fractions, x_name)
    _marks(root, frame, marks)
    _draw(root, frame, lines)
    return written(root)


def _cell(root: ET.Element, x: float, y: float, w: float, h: float, value: float | None, mark: bool) -> ET.Element:
    """Draw one cell; the deeper the value, the more of the heat colour (the page's CSS) covers the ground."""
    box: dict[str, Any] = {
        "x": x + 1,
        "y": y + 1,
        "width": max(w - 2, 0.5),
        "height": max(h - 2, 0.5),
        "rx": 3 if w > 12 else 0,
    }
    edge = " just" if mark else ""
    if value is None:
        return node(root, "rect", class_=f"cell unknown{edge}", **box)
    return node(root, "rect", class_=f"cell{edge}", fill_opacity=0.04 + 0.96 * min(max(value, 0.0), 1.0), **box)


def heat_map(matrix: Sequence[Sequence[float | None]], ended: Sequence[int], tasks: Sequence[int], label: str) -> str:
    """Draw an accuracy matrix of fractions, None drawn as unknown; where a row's task is the column's it is outlined.

    Args:
        matrix: (rows, columns) accuracies.
        ended: the task whose end each row is.
        tasks: the task of each column.
        label: what the chart shows, for screen readers.
    """
    width = min((WIDTH - 88) / len(tasks), 72.0)
    height = min(width, 42.0)
    root = canvas(label, 26 + height * len(ended) + 4, 88 + width * len(tasks) + 2)
    for j in range(0, len(tasks), math.ceil(len(tasks) / MOST_VALUES)):
        node(root, "text", f"T{tasks[j]}", class_="axis", x=88 + width * (j + 0.5), y=17, text_anchor="middle")
    for i, values in enumerate(matrix):
        y = 26 + height * i
        if i % math.ceil(len(ended) / MOST_VALUES) == 0:
            node(root, "text", f"after T{ended[i]}", class_="axis", x=80, y=y + height / 2 + 4, text_anchor="end")
        for j, value in enumerate(values):
            cell = _cell(root, 88 + width * j, y, width, height, value, ended[i] == tasks[j])
            if len(tasks) <= MOST_TITLES:
                node(cell, "title", f"task {tasks[j]} after task {ended[i]}: {percent(value)}")
            if len(tasks) <= MOST_VALUES and value is not None:
                _value(root, 88 + width * (j + 0.5), y + height / 2 + 4, value, len(tasks) <= 6)
    return written(root)


def _value(root: ET.Element, x: float, y: float, value: float, exact: bool) -> None:
    style = "value high" if value >= HIGH else "value"
    text = f"{100 * value:.1f}" if exact else f"{100 * value:.0f}"
    node(root, "text", text, class_=style, x=x, y=y, text_anchor="middle")


def ranking(values: dict[str, float], mean: float, label: str) -> str:
    """Draw the clients' figures in ascending order, the worst tenth and the mean marked.

    Args:
        values: fraction of each client by its name.
        mean: their mean.
        label: what the chart shows, for screen readers.
    """
    order = sorted(values.items(), key=lambda item: item[1])
    frame = Frame(right=len(order), top=1.0, above=12, width=WIDTH - 46 - 52)
    root = canvas(label, frame.above + frame.height + 26)
    for value in ticks(1.0):
        y = frame.y(value)
        node(root, "line", class_="grid", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y)
        node(root, "text", f"{100 * value:.0f}%", class_="axis", x=frame.left - 7, y=y + 4, text_anchor="end")
    tenth, bottom = math.ceil(len(order) / 10), frame.above + frame.height
    if len(order) <= MOST_BARS:
        _bars(root, frame, order, tenth)
    else:
        _area(root, frame, [value for _, value in order[:tenth]], 0, "area worst")
        _area(root, frame, [value for _, value in order[tenth - 1 :]], tenth - 1, "area")
    y = frame.y(mean)
    node(root, "line", class_="mean", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y)
    for below, words in ((-2, "mean"), (13, percent(mean))):
        node(root, "text", words, class_="name", x=frame.left + frame.width + 6, y=y + below)
    caption = f"{count(len(order))} clients, worst to best"
    node(root, "text", caption, class_="axis", x=frame.left + frame.width / 2, y=bottom + 18, text_anchor="middle")
    return written(root)


def _bars(root: ET.Element, frame: Frame, order: Sequence[tuple[str, float]], tenth: int) -> None:
    step = min(frame.width / len(order), 56.0)
    left = frame.left + (frame.width - step * len(order)) / 2
    for i, (name, value) in enumerate(order):
        box: dict[str, Any] = {
            "x": left + step * (i + 0.1),
            "width": step * 0.8,
            "y": frame.y(value),
            "rx": 2 if step > 8 else 0,
        }
        style = "bar worst" if i < tenth else "bar"
        bar = node(root, "rect", class_=style, height=frame.above + frame.height - frame.y(value), **box)
        node(bar, "title", f"client {name}: {100 * value:.1f}%")


def _area(root: ET.Element, frame: Frame, values: Sequence[float], first: int, style: str) -> None:
    line = Line("", [(first + i, value) for i, value in enumerate(values)])
    bottom = frame.above + frame.height
    path = _path(line, frame).replace("M", "L", 1)
    last = frame.x(first + len(values) - 1)
    node(root, "path", class_=style, d=f"M{frame.x(first):.1f} {bottom:.1f}{path}L{last:.1f} {bottom:.1f}Z")
