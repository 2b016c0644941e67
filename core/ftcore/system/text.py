"""Names as text: what people read cannot control a terminal, break a line, or turn its direction."""

from __future__ import annotations

import re

_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"

_UNPRINTABLE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_BIDIRECTIONAL}]")
"""Control characters with all line breaks, marks of direction, and bytes of names that are not UTF-8."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#!~&])")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Spell out what would act instead of being read, such as ``\x1b``; and what no stream can encode.

    Args:
        text: a name, or a text with names in it.
        lines: whether its line breaks stay, as in a message of several lines.
    """
    if lines:
        return "\n".join(printable(line) for line in text.split("\n"))
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def escape_markdown(text: str) -> str:
    """Spell a name so that Markdown, also in a table, shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def spreadsheet_cell(text: str) -> str:
    """Spell a cell of a table so that a spreadsheet shows it and computes nothing.

    It stands behind ``'`` if it begins with one of = + - @, and is no number.
    """
    shown = printable(text)
    if not shown.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")):  # noqa: RUF001 - Excel takes these
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown
