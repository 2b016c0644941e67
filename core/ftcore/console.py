"""Text for people: tables on a stream, as wide as it is."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .system.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .types.table import Table


WIDTH = 160
"""Columns where the stream is no terminal."""

_quiet = ContextVar("quiet", default=False)


@contextmanager
def suppress_output(*, quiet: bool) -> Iterator[None]:
    """Let consoles that are made meanwhile show nothing, if asked to."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def console(stream: IO[str]) -> Console:
    """Make a console that writes to `stream`; colour only on a terminal; `suppress_output`, nothing at all."""
    terminal = stream.isatty() and not _quiet.get()
    return Console(
        file=stream,
        width=None if terminal else WIDTH,
        force_terminal=terminal,
        highlight=False,
        markup=False,
        quiet=_quiet.get(),
    )


def print_progress(text: str) -> None:
    """Print a line on standard error that says how far something is; `suppress_output` keeps it back."""
    console(sys.stderr).print(text, soft_wrap=True)


def escape_what_cannot_be_encoded() -> None:
    r"""Let a name that the encoding of standard output or error lacks come out as ``\xe9``; no command ends at it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def print_table(out: Console, table: Table) -> None:
    """Print a table with its title."""
    shown = RichTable(box=None, header_style="dim", pad_edge=False)
    rows = [[printable(cell) for cell in row] for row in table.rows]
    for place, column in enumerate(table.columns):
        longest = max((row[place] for row in rows), key=len, default="")
        shown.add_column(printable(column), overflow="fold", no_wrap=" " not in longest)
    for row in rows:
        shown.add_row(*map(Text, row))
    out.print(printable(table.title), style="bold")
    _print_trimmed(out, shown)


def print_key_values(out: Console, facts: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    shown = RichTable(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        shown.add_row(Text(printable(name)), Text(printable(value)))
    _print_trimmed(out, shown)


def _print_trimmed(out: Console, shown: RichTable) -> None:
    """Print without the spaces that rich puts after the last column; in one line a row if a word is too long to fit."""
    width, unlimited = out.width, out.options.update(max_width=10**6)
    needed = Measurement.get(out, unlimited, shown)
    out.width = width if needed.minimum <= width else needed.maximum
    with out.capture() as captured:
        out.print(shown)
    out.width = width
    lines = captured.get().splitlines()
    if not out.quiet:
        out.file.write("".join(f"{line.rstrip()}\n" for line in lines))
