from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from typing import TYPE_CHECKING

import pytest

from ftcore.console import (
    WIDTH,
    console,
    escape_what_cannot_be_encoded,
    print_key_values,
    print_table,
    suppress_output,
)
from ftcore.testing import image_folder
from ftcore.types.table import Table

if TYPE_CHECKING:
    from pathlib import Path

TABLE = Table("[bold]images", ("class", "train"), (("cat", "10"), ("[bold]dog", "7")))


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def printed(stream: StringIO, table: Table = TABLE) -> str:
    print_table(console(stream), table)
    return stream.getvalue()


def test_a_table_is_its_title_its_columns_and_its_rows_as_they_are() -> None:
    assert printed(StringIO()).splitlines() == ["[bold]images", "class      train", "cat        10", "[bold]dog  7"]


def test_names_and_values_are_two_columns() -> None:
    stream = StringIO()

    print_key_values(console(stream), {"data": "digits", "learning rate": "0.1"})

    assert stream.getvalue() == "data           digits\nlearning rate  0.1\n"


def test_there_is_colour_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    assert "\x1b[" in printed(Terminal())
    assert "\x1b[" not in printed(StringIO())


def test_where_there_is_no_terminal_lines_are_of_one_width_and_nothing_is_cut_off() -> None:
    words = ["word"] * WIDTH

    lines = printed(StringIO(), Table("long", ("value",), ((" ".join(words),),))).splitlines()

    assert WIDTH - 5 < max(map(len, lines)) <= WIDTH
    assert " ".join(lines[2:]).split() == words


@pytest.mark.parametrize("stream", [StringIO, Terminal])
def test_a_path_is_never_broken(stream: type[StringIO]) -> None:
    path = "/".join(["folder"] * WIDTH)

    text = printed(
        stream(),
        Table("files", ("file", "what"), (("train " + path, "some words that may be broken"), ("a" * 30, "b"))),
    )

    assert path in text
    assert "some words" in " ".join(text.split())


def test_a_file_name_that_is_not_utf8_can_be_printed() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")

    assert r"caf\udce9.jpg" in printed(StringIO(), Table("files", ("name",), ((name,),)))


@pytest.mark.parametrize("stream", [StringIO, Terminal])
def test_what_is_made_while_output_is_suppressed_shows_nothing(stream: type[StringIO]) -> None:
    with suppress_output(quiet=True), suppress_output(quiet=False):
        silent = console(written := stream())
    for out in (silent, console(stream())):
        print_table(out, TABLE)
        print_key_values(out, {"a": "b"})

    assert written.getvalue() == ""
    assert printed(stream())


def test_nothing_is_suppressed_where_that_is_not_asked_for() -> None:
    with suppress_output(quiet=False):
        assert printed(StringIO())


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"caf\\xe9 \\udcff"), ("utf-8", "café ".encode() + b"\\udcff")]
)
def test_a_name_that_a_strict_stream_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes
) -> None:
    stream = TextIOWrapper(BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(UnicodeEncodeError):
        stream.write("caf\xe9 \udcff")

    escape_what_cannot_be_encoded()
    stream.write("caf\xe9 \udcff")
    stream.flush()

    assert stream.buffer.getvalue() == shown


def test_a_command_ends_at_no_name_that_its_encoding_lacks(tmp_path: Path) -> None:
    """A picture whose name is no UTF-8, and a class whose name is no ASCII, on a strict stream."""
    image_folder(tmp_path / "photos", classes=("caf\xe9", "b"), per_class=4)
    (tmp_path / "photos" / "b" / "0.jpg").rename(tmp_path / "photos" / "b" / "\udcff.jpg")

    ended = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "ftcore", "check", str(tmp_path / "photos")],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert b"caf\\xe9" in ended.stdout
    assert b"Traceback" not in ended.stderr
