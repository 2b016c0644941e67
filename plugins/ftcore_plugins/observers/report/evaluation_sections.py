"""What the network gets right and wrong on the validation split, in one epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from ftcore.charts import Axis, Bar, Line, bars, lines, matrix, number, scatter

from . import scores
from .curves import Figure
from .tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from .record import Record
    from .scores import Bin, Scores, ThresholdPoint


ROWS = 500
"""Of the table of classes, those with the lowest F1."""

TABLE, DRAWN = 20, 100
"""Most classes of a confusion matrix that is a table with numbers; that is drawn."""

PAIRS = 30
"""Pairs of classes that are listed."""


@frozen
class Cell:
    """One cell of a confusion matrix: images, and their share of the row, from 0 to 1."""

    images: int
    share: float


@frozen
class Evaluation:
    """One evaluation, as it is shown.

    Attributes:
        epoch: whose.
        title: of the section.
        intro: a sentence.
        each: scores of each class or label, or None.
        each_note: below them.
        cells: confusion matrix, rows with their names, as a table with numbers.
        names: of its columns.
        figures: charts.
        tables: what else there is.
        confident: samples: most confident mistakes.
        worst: samples: highest loss.
        kind: of the task.
    """

    epoch: int
    title: str
    intro: str
    kind: str
    confident: Sequence[Mapping[str, Any]]
    worst: Sequence[Mapping[str, Any]]
    each: Sequence[Scores] = ()
    each_note: str = ""
    cells: Sequence[tuple[str, Sequence[Cell]]] = ()
    names: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def evaluations(record: Record, epochs: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """Return what is shown of the best epoch, and of the last where it is another."""
    best, last = record.best_evaluation, record.last_evaluation
    found = [_shown(best, "The best epoch", record, epochs)] if best else []
    if last and last["epoch"] != best.get("epoch"):
        found.append(_shown(last, "The last epoch", record, epochs))
    return found


def _shown(counts: Mapping[str, Any], title: str, record: Record, epochs: Sequence[Mapping[str, Any]]) -> Evaluation:
    make = {"classification": _classes, "multilabel": _labels, "regression": _numbers}[record.kind]
    metrics: Mapping[str, Any] = next((line["val"] for line in epochs if line["epoch"] == counts["epoch"]), {})
    shown = Evaluation(counts["epoch"], title, "", record.kind, counts["confident"], counts["worst"])
    return make(shown, counts, record, metrics)


def _each(shown: Evaluation, found: Sequence[Scores]) -> Evaluation:
    """Show the scores of each class: all in their order, or of very many those with the lowest F1."""
    if len(found) <= ROWS:
        return evolve(shown, each=found)
    lowest = sorted(found, key=lambda each: 2.0 if each.f1 is None else each.f1)[:ROWS]
    return evolve(shown, each=lowest, each_note=f"The {ROWS} of {len(found):,} with the lowest F1.")


def _classes(shown: Evaluation, counts: Mapping[str, Any], record: Record, metrics: Mapping[str, Any]) -> Evaluation:
    del metrics
    found, images, names = scores.per_class_scores(counts, record.names), sum(counts["true"]), record.names
    error = scores.calibration_error(counts)
    shown = evolve(
        _each(shown, found),
        intro=f"{sum(counts['hits']):,} of {images:,} images correct, accuracy {_four(sum(counts['hits']) / images)}; "
        f"mean F1 over classes {_four(scores.mean([each.f1 for each in found]))}.",
        figures=(_calibration(counts, error), *_matrix(counts, names)),
    )
    if len(names) > TABLE:
        return evolve(shown, tables=_confused(counts, names))
    rows = [[0] * len(names) for _ in names]
    for true, predicted, n in counts["pairs"]:
        rows[true][predicted] = n
    cells = [(name, [Cell(n, n / max(sum(row), 1)) for n in row]) for name, row in zip(names, rows, strict=True)]
    return evolve(shown, cells=cells, names=names)


def _calibration(counts: Mapping[str, Any], error: float | None) -> Figure:
    bins = scores.reliability(counts)
    rows = tuple(
        (f"{b.low:.2f} to {b.high:.2f}", f"{b.images:,}", _four(b.confidence), _four(b.accuracy))
        for b in bins
        if b.images
    )
    remark = (
        f"Expected calibration error {_four(error)}, over {len(bins)} bins (Guo et al. 2017). Bars show accuracy; a "
        f"bar below "
        "the diagonal means overconfidence. Paler bars have fewer images."
    )
    label = f"reliability diagram, expected calibration error {_four(error)}"
    table = Table("Calibration", ("confidence", "images", "mean confidence", "accuracy"), rows, label_columns=0)
    return Figure("calibration", _reliability(label, bins), remark=remark, table=table)


def _reliability(label: str, bins: Sequence[Bin]) -> Markup:
    """Draw the accuracy of each bin of confidence over the line where both are equal."""
    there = [found for found in bins if found.images]
    most = max([found.images for found in there] or [1])
    drawn = [
        Bar(
            found.low,
            found.high,
            found.accuracy or 0.0,
            f"{found.images:,} images, confidence {number(found.confidence)}, accuracy {number(found.accuracy)}",
            shade=0.2 + 0.7 * (found.images / most) ** 0.5,
        )
        for found in there
    ]
    return bars(label, drawn, Axis(0.0, 1.0, "confidence"), Axis(0.0, 1.0, "accuracy"), even=True)


def _matrix(counts: Mapping[str, Any], names: Sequence[str]) -> tuple[Figure, ...]:
    if not TABLE < len(names) <= DRAWN:
        return ()
    label = f"confusion matrix of {len(names)} classes; rows are true classes, columns are predicted classes"
    most = sorted(counts["pairs"], key=lambda pair: -pair[2])[:ROWS]
    rows = tuple((names[true], names[predicted], f"{n:,}") for true, predicted, n in most)
    table = Table(
        "Images by true and predicted class, most frequent first",
        ("true", "predicted", "images"),
        rows,
        label_columns=2,
    )
    remark = "Rows: true classes. Columns: predicted. Darker cells are a larger fraction of the row."
    return (Figure("confusion matrix", matrix(label, counts["pairs"], counts["true"]), remark=remark, table=table),)


def _confused(counts: Mapping[str, Any], names: Sequence[str]) -> tuple[Table, ...]:
    wrong = sorted(((n, t, p) for t, p, n in counts.get("pairs", ()) if t != p), reverse=True)[:PAIRS]
    rows = tuple((names[t], names[p], f"{n:,}", f"{100 * n / counts['true'][t]:.1f}%") for n, t, p in wrong)
    columns = ("true", "predicted as", "images", "fraction of the class")
    return (Table("Most often confused", columns, rows, label_columns=2),) if rows else ()


def _labels(shown: Evaluation, counts: Mapping[str, Any], record: Record, metrics: Mapping[str, Any]) -> Evaluation:
    found = scores.per_class_scores(counts, record.names)
    chosen = metrics.get("thresholds") or [None] * len(found)
    drawn = zip(counts["drawn"], counts["present"], counts["absent"], strict=True)
    figures = [_cut(record.names[i], scores.threshold_curve(there, absent), chosen[i]) for i, there, absent in drawn]
    which = f", of the {len(figures)} labels with the lowest F1" if len(found) > len(figures) else ""
    return evolve(
        _each(shown, found),
        intro=f"{counts['images']:,} images; labels are predicted above a probability of 0.5; mean F1 "
        f"over labels {_four(scores.mean([each.f1 for each in found]))}. The curves show other thresholds{which}.",
        figures=figures,
    )


def _cut(name: str, curve: Sequence[ThresholdPoint], chosen: float | None) -> Figure:
    curves = tuple(
        Line(name, [(cut.threshold, getattr(cut, name.lower())) for cut in curve], colour, dashed=colour > 1)
        for colour, name in enumerate(("F1", "precision", "recall"), start=1)
    )
    marks = [] if chosen is None else [(chosen, f"threshold with the best F1, {chosen:.3f}")]
    x, y = Axis(0.0, 1.0, "threshold"), Axis(0.0, 1.0, "score")
    rows = tuple((f"{c.threshold:.2f}", _four(c.precision), _four(c.recall), _four(c.f1)) for c in curve[::5])
    table = Table(name, ("threshold", "precision", "recall", "F1"), rows, label_columns=0)
    remark = "" if chosen is None else f"F1 is best with the threshold {chosen:.3f}, which predict uses."
    label = f"precision, recall and F1 of {name} by threshold"
    return Figure(name, lines(label, curves, x, y, marks), curves, remark, table)


def _numbers(shown: Evaluation, counts: Mapping[str, Any], record: Record, metrics: Mapping[str, Any]) -> Evaluation:
    del metrics
    found = scores.errors(counts, record.names, record.std)
    rows = tuple((each.name, *map(number, (each.rmse, each.mae, each.bias, each.r2))) for each in found[:ROWS])
    table = Table("Errors, in the unit of the target", ("target", "RMSE", "MAE", "bias", "R2"), rows)
    figures = []
    for place, (bins, grid) in enumerate(zip(counts["residuals"], counts["grid"], strict=True)):
        name, mean, std = record.names[place], record.mean[place], record.std[place]
        figures += [_scatter(name, grid, mean, std), _residuals(name, bins, std)]
    return evolve(shown, intro=f"{counts['images']:,} images.", figures=figures, tables=(table,))


def _scatter(name: str, grid: Mapping[str, Any], mean: float, std: float) -> Figure:
    low, width = grid["low"], grid["width"]
    cells = [
        (mean + std * (low + (true + 0.5) * width), mean + std * (low + (predicted + 0.5) * width), n)
        for predicted, true, n in grid["cells"]
    ]
    axis = Axis(mean + std * low, mean + std * (low + grid["side"] * width), "true")
    table = Table(
        f"{name}, predicted by true", ("true (bin)", "images", "mean prediction"), _means(cells), label_columns=0
    )
    drawing = scatter(f"predicted over true values of {name}", cells, axis, "true", "predicted")
    remark = (
        "Horizontal: true value, vertical: predicted value. Larger discs have more images; on the line both are equal."
    )
    return Figure(f"{name}: predicted and true", drawing, remark=remark, table=table)


def _means(cells: Sequence[tuple[float, float, int]]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each true value: the images there, and the mean of what was predicted for them."""
    columns: dict[float, list[tuple[float, int]]] = {}
    for true, predicted, n in sorted(cells):
        columns.setdefault(true, []).append((predicted, n))
    sums = ((true, sum(n for _, n in column), sum(said * n for said, n in column)) for true, column in columns.items())
    return tuple((number(true), f"{images:,}", number(total / images)) for true, images, total in sums)


def _residuals(name: str, bins: Mapping[str, Any], std: float) -> Figure:
    low, width, counts = bins["low"] * std, bins["width"] * std, bins["counts"]
    edges = [low + place * width for place in range(len(counts) + 1)]
    drawn = [
        Bar(left, right, float(n), f"{number(left)} to {number(right)}: {n:,} images")
        for left, right, n in zip(edges, edges[1:], counts, strict=False)
    ]
    x, y = Axis(edges[0], edges[-1], "predicted - true"), Axis(0.0, max(counts, default=1) * 1.06 or 1.0, "images")
    rows = tuple((number(bar.low), number(bar.high), f"{bar.height:.0f}") for bar in drawn)
    table = Table(f"{name}, residuals", ("from", "to", "images"), rows, label_columns=0)
    drawing = bars(f"residuals of {name}: images by predicted minus true value", drawn, x, y)
    return Figure(
        f"{name}: residuals", drawing, remark="The first and last bins include all values beyond.", table=table
    )


def _four(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else number(None)
