"""What charts are drawn with: inline SVG as an element tree, whose writer escapes every text; looks are `style`'s.

A chart is drawn `WIDTH` units wide, so that its letters stay readable on a telephone and it can grow on a wide screen.
Colour is never the only sign: lines are named at their ends and dashed in turn, cells carry their number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

WIDTH = 420
GROWTH = 1.3  # on a wide screen
MOST_LETTERS = 14  # of a name at a line's end; its title has the whole name
LETTER = 8  # units that a letter takes at most

Drawing = ET.Element
Points = list[tuple[float, float | None]]


def node(parent: Drawing, tag: str, text: str = "", **attributes: Any) -> Drawing:
    """Append an element; attribute names lose a trailing "_" and turn "_" to "-", floats are written short."""
    plain = {
        k.rstrip("_").replace("_", "-"): f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in attributes.items()
    }
    child = ET.SubElement(parent, tag, plain)
    child.text = text or None
    return child


def canvas(label: str, height: float, width: float = WIDTH) -> Drawing:
    """Start a chart that says what it is to those who cannot see it."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width * GROWTH:.0f}"}
    return ET.Element("svg", {**size, "role": "img", "aria-label": label})


def written(root: Drawing) -> str:
    """Return the chart as markup that can stand in a page."""
    return ET.tostring(root, encoding="unicode")


def ticks(top: float, wanted: int = 4, low: float = 0.0) -> list[float]:
    """Return round numbers that cover [low, top], about `wanted` steps."""
    if not top > low:
        return [low, low + 1.0]
    rough = (top - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(top / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


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


def short(name: str) -> str:
    """Return a name that has room beside a chart."""
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


@dataclass(frozen=True)
class Frame:
    """The plotting area: maps x in [start, right] and y in [low, top] to units of the drawing."""

    right: float
    top: float
    left: float = 46
    width: float = WIDTH - 46 - 44
    height: float = 190
    above: float = 24
    start: float = 0.0
    low: float = 0.0

    @property
    def end(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.above + self.height

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.width * (value - self.start) / ((self.right - self.start) or 1)

    def y(self, value: float) -> float:
        """Return the vertical place of a value; those outside lie on the edge."""
        part = (value - self.low) / ((self.top - self.low) or 1)
        return self.above + self.height * (1 - min(max(part, 0.0), 1.0))


def rows(root: Drawing, frame: Frame, fractions: bool = True) -> None:
    """Draw the lines across, with their values at the left."""
    for value in ticks(frame.top, low=frame.low):
        y = frame.y(value)
        node(root, "line", class_="grid", x1=frame.left, x2=frame.end, y1=y, y2=y)
        text = f"{100 * value:.3g}%" if fractions else f"{value:.4g}"
        node(root, "text", text, class_="axis", x=frame.left - 7, y=y + 4, text_anchor="end")


def columns(root: Drawing, frame: Frame, x_name: str, values: Sequence[float] | None = None) -> None:
    """Write the values below (None: round ones), and what they count."""
    for value in ticks(frame.right, 5, frame.start) if values is None else values:
        if frame.start <= value <= frame.right:
            place = frame.x(value)
            node(root, "text", f"{value:g}", class_="axis", x=place, y=frame.bottom + 17, text_anchor="middle")
    middle = frame.left + frame.width / 2
    node(root, "text", x_name, class_="axis", x=middle, y=frame.bottom + 36, text_anchor="middle")
