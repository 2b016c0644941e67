"""How predictions are printed: for people, as JSON and as CSV, a line each."""

from __future__ import annotations

import csv
import io
from itertools import islice
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.checkpoints.strict_json import to_json
from ftcore.data.task import significant_digits
from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore.types.data import Task

    from .predict import Prediction


@frozen
class PredictionWriter:
    """How predictions are printed.

    Attributes:
        task: what they are about.
        top: how many values of each, the most probable ones; None for all.
        as_json: as an object of JSON each.
        as_csv: as a table: what is predicted, then a column a class, label or number; labels are set apart by
            semicolons. With `top`, instead, names and probabilities in turn.

    Raises:
        UserError: these do not go together.
    """

    task: Task
    top: int | None = None
    as_json: bool = False
    as_csv: bool = False

    def __attrs_post_init__(self) -> None:
        if self.as_json and self.as_csv:
            raise UserError("--json and --csv are two forms of the same; choose one")
        if self.top and self.task.kind == "regression":
            raise UserError("--top is for classes and labels, and this model predicts numbers")

    @property
    def header(self) -> str:
        """The line before the first prediction; nothing but for a table."""
        if not self.as_csv:
            return ""
        if self.top:
            places = range(1, min(self.top, self.task.outputs) + 1)
            return _csv(["path", *(f"{what}_{place}" for place in places for what in ("name", "probability"))])
        return _csv(["path", *([] if self.task.kind == "regression" else ["prediction"]), *self.task.names])

    def line(self, found: Prediction) -> str:
        """Return one prediction."""
        if self.as_json:
            return to_json(prediction_to_dict(found, self.task, self.top))
        return _csv(self._row(found)) if self.as_csv else "\t".join(self._text_cells(found))

    def _row(self, found: Prediction) -> list[str]:
        if self.top:
            return [str(found.path), *_top_pairs(found, self.top, ".6g")]
        if self.task.kind == "regression":
            return [str(found.path), *self._numbers(found).values()]
        predicted = list(found.values)[:1] if self.task.kind == "classification" else [";".join(found.labels)]
        values = (f"{found.values[name]:.6g}" for name in self.task.names)
        return [str(found.path), *predicted, *values]

    def _numbers(self, found: Prediction) -> dict[str, str]:
        """Spell each number with the digits that its spread over the training split gives a meaning."""
        each = zip(self.task.names, self.task.mean, self.task.std, strict=True)
        return {name: f"{found.values[name]:.{significant_digits(mean, std)}g}" for name, mean, std in each}

    def _text_cells(self, found: Prediction) -> list[str]:
        """Return the picture and the most probable class, or the labels that are there, or numbers."""
        if self.task.kind == "regression":
            return [str(found.path), *(f"{name}={text}" for name, text in self._numbers(found).items())]
        if self.task.kind == "multilabel" and not self.top:
            return [str(found.path), *(f"{name} {found.values[name]:.4f}" for name in found.labels)]
        return [str(found.path), *_top_pairs(found, self.top or 1, ".4f")]


def prediction_to_dict(found: Prediction, task: Task, top: int | None = None) -> dict[str, Any]:
    """Return a prediction as plain data: ``values``, for a multi-label task ``labels``, and ``path`` if it has one.

    Args:
        found: the prediction.
        task: what it is about.
        top: how many values, the most probable ones; None for all.
    """
    path = {"path": str(found.path)} if found.path else {}
    labels = {"labels": list(found.labels)} if task.kind == "multilabel" else {}
    return {**path, "values": dict(islice(found.values.items(), top)), **labels}


def _top_pairs(found: Prediction, number: int, digits: str) -> list[str]:
    best = islice(found.values.items(), number)
    return [text for name, value in best for text in (name, format(value, digits))]


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
