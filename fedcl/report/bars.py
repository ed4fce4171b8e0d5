"""Figures of many side by side: every client's accuracy, and a figure over seeds with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcl.report import style
from fedcl.report.lines import path, thinned
from fedcl.report.svg import LETTER, WIDTH, Drawing, Frame, Points, canvas, columns, node, rows, short, ticks
from fedcl.report.text import count, percent, points
from fedcl.statistics import Spread

MOST_BARS = 60
MOST_POINTS = 600
ROW = 26.0  # units of a row of intervals


def ranking(values: Mapping[str, float], mean: float, label: str) -> Drawing:
    """Draw the clients' figures in ascending order, the worst tenth and the mean marked.

    Args:
        values: fraction of each client by its name.
        mean: their mean.
        label: what the chart shows, for screen readers.
    """
    order = sorted(values.items(), key=lambda item: item[1])
    frame = Frame(right=len(order), top=1.0, above=12, width=WIDTH - 46 - 52)
    root = canvas(label, frame.bottom + 26)
    rows(root, frame)
    tenth = math.ceil(len(order) / 10)
    if len(order) <= MOST_BARS:
        _bars(root, frame, order, tenth)
    else:
        _area(root, frame, [value for _, value in order[:tenth]], 0, "area worst")
        _area(root, frame, [value for _, value in order[tenth - 1 :]], tenth - 1, "area")
    y = frame.y(mean)
    node(root, "line", class_="mean", x1=frame.left, x2=frame.end, y1=y, y2=y)
    for below, words in ((-2, "mean"), (13, percent(mean))):
        node(root, "text", words, class_="name", x=frame.end + 6, y=y + below)
    caption = f"{count(len(order))} clients, worst to best"
    node(
        root, "text", caption, class_="axis", x=frame.left + frame.width / 2, y=frame.bottom + 18, text_anchor="middle"
    )
    return root


def _bars(root: Drawing, frame: Frame, order: Sequence[tuple[str, float]], tenth: int) -> None:
    step = min(frame.width / len(order), 56.0)
    left = frame.left + (frame.width - step * len(order)) / 2
    for i, (name, value) in enumerate(order):
        box: dict[str, Any] = {
            "x": left + step * (i + 0.1),
            "width": step * 0.8,
            "y": frame.y(value),
            "rx": 2 if step > 8 else 0,
        }
        looks = "bar worst" if i < tenth else "bar"
        bar = node(root, "rect", class_=looks, height=frame.bottom - frame.y(value), **box)
        node(bar, "title", f"client {name}: {100 * value:.1f}%")


def _area(root: Drawing, frame: Frame, values: Sequence[float], first: int, looks: str) -> None:
    line: Points = [(first + i, value) for i, value in enumerate(values)]
    way = path(thinned(line, MOST_POINTS), frame).replace("M", "L", 1)
    last = frame.x(first + len(values) - 1)
    node(root, "path", class_=looks, d=f"M{frame.x(first):.1f} {frame.bottom:.1f}{way}L{last:.1f} {frame.bottom:.1f}Z")


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds: its values and what they come to."""

    name: str
    values: Sequence[float]
    spread: Spread
    colour: int = 0


def intervals(estimates: Sequence[Estimate], label: str, differences: bool, x_name: str) -> Drawing:
    """Draw a row each: a ring a seed, a dot for the mean, a line for the interval where there is one.

    Args:
        estimates: what to draw, the first at the top.
        label: what the chart shows, for screen readers.
        differences: percentage points rather than per cent.
        x_name: what the horizontal axis counts.
    """
    known = [x for each in estimates for x in (*each.values, each.spread.low, each.spread.high) if x is not None]
    scale = ticks(100 * max(0.0, *known), 5, 100 * min(0.0, *known))
    left = 14.0 + LETTER * max(len(short(each.name)) for each in estimates)
    frame = Frame(scale[-1], 1.0, left, WIDTH - left - 76, ROW * len(estimates), 8, scale[0])
    root = canvas(label, frame.bottom + 42)
    for value in scale:
        x = frame.x(value)
        node(root, "line", class_="grid", x1=x, x2=x, y1=frame.above, y2=frame.bottom)
    columns(root, frame, x_name, scale)
    for i, each in enumerate(estimates):
        _estimate(root, frame, each, frame.above + ROW * (i + 0.5), points if differences else percent)
    return root


def _estimate(root: Drawing, frame: Frame, each: Estimate, y: float, words: Any) -> None:
    colour, found = f"c{each.colour % style.NAMED}", each.spread
    name = node(root, "text", short(each.name), class_=f"name {colour}", x=frame.left - 8, y=y + 4, text_anchor="end")
    told = "" if found.low is None else f", {words(found.low)} to {words(found.high)}"
    node(name, "title", f"{each.name}: {words(found.mean)}{told}")
    if found.low is not None and found.high is not None:
        ends = frame.x(100 * found.low), frame.x(100 * found.high)
        node(root, "line", class_=f"whisker {colour}", x1=ends[0], x2=ends[1], y1=y, y2=y)
        for x in ends:
            node(root, "line", class_=f"whisker {colour}", x1=x, x2=x, y1=y - 5, y2=y + 5)
    for value in each.values:
        node(root, "circle", class_=f"seed {colour}", cx=frame.x(100 * value), cy=y, r=3.5)
    node(root, "circle", class_=f"dot {colour}", cx=frame.x(100 * found.mean), cy=y, r=4.5)
    node(root, "text", words(found.mean), class_="name", x=frame.end + 8, y=y + 4)
