"""How predictions are printed: for people, as JSON and as CSV, a line each."""

from __future__ import annotations

import csv
import io
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .parts import Task
    from .predict import Prediction


def as_data(found: Prediction, task: Task, top: int | None = None) -> dict[str, Any]:
    """Return a prediction as plain data: ``values``, for a multi-label task ``labels``, and ``path`` if it has one.

    Args:
        found: the prediction.
        task: what it is about.
        top: how many values, the most probable ones; None for all.
    """
    path = {"path": str(found.path)} if found.path else {}
    labels = {"labels": list(found.labels)} if task.kind == "multilabel" else {}
    return {**path, "values": dict(islice(found.values.items(), top)), **labels}


def as_json(found: Prediction, task: Task, top: int | None = None) -> str:
    """Return a prediction as one line of JSON; see `as_data`."""
    return json.dumps(as_data(found, task, top))


def as_text(found: Prediction, task: Task, top: int | None = None) -> str:
    """Return the picture, and behind tabs the most probable class, the labels that are there, or numbers."""
    if task.kind == "regression":
        return "\t".join([str(found.path), *(f"{name}={value:.6g}" for name, value in found.values.items())])
    if task.kind == "multilabel" and top is None:
        return "\t".join([str(found.path), *(f"{name} {found.values[name]:.4f}" for name in found.labels)])
    best = islice(found.values.items(), top or 1)
    return "\t".join([str(found.path), *(text for name, value in best for text in (name, f"{value:.4f}"))])


def csv_header(task: Task, top: int | None = None) -> str:
    """Return the first line of a CSV file of predictions; see `csv_row`."""
    if top is not None:
        pairs = [
            f"{what}_{place}" for place in range(1, min(top, task.outputs) + 1) for what in ("name", "probability")
        ]
        return _csv(["path", *pairs])
    return _csv(["path", *([] if task.kind == "regression" else ["prediction"]), *task.names])


def csv_row(found: Prediction, task: Task, top: int | None = None) -> str:
    """Return a prediction as a line of CSV: what is predicted, then a column a class, label or number.

    Labels are set apart by semicolons. With `top`, instead, names and probabilities in turn, the most probable first.
    """
    if top is not None:
        best = islice(found.values.items(), top)
        return _csv([found.path, *(text for name, value in best for text in (name, f"{value:.6g}"))])
    predicted = {"classification": [next(iter(found.values))], "multilabel": [";".join(found.labels)], "regression": []}
    return _csv([found.path, *predicted[task.kind], *(f"{found.values[name]:.6g}" for name in task.names)])


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
