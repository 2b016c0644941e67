"""Tables of a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e-?\d+)?%?|\N{EN DASH}|")


@frozen
class Table:
    """A table; the first cell of each row is its header.

    Attributes:
        title: its caption.
        columns: their headers.
        rows: cells.
        note: below; empty for none.
        label_columns: so many columns, the first, hold names, which stand at the left whatever they are.
        numeric: whether a column holds numbers, which stand at the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    label_columns: int = 1
    numeric: tuple[bool, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        found = tuple(
            place >= self.label_columns and bool(column) and all(_NUMBER.fullmatch(cell) for cell in column)
            for place, column in enumerate(columns)
        )
        object.__setattr__(self, "numeric", found)


def made_of(table: Mapping[str, Any], most: int) -> Table:
    """Return a table as `ftcore.Table` spells it, with at most so many rows."""
    rows = tuple(tuple(str(cell) for cell in row) for row in table["rows"])
    note = f"The first {most} of {len(rows):,} rows." if len(rows) > most else ""
    return Table(table["title"], tuple(table["columns"]), rows[:most], note)
