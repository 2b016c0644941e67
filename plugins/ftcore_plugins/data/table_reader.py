"""Read a table's cells as text, each with the line that it came from."""

from __future__ import annotations

import codecs
import csv
from io import StringIO
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ftcore import DataError, UserError, suggestions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@frozen(eq=False)
class TableRows:
    """A table.

    Attributes:
        file: where it is.
        columns: name -> its cells, without the spaces around them.
        numbers: of each row: the line in which it begins, from 1; its place, from 0, where a file has no lines.
        unit: what a message puts between the file and such a number.
    """

    file: Path
    columns: dict[str, list[str]]
    numbers: Sequence[int]
    unit: str = ":"

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.columns:
            raise UserError(
                f"{self.file} has no column {name!r}; it has {', '.join(self.columns)}; nearest: "
                f"{suggestions(name, self.columns)} (options of the plugin table: path, target, split, group)"
            )
        return self.columns[name]

    def where(self, place: int) -> str:
        """Return file and line of a row."""
        return f"{self.file}{self.unit}{self.numbers[place]}"

    def ordered(self, name: str) -> TableRows:
        """Sort the rows by a column, so that nothing depends on their order in the file."""
        cells = self.column(name)
        order = sorted(range(len(cells)), key=cells.__getitem__)
        columns = {key: [column[place] for place in order] for key, column in self.columns.items()}
        return evolve(self, columns=columns, numbers=[self.numbers[place] for place in order])


def read_rows(file: Path, separator: str | None) -> TableRows:
    """Read a CSV, TSV or Parquet file.

    Raises:
        UserError: it cannot be read, or not as a table; with its line.
    """
    if file.suffix.lower() == ".parquet":
        return _parquet(file, separator)
    separator = separator or ("\t" if file.suffix.lower() == ".tsv" else ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f"table.separator must be one character, and no quote or line end, got {separator!r}")
    rows = _csv_rows(file, separator)
    line, header = next(rows, (1, []))
    _check_header(f"{file}:{line}", header, separator)
    lines, cells = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{file}:{line}: {len(row)} cells, but the header has {len(header)} ({', '.join(header)})")
        lines.append(line)
        cells.append(row)
    if not cells:
        raise DataError(f"{file} has a header and no rows")
    return TableRows(file, dict(zip(header, map(list, zip(*cells, strict=True)), strict=True)), lines)


def _csv_rows(file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line in which it begins."""
    reader = csv.reader(StringIO(_text(file), newline=""), delimiter=separator, strict=True)
    row: list[str] | None = []
    while row is not None:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file}:{line}: {error}; a quote that is not closed, or not doubled in a cell?") from None
        cells = [cell.strip() for cell in row or ()]
        if any(cells):
            yield line, cells


def _text(file: Path) -> str:
    """Decode UTF-8, or what a byte-order mark says."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from None
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(raw[: error.start + 1])
        raise DataError(f"{file}:{line}: not UTF-8 at byte {error.start} of the file; save it as UTF-8") from None
    if "\0" in text:
        line = _line(text.partition("\0")[0].encode() + b"\0")
        raise DataError(f"{file}:{line}: contains a NUL byte; save it as UTF-8 text")
    return text


def _line(raw: bytes) -> int:
    """Return the line in which the last of some bytes is."""
    return len(raw.splitlines())


def _check_header(where: str, header: list[str], separator: str) -> None:
    if not header:
        raise DataError(f"{where}: the file is empty")
    if len(header) == 1:
        other = next((name for mark, name in _SEPARATORS.items() if mark != separator and mark in header[0]), None)
        hint = f"; it looks separated by {other}: table.separator" if other else ""
        raise DataError(
            f"{where}: only one column, {header[0]!r:.100}, when split at {_SEPARATORS.get(separator, separator)}{hint}"
        )
    _check_names(where, header)


def _check_names(where: str, header: list[str]) -> None:
    if "" in header:
        raise DataError(f"{where}: column {header.index('') + 1} of {len(header)} has no name")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns are named {twice!r:.100}")


def _parquet(file: Path, separator: str | None) -> TableRows:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise UserError(f"{file}: Parquet needs pyarrow: pip install 'ftcore[parquet]'") from None
    if separator is not None:
        raise UserError(f"table.separator = {separator!r} has no effect: {file} is a Parquet file")
    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file} has no rows")
    _check_names(str(file), table.column_names)
    columns = {
        name: ["" if cell is None else str(cell).strip() for cell in column.to_pylist()]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return TableRows(file, columns, range(table.num_rows), ", row ")
