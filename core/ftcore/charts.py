"""Charts as SVG for pages, drawn once: no script. What is told by colour is also told by dashes.

Colours and fonts are the page's, by the classes of the elements: ``grid``, ``tick``, ``axis``, ``name``, ``row``,
``line``, ``dot``, ``mark``, ``bar``, ``even``, ``disc``, ``cell``, ``box``; of lines and dots also ``c1`` to ``c6``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import frozen
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


WIDTH, HEIGHT = 380, 220

LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 30

POINTS = 300
"""Of a curve, at most."""

DOTS = 40
"""Points of a curve up to which each is shown, with its numbers when a pointer rests on it."""


@frozen
class Line:
    """A curve.

    Attributes:
        name: in the legend.
        points: (x, y) in rising x; there is a gap where y is None.
        colour: number of the page's colour, 1 to 6.
        dashed: whether it is dashed.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 1
    dashed: bool = False


@frozen
class Bar:
    """A bar.

    Attributes:
        low: where it begins on the horizontal axis.
        high: where it ends.
        height: its value; >= 0.
        text: what it means, shown when a pointer rests on it.
        shade: from 0, not to be seen, to 1.
    """

    low: float
    high: float
    height: float
    text: str
    shade: float = 0.6


@frozen
class Interval:
    """A value with what it may as well be.

    Attributes:
        name: at the left; of a long one, the end.
        value: from `low` to `high`.
        low: lower end of its interval.
        high: upper end.
    """

    name: str
    value: float
    low: float
    high: float


@frozen
class Axis:
    """One axis of a chart.

    Attributes:
        low: value at its start.
        high: value at its end; > low.
        label: what it shows.
        log: whether it is logarithmic; then `low` > 0.
    """

    low: float
    high: float
    label: str
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value is, from 0 to 1."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the axis."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**decade for decade in decades][:: max(1, len(decades) // most)]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough * 0.75)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis_for(values: Iterable[float | None], label: str, *, log: bool = False, whole: bool = False) -> Axis:
    """Return an axis on which all values have room.

    Args:
        values: what is drawn; None is left out.
        label: of the axis.
        log: logarithmic, if all values are > 0 and more than a hundredfold apart.
        whole: from the first value to the last, without room beside them.
    """
    there = [value for value in values if value is not None] or [0.0, 1.0]
    low, high = min(there), max(there)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return Axis(low - room, high + room, label)
    if log and low > 0 and high / low > 100:
        return Axis(low / 1.2, high * 1.2, label, log=True)
    room = 0.0 if whole else (high - low) * 0.06
    below = min(0.0, low) if 0 <= low < (high - low) * 0.2 else low - room
    return Axis(low if whole else below, high + room, label)


def number(value: float | None) -> str:
    """Spell a number in a few digits: as short as it is told apart, never in the way of a reader."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    text = f"{value:.4g}" if abs(value) >= 1e-4 or not value else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _svg(label: str, inside: str, height: int = HEIGHT, width: int = WIDTH) -> Markup:
    """Put a drawing, which is SVG already, into an image with a description; the description is escaped here."""
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{inside}</svg>")


def _frame(x: Axis, y: Axis) -> str:
    """Draw grid lines, ticks and labels."""
    bottom, right, parts = HEIGHT - BOTTOM, WIDTH - RIGHT, []
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x.ticks():
        at = _x(x, value)
        parts.append(f'<path class="tick" d="M{at:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 2}" text-anchor="end" class="name">{escape(x.label)}</text>')
    return "".join(parts)


def lines(label: str, curves: Sequence[Line], x: Axis, y: Axis, marks: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draw curves, and upright marks at some x with what they mean."""
    parts = [_frame(x, y)]
    for at, text in marks:
        parts.append(
            f'<path class="mark" d="M{_x(x, at):.1f} {TOP}V{HEIGHT - BOTTOM}"><title>{escape(text)}</title></path>'
        )
    parts += [_curve(curve, x, y) for curve in curves]
    return _svg(label, "".join(parts))


def subsample(points: Sequence[Any], most: int = POINTS) -> list[Any]:
    """Return at most so many points, evenly chosen, and the last."""
    step = -(-len(points) // most) or 1
    kept = list(points[::step])
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


def _curve(curve: Line, x: Axis, y: Axis) -> str:
    points = subsample(curve.points)
    path, broken = [], True
    for at, value in points:
        if value is not None:
            path.append(f"{'M' if broken else 'L'}{_x(x, at):.1f} {_y(y, value):.1f}")
        broken = value is None
    style = f'class="line c{curve.colour}{" dashed" if curve.dashed else ""}"'
    drawn = [f'<path {style} d="{"".join(path)}"/>']
    if len(points) <= DOTS:
        drawn += [
            f'<circle class="dot c{curve.colour}" cx="{_x(x, at):.1f}" cy="{_y(y, value):.1f}" r="2.6">'
            f"<title>{escape(curve.name)}, {escape(x.label)} {number(at)}: {number(value)}</title></circle>"
            for at, value in points
            if value is not None
        ]
    return "".join(drawn)


def bars(label: str, drawn: Sequence[Bar], x: Axis, y: Axis, *, even: bool = False) -> Markup:
    """Draw bars side by side; if asked to, over them the line where both axes are equal."""
    parts = [_frame(x, y)]
    for bar in drawn:
        left, right, top = _x(x, bar.low) + 0.5, _x(x, bar.high) - 0.5, _y(y, bar.height)
        box = f'x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.5):.1f}" height="{_y(y, 0.0) - top:.1f}"'
        parts.append(f'<rect class="bar" fill-opacity="{bar.shade:.2f}" {box}><title>{escape(bar.text)}</title></rect>')
    return _svg(label, "".join([*parts, _even(x, y)] if even else parts))


def _even(x: Axis, y: Axis) -> str:
    return f'<path class="even" d="M{_x(x, x.low)} {_y(y, y.low)}L{_x(x, x.high)} {_y(y, y.high)}"/>'


def scatter(label: str, cells: Sequence[tuple[float, float, int]], axis: Axis, x_label: str, y_label: str) -> Markup:
    """Draw counts (x, y, images) as discs, over the line where both are equal."""
    x, y = (Axis(axis.low, axis.high, text) for text in (x_label, y_label))
    most = max([images for *_, images in cells] or [1])
    sizes: dict[int, list[str]] = {}
    for at, value, n in cells:
        sizes.setdefault(round(6 * (n / most) ** 0.5), []).append(f"M{_x(x, at):.1f} {_y(y, value):.1f}h0")
    discs = [f'<path class="disc" stroke-width="{3 + size}" d="{"".join(dots)}"/>' for size, dots in sizes.items()]
    return _svg(label, _frame(x, y) + _even(x, y) + "".join(discs))


SHADES = 8


def matrix(label: str, pairs: Sequence[tuple[int, int, int]], true: Sequence[int]) -> Markup:
    """Draw a confusion matrix of many classes: a square for each pair (true, predicted, images), darker for more.

    The shade is the share of the row, whose sums are `true`.
    """
    size, side = len(true), WIDTH - 2
    paths: dict[int, list[str]] = {}
    for row, column, images in pairs:
        shade = max(1, math.ceil(SHADES * images / true[row]))
        paths.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
    drawn = "".join(
        f'<path class="cell" fill-opacity="{shade / SHADES:g}" d="{"".join(path)}"/>' for shade, path in paths.items()
    )
    scale = side / size
    box = f'<rect class="box" x="1" y="1" width="{side}" height="{side}"/>'
    return _svg(label, f'{box}<g transform="translate(1 1) scale({scale:.4f})">{drawn}</g>', WIDTH)


NAMES, ACROSS, ROW = 260, 440, 34
"""Of a chart of intervals: the width of the names at its left and of the axis beside them, and the height of a row."""

NAME_CHARS = 34
"""Of a name, at most."""


def intervals(label: str, drawn: Sequence[Interval], axis: Axis) -> Markup:
    """Draw values with their intervals one below the other, and an upright mark at the first."""
    bottom = ROW * len(drawn)

    def at(value: float) -> str:
        return f"{NAMES + axis.place(value) * ACROSS:.1f}"

    parts = [
        f'<path class="grid" d="M{at(tick)} 0V{bottom}"/>'
        f'<text x="{at(tick)}" y="{bottom + 20}" text-anchor="middle">{number(tick)}</text>'
        for tick in axis.ticks()
    ]
    parts += [f'<path class="mark" d="M{at(each.value)} 0V{bottom}"/>' for each in drawn[:1]]
    for place, each in enumerate(drawn):
        y = ROW * (place + 0.5)
        name = each.name if len(each.name) <= NAME_CHARS else f"…{each.name[1 - NAME_CHARS :]}"
        text = f"{each.name}: {number(each.value)}, {number(each.low)} to {number(each.high)}"
        parts.append(f'<text x="0" y="{y + 4:g}" class="row">{escape(name)}</text>')
        parts.append(f'<path class="line c1" d="M{at(each.low)} {y:g}H{at(each.high)}"/>')
        parts.append(
            f'<circle class="dot c1" cx="{at(each.value)}" cy="{y:g}" r="5"><title>{escape(text)}</title></circle>'
        )
    return _svg(label, "".join(parts), bottom + 28, NAMES + ACROSS + 20)
