"""Rows to be shown."""

from __future__ import annotations

from attrs import frozen


@frozen
class Table:
    """A few rows that a part wants to be shown at the start of a run, in `explain` and in reports."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
