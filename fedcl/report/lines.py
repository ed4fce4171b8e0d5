"""Lines over rounds, time or bytes: accuracies, losses, means over seeds in bands from the lowest to the highest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedcl.report import style
from fedcl.report.svg import LETTER, WIDTH, Drawing, Frame, Points, apart, canvas, columns, node, rows, short, ticks

MOST_POINTS = 1200  # of all lines of a chart together
REST = -1  # the colour of a line that is there for comparison only: thin, and named by its title alone


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: short; it stands at the line's end.
        points: unknown values break the line.
        colour: a fixed one, REST, or None: by its place among the lines.
        low: with `high`, the lower edge of a band around the line.
        high: its upper edge, over the same x.
    """

    name: str
    points: Points
    colour: int | None = None
    low: Points | None = None
    high: Points | None = None


@dataclass(frozen=True)
class Window:
    """A part of a chart, looked at closely."""

    start: float
    right: float
    low: float
    top: float


Name = tuple[float, float, str, str]  # at a line's end: x, y, what it says, its class


def thinned(points: Points, most: int) -> Points:
    """Return at most about `most` of the points, evenly taken, the last one among them."""
    stride = max(1, math.ceil(len(points) / max(most, 2)))
    return [point for i, point in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def path(points: Points, frame: Frame) -> str:
    """Return the way through points; unknown ones lift the pen."""
    words, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen = "L"
    return "".join(words)


def _marks(root: Drawing, frame: Frame, marks: Sequence[tuple[float, str]]) -> None:
    """Draw the ends of tasks; a name that would touch the one before it is left out, its line stays."""
    free, inside = -math.inf, [(frame.x(x), name) for x, name in marks if frame.start <= x <= frame.right]
    if inside:
        high = frame.height + 6
        node(root, "path", class_="mark", d="".join(f"M{x:.1f} {frame.above - 6:g}v{high:g}" for x, _ in inside))
    for place, name in inside:
        if place > free:
            node(root, "text", name, class_="mark-name", x=place, y=frame.above - 11, text_anchor="middle")
            free = place + LETTER * len(name) + 4


def _looks(place: int, line: Line, ramped: bool, n: int) -> tuple[dict[str, str], str]:
    """Return a line's attributes and the class of its name."""
    if ramped:
        return {"class_": "line", "stroke": style.ramp(place / (n - 1))}, "name"
    if line.colour == REST:
        return {"class_": "line rest"}, ""
    colour = f"c{(place if line.colour is None else line.colour) % style.NAMED}"
    return {"class_": f"line {colour}"}, f"name {colour}"


def _draw(root: Drawing, frame: Frame, lines: Sequence[Line], most: int) -> None:
    """Draw the lines, then their names; of a ramp of many lines only the first and the last are named."""
    ramped = len(lines) > style.NAMED and all(line.colour is None for line in lines)
    names: list[Name] = []
    for i, line in enumerate(lines):
        looks, named = _looks(i, line, ramped, len(lines))
        if line.low and line.high:
            _band(root, frame, line.low, line.high, looks["class_"].replace("line", "band"), most)
        inside = [point for point in line.points if frame.start <= point[0] <= frame.right]
        node(node(root, "path", d=path(thinned(inside, most), frame), **looks), "title", line.name)
        known = [(x, y) for x, y in inside if y is not None]
        if known and named and (not ramped or i in (0, len(lines) - 1)):
            x, y = known[-1]
            names.append((frame.x(x) + 6, frame.y(y), short(line.name), named))
    for beside in _beside(names):
        places = apart([y for _, y, *_ in beside], 13, frame.above, frame.bottom - 5)
        for (x, _, name, named), y in zip(beside, places, strict=True):
            node(root, "text", name, class_=named, x=x, y=y + 4)


def _beside(names: Sequence[Name]) -> list[list[Name]]:
    """Return names in groups: those of one group could overlap, those of different groups cannot."""
    groups: list[list[Name]] = []
    end = -math.inf
    for each in sorted(names):
        if each[0] > end:
            groups.append([])
        groups[-1].append(each)
        end = max(end, each[0] + LETTER * len(each[2]))
    return groups


def _band(root: Drawing, frame: Frame, low: Points, high: Points, looks: str, most: int) -> None:
    there, back = path(thinned(low, most), frame), path(thinned(high, most)[::-1], frame)
    node(root, "path", class_=looks, d=f"{there}{back.replace('M', 'L', 1)}Z")


def line_chart(
    lines: Sequence[Line],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    fractions: bool = True,
    x_name: str = "round",
    window: Window | None = None,
    most: int = MOST_POINTS,
) -> Drawing:
    """Draw lines over rounds.

    Args:
        lines: what to draw.
        label: what the chart shows, for screen readers.
        marks: vertical marks (x, name): the ends of tasks.
        fractions: the values are fractions, drawn on 0..100 %; otherwise the axis follows the values.
        x_name: what the horizontal axis counts.
        window: the part that is shown; None: all.
        most: points of all lines together; of more they are taken evenly.
    """
    values = [y for line in lines for _, y in line.points if y is not None]
    right = max((x for line in lines for x, _ in line.points), default=1)
    named = [line for line in lines if line.colour != REST]
    margin = max(44, 12 + LETTER * max((len(short(line.name)) for line in named), default=0))
    top = 1.0 if fractions else ticks(max(values, default=1.0))[-1]
    shown = window or Window(0.0, right if right > 0 else 1.0, 0.0, top)
    frame = Frame(shown.right, shown.top, width=WIDTH - 46 - margin, start=shown.start, low=shown.low)
    root = canvas(label, frame.bottom + 42)
    rows(root, frame, fractions)
    columns(root, frame, x_name)
    _marks(root, frame, marks)
    _draw(root, frame, lines, max(most // max(len(lines), 1), 8))
    return root
