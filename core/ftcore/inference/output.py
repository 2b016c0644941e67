"""How predictions are printed: for people, as JSON and as CSV, a line each."""

from __future__ import annotations

import csv
import io
from itertools import islice
from typing import TYPE_CHECKING

from attrs import frozen

from ftcore.checkpoints.strict_json import to_json
from ftcore.errors import UserError
from ftcore.system.text import printable, spreadsheet_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore.types.task import Prediction, Task


@frozen
class PredictionWriter:
    """How predictions are printed.

    Attributes:
        task: what they are about.
        top: how many values of each, the most probable ones; None for all.
        as_json: as an object of JSON each.
        as_csv: as a table: what is predicted, then a column a class, label or number; labels are set apart by
            semicolons. With `top`, instead, names and probabilities in turn. A name that a spreadsheet would compute is
            quoted by ``'`` before it.
        raw_csv: leave names in the table as they are.

    Raises:
        UserError: these do not go together.
    """

    task: Task
    top: int | None = None
    as_json: bool = False
    as_csv: bool = False
    raw_csv: bool = False

    def __attrs_post_init__(self) -> None:
        if self.raw_csv and not self.as_csv:
            raise UserError("--raw-csv is about the table of --csv; add that")
        if self.as_json and self.as_csv:
            raise UserError("--json and --csv are alternatives; choose one")
        if self.top and not self.task.ranked:
            raise UserError(
                f"--top is for classes and labels, and what a task {self.task.name!r} predicts is in no order"
            )

    @property
    def header(self) -> str:
        """The line before the first prediction; nothing but for a table."""
        if not self.as_csv:
            return ""
        if self.top:
            places = range(1, min(self.top, self.task.outputs) + 1)
            return self._csv(["path", *(f"{what}_{place}" for place in places for what in ("name", "probability"))])
        return self._csv(["path", *self.task.columns()])

    def line(self, found: Prediction) -> str:
        """Return one prediction."""
        if self.as_json:
            return to_json({"path": str(found.path)} | self.task.data(found, self.top))
        if self.as_csv:
            cells = _top_pairs(found, self.top) if self.top else self.task.cells(found)
            return self._csv([str(found.path), *cells])
        return "\t".join(map(printable, [str(found.path), *self.task.words(found, self.top)]))

    def _csv(self, cells: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells if self.raw_csv else map(spreadsheet_cell, cells))
        return line.getvalue()[:-1]


def _top_pairs(found: Prediction, number: int) -> list[str]:
    best = islice(found.values.items(), number)
    return [text for name, value in best for text in (name, f"{value:.6g}")]
