"""From a column to what is to be learnt: its type says what task it can only mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from ftcore import DataError, UserError, format_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset
    from ftcore.config import RunConfig

    Targets = tuple[str, tuple[str, ...], Any]


@frozen(eq=False)
class Column:
    """A column of all splits, one behind the other.

    Attributes:
        source: of the data set, as the user named it.
        name: of the column.
        feature: its type, of the `datasets` library.
        cells: its values.
        lengths: split -> number of rows.
    """

    source: str
    name: str
    feature: Any
    cells: list[Any]
    lengths: dict[str, int]

    @classmethod
    def of(cls, source: str, parts: Mapping[str, Dataset], name: str) -> Column:
        """Read a column, and no other."""
        cells: list[Any] = []
        for part in parts.values():
            cells += part.select_columns([name]).with_format("arrow")[:].column(name).to_pylist()
        feature = next(iter(parts.values())).features[name]
        return cls(source, name, feature, cells, {split: len(part) for split, part in parts.items()})

    def where(self, place: int) -> str:
        """Name a cell for a person."""
        for split, length in self.lengths.items():
            if place < length:
                return f"{self.source} {split}[{place}]: {self.name}"
            place -= length
        raise IndexError(place)


def find_target(features: Mapping[str, Any]) -> str:
    """Return the only column of classes, else the only one with lists of them.

    Raises:
        UserError: there is none, or there are several.
    """
    import datasets

    single = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    lists = [name for name, feature in features.items() if isinstance(_item(feature), datasets.ClassLabel)]
    found = single or lists
    if len(found) != 1:
        raise UserError(
            f"the data set has {len(found)} columns of type ClassLabel ({format_names(found)}); say which column to "
            "learn: "
            f"hf_datasets.target=COLUMN; columns: {format_names(features)}"
        )
    return found[0]


def targets(column: Column, config: RunConfig) -> Targets:
    """Return name of the task, names and values; see `ftcore.data.LabelledImages`.

    Raises:
        UserError: the column cannot be learnt, or not as ``data.task`` says.
        DataError: naming a row without a value.
    """
    item = _item(column.feature)
    kinds = ("multilabel",) if item is not None else _kinds(column.feature)
    if not kinds:
        raise UserError(
            f"column {column.name!r} cannot be a target; it is {column.feature}, but texts, numbers, ClassLabel and "
            f"lists "
            "of texts or ClassLabel can"
        )
    kind = config.data.task or (kinds[0] if len(kinds) == 1 else None)
    if kind is None:
        raise UserError(f"what column {column.name!r} means is ambiguous; set data.task={' or '.join(kinds)}")
    if kind not in kinds:
        raise UserError(
            f"data.task is {kind} ({config.origin('data.task')}), and column {column.name!r} is {column.feature}, "
            f"which means {' or '.join(kinds)}"
        )
    if kind == "multilabel":
        return _several(column, item)
    if kind == "regression":
        return kind, (column.name,), np.array([[_number(column, place)] for place in range(len(column.cells))])
    return (
        "classification",
        (),
        [_label(column, place, column.feature, cell) for place, cell in enumerate(column.cells)],
    )


def _item(feature: Any) -> Any:
    """Return the type of a list's items; None for what is no list."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _kinds(feature: Any) -> tuple[str, ...]:
    """Return the tasks that a column of this type can mean."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return ("classification",)
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    if dtype in {"string", "large_string", "string_view", "bool"}:
        return ("classification",)
    if dtype.startswith(("int", "uint")):
        return ("classification", "regression")
    return ("regression",) if dtype.startswith("float") else ()


def _label(column: Column, place: int, feature: Any, cell: Any) -> str:
    """Return one label as a text; ``datasets`` writes -1 for a class that is not known."""
    import datasets

    if cell is None or cell == "":
        raise DataError(f"{column.where(place)} is missing")
    if not isinstance(feature, datasets.ClassLabel):
        return str(cell)
    if not 0 <= cell < len(feature.names):
        raise DataError(f"{column.where(place)} is {cell}, and there are {len(feature.names)} classes")
    return str(feature.names[cell])


def _number(column: Column, place: int) -> float:
    cell = column.cells[place]
    if cell is None or not math.isfinite(cell):
        raise DataError(f"{column.where(place)} must be a finite number, got {cell}")
    return float(cell)


def _several(column: Column, item: Any) -> Targets:
    """Read lists of labels; those that no row has are left out."""
    found = [_labels(column, place, item) for place in range(len(column.cells))]
    return "multilabel", (), found


def _labels(column: Column, place: int, item: Any) -> Sequence[str]:
    cell = column.cells[place]
    if not isinstance(cell, list):
        raise DataError(f"{column.where(place)} is missing")
    return [_label(column, place, item, label) for label in cell]
