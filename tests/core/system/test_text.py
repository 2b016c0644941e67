"""No name acts where people read it."""

from __future__ import annotations

import csv
import io
import unicodedata
from typing import TYPE_CHECKING

import pytest

from ftcore.inference.output import PredictionWriter
from ftcore.system.text import escape_markdown, printable, spreadsheet_cell
from ftcore.testing import image_folder, invoke
from ftcore.types.task import Prediction
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\nb",
    "a\rb",
    "a\u2028b",
    "a\x85b",
    "\u202egpj.exe",
    "\udce9",
    "\x00",
    "\u2066x",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_acts_is_spelt_out(name: str) -> None:
    shown = printable(name)

    assert all(unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"} for character in shown)
    assert all(unicodedata.bidirectional(character) not in {"RLO", "LRO", "RLI", "LRI", "FSI"} for character in shown)
    assert len(printable(f"{name}\n{name}", lines=True).split("\n")) == len(f"{name}\n{name}".split("\n"))


def test_every_other_character_stays() -> None:
    for text in ("café", "漢字", "עברית", "👩‍👩‍👧", "a b", "\\x1b", "~^|"):
        assert printable(text) == text


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' calc'!A0", "\t=1", " =1", "\uff1d1", "-", "\r=1"]
)
def test_a_cell_that_a_spreadsheet_would_compute_is_a_text(cell: str) -> None:
    assert spreadsheet_cell(cell)[0] in "'\\"


@pytest.mark.parametrize("cell", ["-1", "+1.5e-3", "-inf", "dog", "a=b", ""])
def test_a_number_or_a_word_is_not_changed(cell: str) -> None:
    assert spreadsheet_cell(cell) == cell


def test_markdown_shows_a_name_as_it_is() -> None:
    assert escape_markdown("a|b<script>`[x](y)`\n# z") == r"a\|b\<script\>\`\[x\](y)\`\\n\# z"


def test_predictions_are_one_line_each_whatever_the_classes_are_called() -> None:
    names = ("=cmd|' calc'!A0", "a\nb", "\x1b[2J")
    found = Prediction("x\n.jpg", dict(zip(names, (0.5, 0.3, 0.2), strict=True)), ())  # type: ignore[arg-type]
    task = Classification(names)

    for forms in ({}, {"as_csv": True}, {"top": 3}, {"as_json": True}, {"top": 2, "as_csv": True}):
        line = PredictionWriter(task, **forms).line(found)
        assert "\n" not in line
        assert "\x1b" not in line
    assert PredictionWriter(task, as_csv=True).header.count("\n") == 0
    (row,) = csv.reader(io.StringIO(PredictionWriter(task, as_csv=True).line(found)))
    assert row[:2] == ["x\\n.jpg", "'=cmd|' calc'!A0"]
    (raw,) = csv.reader(io.StringIO(PredictionWriter(task, as_csv=True, raw_csv=True).line(found)))
    assert raw[:2] == ["x\n.jpg", "=cmd|' calc'!A0"]


def test_no_command_prints_what_a_folder_is_called_to_the_terminal(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("\x1b]0;a\x07", "b\nc"))

    for found in (invoke("check", data), invoke("check", f"{data}/\x1b[2J"), invoke("runs", f"{tmp_path}/\x1b[2J")):
        assert "\x1b" not in found.out + found.err
        assert "\x07" not in found.out + found.err
