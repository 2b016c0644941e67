"""Curves for people: as characters on a stream, and as a PNG. Imports plotext and matplotlib where they draw.

What is drawn into pages is in `ftcore.charts`.
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


WIDTH, HEIGHT = 70, 15
"""Characters of a plot on a stream."""

_MOST = 1000
"""Points of a curve that are drawn with characters, of which there are at most two a column."""

_LETTERS = "abcdefgh"
"""Of the curves in one drawing; more could not be told apart."""

_FRAME = str.maketrans("┌┐└┘├┤┬┴┼─│", "+++++++++-|")


@frozen
class Series:
    """A curve.

    Attributes:
        name: in the legend.
        x: in rising order; > 0 where the axis is logarithmic.
        y: as many; what is not finite is left out.
        faint: drawn thin behind the others, as far as the axis, which is theirs, reaches; with characters not at all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@frozen
class Marker:
    """A point on a curve, shown as the first letter of its name."""

    name: str
    x: float
    y: float


@frozen
class Plot:
    """Curves over one axis.

    Attributes:
        title: above.
        x_label: below.
        y_label: at the left.
        lines: curves.
        marks: points on them.
        log_x: whether the horizontal axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Series, ...]
    marks: tuple[Marker, ...] = ()
    log_x: bool = False


def render_text(plot: Plot, *, colour: bool = False) -> str:
    """Draw a plot of 70 x 15 characters, and its legend below; one curve in dots, several in letters."""
    import plotext  # type: ignore[import-untyped]

    lines = [line for line in plot.lines if not line.faint]
    chosen = lines[:: math.ceil(len(lines) / len(_LETTERS))]
    names = dict(zip(_LETTERS, chosen, strict=False)) if len(lines) > 1 else {"braille": lines[0]}
    figure = _empty_figure(plotext, plot)
    for marker, line in names.items():
        x, y = _points(line, log_x=plot.log_x)
        figure.draw(figure.signal(x, y, marker=marker).lines())
    for mark in plot.marks:
        figure.draw(figure.signal([_axis_value(mark.x, log_x=plot.log_x)], [mark.y], marker=mark.name[0]))
    legend = [f"{letter}: {line.name}" for letter, line in names.items() if len(lines) > 1]
    legend += [f"{mark.name[0]}: {mark.name}" for mark in plot.marks]
    if len(lines) > len(names):
        legend.append(f"and {len(lines) - len(names)} more, not drawn")
    drawn = str(figure.build().string(not colour))
    figure.clear()
    text = "\n".join([drawn, *legend])
    return "\n".join(row.rstrip() for row in text.splitlines())


def _empty_figure(plotext: Any, plot: Plot) -> Any:
    """Return plotext's one figure, cleared, with its size, labels and ticks."""
    plotext.terminal.limit(False, False)  # noqa: FBT003 - plotext's own signature
    figure = plotext.figure
    figure.clear()
    figure.plot_size(WIDTH, HEIGHT)
    figure.theme("simple")
    figure.title(plot.title)
    figure.label(plot.x_label, "x")
    figure.label(plot.y_label, "y")
    ticks, texts = _ticks([x for line in plot.lines for x in line.x], log_x=plot.log_x)
    if ticks:
        figure.ruler("x").ticks(ticks, texts)
    heights = {y for line in plot.lines if not line.faint for y in line.y}
    if len(heights) == 1:  # plotext would take an axis from -1 to 1
        figure.ruler("y").lim(*sorted((0.0, 2 * heights.pop())))
    return figure


def _ticks(values: Sequence[float], *, log_x: bool) -> tuple[list[float], list[str]]:
    """Return places of ticks and their texts: powers of ten, or up to nine whole numbers; none for a short axis."""
    low, high = min(values), max(values)
    if log_x:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [float(decade) for decade in decades], [f"1e{decade}" for decade in decades]
    integers = range(math.ceil(low), math.floor(high) + 1, max(1, math.ceil((high - low) / 8)))
    return ([float(x) for x in integers], [f"{x:,}" for x in integers]) if high - low >= 2 else ([], [])


def _points(line: Series, *, log_x: bool) -> tuple[list[float], list[float]]:
    """Return what is drawn of a curve: its finite points, evenly thinned out where there are many, and the last."""
    pairs = [(_axis_value(x, log_x=log_x), y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    kept = pairs[:: math.ceil(len(pairs) / _MOST)] if pairs else []
    kept += pairs[-1:]
    return [x for x, _ in kept], [y for _, y in kept]


def _axis_value(x: float, *, log_x: bool) -> float:
    return math.log10(x) if log_x else x


def to_encoding(text: str, encoding: str) -> str:
    """Return a plot in characters that an encoding has: where it lacks one, all of it in ASCII."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", "*", text.translate(_FRAME))
    return text


def check_png(path: Path) -> None:
    """Refuse, before anything is computed for it, a PNG that cannot be drawn, and a path where no file can be.

    Raises:
        UserError: matplotlib is not installed, the folder of the path is not there, or it is a folder.
    """
    _check_matplotlib(path)
    if not path.parent.is_dir():
        raise UserError(f"--png {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise UserError(f"--png {path} is a folder; name a file in it, e.g. {path / 'lr.png'}")


def _check_matplotlib(path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise UserError(f"--png {path}: a PNG needs matplotlib: pip install 'ftcore[plot]'")


def save_png(plot: Plot, path: Path) -> None:
    """Draw a plot to a PNG of 1200 x 750 pixels.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    _check_matplotlib(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    for line in plot.lines:
        axes.plot(line.x, line.y, label=line.name, linewidth=0.8 if line.faint else 2, alpha=0.5 if line.faint else 1)
    solid = [y for line in plot.lines if not line.faint for y in line.y if math.isfinite(y)]
    pad = (max(solid) - min(solid)) / 2
    if pad and any(line.faint for line in plot.lines):
        axes.set_ylim(min(solid) - pad, max(solid) + pad)
    for mark in plot.marks:
        axes.plot([mark.x], [mark.y], "o", label=f"{mark.name}: {mark.x:.3g}")
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, xscale="log" if plot.log_x else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"--png {path}: {error.strerror or error}") from None
