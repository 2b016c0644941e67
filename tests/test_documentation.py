"""The documentation is built without a warning, what it names exists, and what it tells the reader to do works."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml  # type: ignore[import-untyped]

import ftcore
import ftcore_plugins
from ftcore.authoring.checks import CHECKS
from ftcore.hooks import HOOK_ARGUMENTS

from .core.test_layers import LAYERS
from .pages import DOCS, PAGES, ROOT, blocks, check_command, check_inline_code, execute

if TYPE_CHECKING:
    from types import ModuleType

QUICK = {"start.md", "exit-codes.md"}
"""Pages whose blocks are executed in the quick suite; the README has tests of its own."""

LANGUAGES = {"sh", "python", "toml", "text", ""}
"""Of blocks; the last has diagrams, and the table of contents."""


GENERATED = {"commands", "configuration", "events", "hooks", "packages", "plugins"}
"""Pages of the reference, made when the site is built."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT if page.name == "README.md" else DOCS))


EXECUTED = [
    page
    for page in PAGES
    if page.name != "README.md" and any(block.is_run for block in blocks(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=name(page), marks=() if name(page) in QUICK else [pytest.mark.slow, pytest.mark.timeout(600)]
        )
        for page in EXECUTED
    ],
)
def test_every_block_of_a_page_works(page: Path, tmp_path: Path) -> None:
    execute(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        assert block.language in LANGUAGES, f"{page.name}, line {block.line}: {block.language}"
        if block.language == "sh" and not block.mark.startswith("exit code"):
            for command in block.ftcore_commands():
                check_command(command, f"{page.name}, line {block.line}")
    check_inline_code(text, page.name)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    """Sphinx checks those of the site, headings too; the README is read where it lies."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    made = {DOCS / "reference" / f"{stem}.md" for stem in GENERATED}

    assert [link for link in links if not (file := (page.parent / link).resolve()).exists() and file not in made] == []


def test_a_block_that_is_not_executed_says_why() -> None:
    marks = {block.mark for page in PAGES for block in blocks(page.read_text(encoding="utf-8"))} - {"", "output"}

    assert [mark for mark in marks if not re.match(r"(not run|exit code \d+): .{8,}", mark)] == []


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_hold_every_hook(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-E", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    hooks = (tmp_path / "site" / "reference" / "hooks.html").read_text(encoding="utf-8")
    assert {file.stem for file in (DOCS / "reference").glob("*.md")} == GENERATED
    assert re.findall(r"<h2>(\w+)<", hooks) == list(HOOK_ARGUMENTS)
    assert "label_smoothing" in (tmp_path / "site" / "reference" / "plugins.html").read_text(encoding="utf-8")


def test_read_the_docs_builds_these_pages_with_a_group_that_exists() -> None:
    """Its schema is not here to check against; that what it names exists is."""
    settings = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    (group,) = re.findall(
        r"--group (\w+)", " ".join(settings["build"]["jobs"]["install"]).partition("pip install .")[2]
    )

    assert (ROOT / settings["sphinx"]["configuration"]) == DOCS / "conf.py"
    assert {re.match(r"[\w-]+", name)[0] for name in groups[group]} == {"furo", "myst-parser", "sphinx"}  # type: ignore[index]


def test_the_page_on_publishing_names_every_check_in_order() -> None:
    text = (DOCS / "tutorials" / "publish.md").read_text(encoding="utf-8").partition("| check |")[2]

    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)[: len(CHECKS)] == list(CHECKS)


def test_the_guide_has_all_its_rows() -> None:
    text = (DOCS / "guide.md").read_text(encoding="utf-8")

    assert re.findall(r"^\| (G\d+) \|", text, flags=re.MULTILINE) == [f"G{number}" for number in range(1, 24)]


def literals(node: ast.expr) -> str:
    """Return what stands in a message as it is shown; nothing where all of it comes from elsewhere."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return "...".join(texts)


def test_troubleshooting_has_every_warning_and_no_message_that_is_not_in_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!warning|message|---)([^*].*?) \|", page, re.MULTILINE)
    sources = [file.read_text(encoding="utf-8") for package in (ftcore, ftcore_plugins) for file in files_of(package)]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    warnings = [
        literals(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warning"
    ]
    texts = " ".join("".join(re.findall(r"[^{}]+", ast.unparse(n))) for n in nodes if isinstance(n, ast.JoinedStr))
    texts += " ".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))

    shown = [max(re.split(r"\.\.\.|'[^']*'|\d+|[a-z]+\.[a-z_]+|:", row), key=len).strip(" ,;:") for row in rows]
    assert [words for words in shown if words not in texts] == []
    assert [text for text in warnings if text and not any(words in text for words in shown)] == []


def files_of(package: ModuleType) -> list[Path]:
    return sorted(Path(package.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("page", [DOCS / "architecture.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_the_ladder_of_packages_is_the_one_that_holds(page: Path) -> None:
    (ladder,) = re.findall(r"```\n(testing .*?)```", page.read_text(encoding="utf-8"), re.DOTALL)

    assert [re.split(r" {2,}", line)[0].split(" | ") for line in ladder.splitlines()] == [
        sorted(packages) for packages in reversed(LAYERS[:-1])
    ]
