"""Curves over epochs and over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from ftcore.charts import Axis, Line, axis_for, lines, number, subsample

from .tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from markupsafe import Markup

    from .record import Record

    Epochs = Sequence[Mapping[str, Any]]


CHARTS = 12
"""Metrics and terms of the loss that are drawn, at most."""

GROUPS = 6
"""Learning rates that are drawn, at most."""

ROWS = 300
"""Rows of a table."""


@frozen
class Figure:
    """A chart with its title.

    Attributes:
        title: above.
        drawing: the chart.
        legend: its curves, where there are several.
        remark: a sentence below, or empty.
        table: its numbers, where no table beside it has them.
    """

    title: str
    drawing: Markup
    legend: tuple[Line, ...] = ()
    remark: str = ""
    table: Table | None = None


def epoch_figures(epochs: Epochs, monitor: str, best: int | None) -> list[Figure]:
    """Draw the loss, each metric that is a single number, and each term in addition to the loss."""
    if not epochs:
        return []
    marks = [(float(best), f"best {monitor}, epoch {best}")] if best else []
    train = Line("training", _series(epochs, "train", "loss"), colour=2, dashed=True)
    val = Line("validation", _series(epochs, "val", "loss"), colour=1)
    names = [name for name in epochs[-1]["val"] if name not in {"loss", "thresholds"}]
    names.sort(key=lambda name: name != monitor)
    terms = [name for name in epochs[-1]["train"] if name != "loss"]
    drawn = [_over_epochs("loss", (val, train), marks)]
    drawn += [_over_epochs(name, (Line("validation", _series(epochs, "val", name)),), marks) for name in names[:CHARTS]]
    drawn += [
        _over_epochs(
            f"{name}, in addition to the loss", (Line("training", _series(epochs, "train", name), 2, dashed=True),), []
        )
        for name in terms[:CHARTS]
    ]
    return drawn


def _series(epochs: Epochs, split: str, name: str) -> list[tuple[float, float | None]]:
    return [(float(epoch["epoch"]), epoch[split].get(name)) for epoch in epochs]


def _over_epochs(title: str, curves: tuple[Line, ...], marks: Sequence[tuple[float, str]]) -> Figure:
    points = [point for curve in curves for point in curve.points]
    x, y = _whole(points), axis_for([value for _, value in points], title)
    last = ", ".join(f"{curve.name} {number(curve.points[-1][1])}" for curve in curves)
    label = f"{title} by epoch, at the end {last}"
    return Figure(title, lines(label, curves, x, y, marks), curves if len(curves) > 1 else ())


def _whole(points: Sequence[tuple[float, float | None]]) -> Axis:
    """Return the axis of the epochs; where there is one, it stands in the middle."""
    first, last = points[0][0], max(at for at, _ in points)
    return Axis(first, last, "epoch") if last > first else Axis(first - 1, first + 1, "epoch")


def epoch_table(epochs: Epochs) -> Table:
    """Return the numbers of every epoch, or of some of very many."""
    if not epochs:
        return Table("Epochs", ("epoch",), ())
    train, val = list(epochs[-1]["train"]), [name for name in epochs[-1]["val"] if name != "thresholds"]
    columns = ("epoch", *(f"train {name}" for name in train), *(f"val {name}" for name in val), "seconds", "images/s")
    rows = [
        (
            str(epoch["epoch"]),
            *(_five(epoch["train"].get(name)) for name in train),
            *(_five(epoch["val"].get(name)) for name in val),
            f"{epoch['seconds']:.1f}",
            f"{epoch['samples_per_second']:.0f}",
        )
        for epoch in subsample(epochs, ROWS)
    ]
    note = f"{len(rows)} of {len(epochs):,} epochs shown; metrics.jsonl has all." if len(rows) < len(epochs) else ""
    return Table("Epochs", columns, tuple(rows), note, label_columns=0)


def _five(value: float | None) -> str:
    return f"{value:.5f}" if value is not None and (value == 0 or 1e-3 <= abs(value) < 1e3) else number(value)


def step_figures(record: Record) -> list[Figure]:
    """Draw the learning rate of each group, and the norm of the gradient."""
    steps = record.steps
    if not steps:
        return []
    x = Axis(0.0, float(steps[-1][0]), "step")
    rates = _rates(record)
    shown = rates if len(rates) <= GROUPS else [rates[i * (len(rates) - 1) // (GROUPS - 1)] for i in range(GROUPS)]
    remark = f"{len(shown)} of {len(rates)} different rates." if len(shown) < len(rates) else ""
    curves = tuple(Line(name, points, place, dashed=place % 2 == 0) for place, (name, points) in enumerate(shown, 1))
    highest = axis_for([value for curve in curves for _, value in curve.points], "learning rate")
    label = f"learning rate by step: {', '.join(f'{c.name} ends at {number(c.points[-1][1])}' for c in curves)}"
    figures = [Figure("learning rate", lines(label, curves, x, highest), curves, remark)]
    norms = [(float(step[0]), step[3]) for step in steps]
    if any(norm is not None for _, norm in norms):
        y = axis_for([norm for _, norm in norms], "norm of the gradient", log=True)
        label = f"norm of the gradient by step, at the end {number(norms[-1][1])}"
        title = "gradient norm before clipping"
        figures.append(Figure(title, lines(label, (Line("norm", norms, 3),), x, y)))
    return figures


def _rates(record: Record) -> list[tuple[str, list[tuple[float, float | None]]]]:
    """Return the learning rates that differ, each with the names of its groups."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for place, name in enumerate(record.groups):
        groups.setdefault(tuple(step[2][place] for step in record.steps), []).append(name)
    at = [float(step[0]) for step in record.steps]
    return [
        (_names(names), list(zip(at, rates, strict=True)))
        for rates, names in sorted(groups.items(), key=lambda item: -max(item[0]))
    ]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def step_table(record: Record) -> Table:
    """Return the numbers of logged steps, or of some of many."""
    rates = _rates(record) if record.steps else []
    columns = ("step", "loss", *(f"lr {name}" for name, _ in rates[:GROUPS]), "norm of the gradient")
    rows = [
        (f"{step[0]:,}", number(step[1]), *(number(points[place][1]) for _, points in rates[:GROUPS]), number(step[3]))
        for place, step in subsample(list(enumerate(record.steps)), ROWS // 2)
    ]
    return Table(
        "Logged steps", columns, tuple(rows), "A sample at even intervals; log.jsonl has all.", label_columns=0
    )
