"""A table of pictures: CSV, TSV or Parquet with a path, targets, and perhaps a split and a group in each row."""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from ftcore import Data, DataError, UserError, hookimpl
from ftcore.data import (
    SHOWN,
    ImageFiles,
    LabelledImages,
    PackedStrings,
    check_headers,
    fingerprint,
    make_data,
    parse_targets,
)

from .cells import is_missing, parse_binary, parse_finite, parse_float
from .table_reader import TableRows, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ftcore import Context
    from ftcore.config import RunConfig


_SUFFIXES = (".csv", ".tsv", ".parquet")


@frozen
class TableConfig:
    """Options of `table`.

    Attributes:
        path: column with each image's path, relative to `root`.
        target: column, or list of columns, to predict; by default the only remaining column.
        split: column with each image's split (train, val, ...); by default ``split`` if it exists, empty for
            none.
        group: column with the group of each image (e.g. the patient); a group is never in two splits.
        root: folder of the images, relative to the working directory; by default the folder of the table.
        separator: column separator; by default a comma, or a tab for .tsv files.
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
    """A table of images, .csv, .tsv or .parquet, with their classes, labels or numbers."""

    Config = TableConfig

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Read the table and each picture's header."""
        file = Path(source or "")
        if file.suffix.lower() not in _SUFFIXES or not file.is_file():
            return None
        rows = read_rows(file, self.config.separator).ordered(self.config.path)
        names = self._targets(rows)
        paths, cells = rows.column(self.config.path), [rows.column(name) for name in names]
        splits, groups = self._optional(rows, "split"), self._optional(rows, "group")
        task, labels, values = self._values(rows, names, cells, config, ctx)
        files, sizes = self._files(rows)
        _check_once(rows, paths)
        check_headers(files, config, rows.where)
        blank = [""] * len(paths)
        columns = (paths, sizes, *cells, splits or blank, groups or blank)
        return make_data(
            LabelledImages(
                images=files,
                task=task,
                values=values,
                names=labels,
                fingerprint=fingerprint(zip(*columns, strict=True)),
                splits=splits,
                groups=groups,
            ),
            config,
            ctx,
        )

    def _files(self, rows: TableRows) -> tuple[ImageFiles, list[int]]:
        """Return the pictures and their sizes in bytes; every row whose file is not there is named."""
        root = Path(self.config.root) if self.config.root is not None else rows.file.parent
        problems, sizes, paths = [], [], rows.column(self.config.path)
        for place, path in enumerate(paths):
            try:
                sizes.append(_size(root, path))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                problems.append(f"{rows.where(place)}: {self.config.path} {path!r:.200}: {reason}")
        if problems:
            more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DataError("\n".join(problems[:SHOWN]) + more + f"\npaths are relative to {root.absolute()}")
        return ImageFiles(root, PackedStrings.of(paths)), sizes

    def _optional(self, rows: TableRows, option: str) -> list[str] | None:
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

    def _targets(self, rows: TableRows) -> tuple[str, ...]:
        """Return the columns to learn."""
        split = "split" if self.config.split is None else self.config.split
        taken = [self.config.path, *filter(None, [split, self.config.group])]
        target = self.config.target or tuple(name for name in rows.columns if name not in taken)
        names = (target,) if isinstance(target, str) else target
        twice = [name for name, count in Counter([*taken, *names]).items() if count > 1]
        if twice:
            raise UserError(
                f"column {twice[0]!r} is used twice; options of the plugin table: path, target, group, and "
                "split, which takes a column of that name unless it is empty"
            )
        if len(names) != 1 and not self.config.target:
            raise UserError(
                f"{rows.file} has {len(names)} columns that could be the target ({', '.join(names) or 'none'}); "
                "choose: table.target=COLUMN, or a list of columns"
            )
        return names

    def _values(
        self, rows: TableRows, names: tuple[str, ...], cells: list[list[str]], config: RunConfig, ctx: Context
    ) -> tuple[str, tuple[str, ...], Any]:
        """Return name of the task, names and values of the targets."""
        if self.config.labels is not None:
            return "multilabel", (), _parse_label_lists(rows, names, cells, self.config.labels, config)
        kind = config.data.task or _infer_task(rows, names, cells)
        if kind == "classification":
            if len(names) > 1:
                raise UserError(f"classification takes one target column, not {len(names)}: {', '.join(names)}")
            _check_filled(rows, names[0], cells[0])
            return kind, (), cells[0]
        if kind not in {"multilabel", "regression"}:
            return kind, names, parse_targets(ctx.make_task(kind), list(zip(*cells, strict=True)), rows.where)
        read = parse_binary if kind == "multilabel" else parse_finite
        columns = [_numbers(rows, name, column, read) for name, column in zip(names, cells, strict=True)]
        return kind, names, np.array(columns, dtype=np.uint8 if kind == "multilabel" else np.float64).T


def _size(root: Path, path: str) -> int:
    """Return the size of a picture's file; it must be below the root, however it is written."""
    problem = next((reason for reason, has in _PATH_CHECKS.items() if has(path)), None)
    if problem:
        raise ValueError(problem)
    status = (root / path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a file")
    return status.st_size


_PATH_CHECKS: dict[str, Callable[[str], bool]] = {
    "is empty": lambda path: not path,
    "contains a NUL byte": lambda path: "\0" in path,
    "is a URL, but only files can be read": lambda path: "://" in path,
    "is absolute; write it relative to table.root": lambda path: Path(path).is_absolute(),
    "is outside the folder; set table.root to the folder that contains all images": lambda p: ".." in Path(p).parts,
    "contains a backslash; write / between folder and file": lambda path: "\\" in path,
}
"""What is wrong with a path -> how that is seen."""


def _check_once(rows: TableRows, paths: list[str]) -> None:
    """Refuse a picture that is in two rows: with two targets it cannot be learnt, with one it counts twice."""
    first: dict[Path, int] = {}
    for place, path in enumerate(paths):
        other = first.setdefault(Path(path), place)
        if other != place:
            raise DataError(f"{rows.where(place)}: {path!r:.200} occurs twice, first in {rows.where(other)}")


def _infer_task(rows: TableRows, names: tuple[str, ...], cells: list[list[str]]) -> str:
    """Say what task the targets can only mean, or ask; cells without a value say nothing, and are refused later."""
    values = [parse_float(cell) for column in cells for cell in column if not is_missing(cell)]
    numbers = [value for value in values if value is not None]
    if len(names) == 1 and not numbers:
        return "classification"
    if len(numbers) == len(values):
        if len(names) > 1 and set(numbers) <= {0.0, 1.0}:
            return "multilabel"
        if len(names) > 1 or not all(value.is_integer() for value in numbers):
            return "regression"
    shown = ", ".join(dict.fromkeys(cells[0][:100]))
    raise UserError(
        f"{rows.file}: what {', '.join(names)} means is ambiguous (values such as {shown:.60}); set "
        "data.task=classification, multilabel or regression"
    )


def _numbers(rows: TableRows, name: str, column: list[str], read: Callable[[str], float]) -> list[float]:
    values = []
    for place, cell in enumerate(column):
        try:
            values.append(read(cell))
        except ValueError as error:
            raise DataError(f"{rows.where(place)}: {name} {error}, got {cell!r:.80}") from None
    return values


def _check_filled(rows: TableRows, name: str, column: Iterable[str]) -> None:
    for place, cell in enumerate(column):
        if is_missing(cell):
            raise DataError(f"{rows.where(place)}: {name} is missing, got {cell!r}; which cannot be a class name")


def _parse_label_lists(
    rows: TableRows, names: tuple[str, ...], cells: list[list[str]], separator: str, config: RunConfig
) -> list[list[str]]:
    """Read cells with several labels; an empty one has none."""
    if config.data.task not in {None, "multilabel"}:
        raise UserError(
            f"table.labels makes the task multi-label, but data.task is {config.data.task} "
            f"({config.origin('data.task')})"
        )
    if len(names) > 1 or not separator:
        raise UserError(f"table.labels takes one target column and a separator, not {', '.join(names)}, {separator!r}")
    found = [[label.strip() for label in cell.split(separator) if label.strip()] for cell in cells[0]]
    for place, labels in enumerate(found):
        if any(map(is_missing, labels)):
            raise DataError(
                f"{rows.where(place)}: {names[0]} {cells[0][place]!r:.80} has no label, or a label that is not allowed"
            )
    return found
