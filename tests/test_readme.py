from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ftcore.cli import main
from ftcore.testing import invoke

from .pages import DOCS, ROOT, blocks, execute

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_two_pages_and_the_two_commands_of_the_start() -> None:
    commands = [block.text for block in blocks(README) if block.language == "sh"]

    assert len(README.encode()) <= 8000
    assert "pip install uv && uv run ftcore run --plugin weighted_ce\n" in commands
    assert "pip install uv && uv run pytest\n" in commands


def test_the_readme_does_what_it_says(tmp_path: Path) -> None:
    execute(ROOT / "README.md", tmp_path)

    assert {folder.name for folder in (tmp_path / "runs").iterdir()} >= {"first", "smooth"}


def test_the_hooks_file_of_the_readme_answers_and_wraps(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(README) if block.file == "hooks.py"]
    (tmp_path / "hooks.py").write_text(block.text, encoding="utf-8")

    result = invoke("explain", "--plugin", tmp_path / "hooks.py", "--json")

    tables = json.loads(result.out)
    answers = {row["hook"]: row for row in tables["plugins"]}
    assert answers["make_loss"]["plugin"] == "hooks"
    assert answers["param_groups"]["wrapped by"] == "hooks"
    assert {group["lr"] for group in tables["parameter groups of AdamW"]} == {"0.0001"}


def test_the_readme_names_every_command() -> None:
    section = README.partition("## Commands")[2].partition("\n## ")[0]

    assert {name for name in main.commands if f"`{name}" not in section} == set()


def test_every_figure_of_the_readme_is_one_of_the_benchmarks() -> None:
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    tables = README.partition("## Which recipe?")[2].partition("\n## ")[0], README.partition("## Three figures")[2]
    rows = [row for table in tables for row in table.splitlines() if row.startswith("| ")]
    figures = {figure for row in rows for figure in re.findall(r"\d+\.\d+|\d+ of \d+|\d{3}(?= s)", row)}

    assert len(figures) > 12
    assert {figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured)} == set()
