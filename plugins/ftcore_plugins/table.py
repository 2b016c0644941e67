"""A table of pictures: CSV, TSV or Parquet with a path, targets, and perhaps a split and a group in each row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from ftcore import Data, DataError, UserError, hookimpl
from ftcore.files import SHOWN, Files, check_headers
from ftcore.labelled import Labelled, Names, fingerprint, make_data

from .rows import Rows, read_rows

if TYPE_CHECKING:
    from ftcore.config import RunConfig

_SUFFIXES = (".csv", ".tsv", ".parquet")


@frozen
class TableConfig:
    """Options of `table`.

    Attributes:
        path: column with each picture's path, relative to `root`.
        target: column, or list of columns, to learn; by default the one that is left.
        split: column with each picture's split (train, val, ...); by default ``split`` where there is one, empty for
            none.
        group: column with what no split may cut, e.g. the patient.
        root: folder of the pictures, relative to the working folder; by default the table's own.
        separator: between columns; by default a comma, a tab in a file that ends with .tsv.
        labels: separator between several labels in one cell, e.g. ``"|"``; makes the task multi-label.
    """

    path: str = "path"
    target: str | tuple[str, ...] | None = None
    split: str | None = None
    group: str | None = None
    root: str | None = None
    separator: str | None = None
    labels: str | None = None


class Table:
    """Answers for any existing file that ends with .csv, .tsv or .parquet."""

    Config = TableConfig

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig) -> Data | None:
        """Read the table and each picture's header."""
        file = Path(source or "")
        if file.suffix.lower() not in _SUFFIXES or not file.is_file():
            return None
        rows = read_rows(file, self.config.separator)
        files, sizes = self._files(rows)
        _check_once(rows, rows.column(self.config.path))
        check_headers(files, config)
        names = self._targets(rows)
        cells = [rows.column(name) for name in names]
        kind, labels, values = self._values(rows, names, cells, config)
        splits, _paths = self._optional(rows, "split"), rows.column(self.config.path)
        return make_data(
            Labelled(
                images=files,
                kind=kind,
                values=values,
                names=labels,
                fingerprint=fingerprint(
                    zip(rows.column(self.config.path), sizes, *cells, splits or sizes, strict=True)
                ),
                splits=splits,
                groups=self._optional(rows, "group"),
            ),
            config,
        )

    def _files(self, rows: Rows) -> tuple[Files, list[int]]:
        """Return the pictures and their sizes in bytes; every row whose file is not there is named."""
        root = Path(self.config.root) if self.config.root is not None else rows.file.parent
        problems, sizes, paths = [], [], rows.column(self.config.path)
        for place, path in enumerate(paths):
            try:
                sizes.append(_checked(root, path).stat().st_size)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                problems.append(f"{rows.where(place)}: {self.config.path} {path!r:.200}: {reason}")
        if problems:
            more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DataError("\n".join(problems[:SHOWN]) + more + f"\npaths are relative to {root.absolute()}")
        return Files(root, Names.of(paths)), sizes

    def _optional(self, rows: Rows, option: str) -> list[str] | None:
        """Return the column of splits or groups; the one called split is taken unasked."""
        name = getattr(self.config, option)
        if name is None and option == "split" and "split" in rows.columns:
            name = "split"
        if not name:
            return None
        values = rows.column(name)
        for place, value in enumerate(values):
            if not value:
                raise DataError(f"{rows.where(place)}: {name} is empty")
        return values

    def _targets(self, rows: Rows) -> tuple[str, ...]:
        """Return the columns to learn."""
        if self.config.target is not None:
            return (self.config.target,) if isinstance(self.config.target, str) else self.config.target
        taken = {self.config.path, self.config.group, "split" if self.config.split is None else self.config.split}
        left = [name for name in rows.columns if name not in taken]
        if len(left) != 1:
            raise UserError(
                f"{rows.file} has {len(left)} columns that could be the target ({', '.join(left) or 'none'}); "
                "say which: table.target=COLUMN, or a list of columns"
            )
        return tuple(left)

    def _values(
        self, rows: Rows, names: tuple[str, ...], cells: list[list[str]], config: RunConfig
    ) -> tuple[Any, tuple[str, ...], Any]:
        """Return kind of task, names and values of the targets."""
        if self.config.labels is not None:
            return "multilabel", *_several(rows, names, cells, self.config.labels, config)
        kind = config.data.task or _meaning(rows, names, cells)
        if kind == "classification":
            if len(names) > 1:
                raise UserError(f"classification takes one target column, not {len(names)}: {', '.join(names)}")
            _check_filled(rows, names[0], cells[0])
            return kind, (), cells[0]
        columns = [_numbers(rows, name, column) for name, column in zip(names, cells, strict=True)]
        if kind == "multilabel":
            _check_labels(rows, names, columns)
            return kind, names, np.array(columns, dtype=np.uint8).T
        return kind, names, np.array(columns).T


def _checked(root: Path, path: str) -> Path:
    """Return a picture's file; it must be below the root, however it is written."""
    if not path:
        raise ValueError("is empty")
    if "\0" in path:
        raise ValueError("holds a NUL byte")
    if "://" in path:
        raise ValueError("is an address, and only files can be read")
    if Path(path).is_absolute():
        raise ValueError("is absolute; write it relative to table.root")
    if ".." in Path(path).parts:
        raise ValueError("leads out of the folder; set table.root to the folder that holds all pictures")
    return root / path


def _check_once(rows: Rows, paths: list[str]) -> None:
    """Refuse a picture that is in two rows: with two targets it cannot be learnt, with one it counts twice."""
    first: dict[str, int] = {}
    for place, path in enumerate(paths):
        if path in first:
            raise DataError(f"{rows.where(place)}: {path} is there already, in {rows.where(first[path])}")
        first[path] = place


def _meaning(rows: Rows, names: tuple[str, ...], cells: list[list[str]]) -> str:
    """Say what task the targets can only mean, or ask."""
    numbers = [[_number(cell) for cell in column] for column in cells]
    if len(names) == 1 and all(value is None for value in numbers[0]):
        return "classification"
    flat = [value for column in numbers for value in column]
    if None not in flat:
        if len(names) > 1 and set(flat) <= {0.0, 1.0}:
            return "multilabel"
        if len(names) > 1 or not all(float(value or 0).is_integer() for value in flat):
            return "regression"
    shown = ", ".join(dict.fromkeys(cells[0][:100]))
    raise UserError(
        f"{rows.file}: what {', '.join(names)} means is not certain (values such as {shown:.60}); say "
        "data.task=classification, multilabel or regression"
    )


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(rows: Rows, name: str, column: list[str]) -> list[float]:
    values = []
    for place, cell in enumerate(column):
        value = _number(cell)
        if value is None:
            raise DataError(f"{rows.where(place)}: {name} must be a finite number, got {cell!r}")
        values.append(value)
    return values


def _check_filled(rows: Rows, name: str, column: list[str]) -> None:
    for place, cell in enumerate(column):
        if not cell or cell.lower() in {"nan", "null", "none", "na", "n/a"}:
            raise DataError(f"{rows.where(place)}: {name} is missing: {cell!r}")


def _check_labels(rows: Rows, names: tuple[str, ...], columns: list[list[float]]) -> None:
    for name, column in zip(names, columns, strict=True):
        for place, value in enumerate(column):
            if value not in {0.0, 1.0}:
                raise DataError(f"{rows.where(place)}: {name} must be 0 or 1, got {value:g}")


def _several(
    rows: Rows, names: tuple[str, ...], cells: list[list[str]], separator: str, config: RunConfig
) -> tuple[tuple[str, ...], Any]:
    """Read cells with several labels; an empty one has none."""
    if config.data.task not in {None, "multilabel"}:
        raise UserError(
            f"table.labels makes the task multi-label, and data.task says {config.data.task} "
            f"({config.origin('data.task')})"
        )
    if len(names) > 1 or not separator:
        raise UserError(f"table.labels takes one target column and a separator, not {', '.join(names)}, {separator!r}")
    found = [[label.strip() for label in cell.split(separator) if label.strip()] for cell in cells[0]]
    labels = sorted({label for row in found for label in row})
    if len(labels) < 2:
        raise UserError(
            f"{rows.file}: {names[0]} holds {len(labels)} labels, split at {separator!r}: {', '.join(labels)}"
        )
    code = {label: place for place, label in enumerate(labels)}
    matrix = np.zeros((len(found), len(labels)), dtype=np.uint8)
    for place, row in enumerate(found):
        matrix[place, [code[label] for label in row]] = 1
    return tuple(labels), matrix
