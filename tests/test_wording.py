"""What a user reads is in the field's standard English: words and turns that a stranger stumbles over are not in it."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from .pages import PAGES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

BANNED = {
    r"(?<!\.)pictures?(?!:)": "image",
    r"learnt|learns by heart": "trained, learned, overfitting",
    r"is told|are told|was told|nobody|nowhere|somebody's|whoever": "name the actor",
    r"which is said|is said|that is said|says so": "is logged, a warning",
    r"go(?:es)? on(?! (?:with )?standard)|gone on|went on": "continue, resume",
    r"begun|began": "started",
    r"whole numbers?|is not whole|is whole": "integer, complete",
    r"beside|behind": "with, in addition to, after",
    r"(?<!there )is no (?!longer|better|worse|lower|higher|more)\w+": "is not a",
    r"(?:there (?:is|are) (?:\{|\.\.\.))": "available:",
    r"does nothing|do nothing but": "has no effect",
    r"(?:same|other|different) bits|bits of a run": "bitwise identical",
    r"says other things|other things of": "differs",
    r", for (?:it|they|nothing|nobody|only|there|whoever|its|most)\b": "because",
    r"share of (?:the|an|it|a)\b|its share|share each": "fraction, split",
    r"no room|room for|room left|finds room": "space",
    r"holds? (?:a|no|the|its|more|what)\b": "contain, has",
    r"(?:image|images|line|lines|ms|object|table|pass|process|megabyte|number|GB|MB|s) an? "
    r"(?:image|second|epoch|step|GPU|micro-batch|line|pass|run|batch|network|class)(?!-)": "per",
    r"answers? (?:with|otherwise|nothing|by)|who answers|answers it|takes one answer": "implement, return, result",
    r"handed|hand over|hands over": "passed",
    r"asked for|asks for it|is asked|are asked": "requested, called",
    r"as it is\b(?! not)|as they are|as it was|of its own|of their own|of one's own": "unchanged, separate, its own",
    r"so many|so often|as often|and nothing else|nothing but": "give the number; only",
    r"of now|of before|as ftcore did": "current, earlier",
    r"lies? in|stands for|goes round|looks? alike|twice over": "is in, represents, wraps, near-duplicate",
    r"by heart|at its start|the likes": "plain words",
    r"would never learn|never learn|learns? too|learns? in|that learns?\b": "trainable, trained",
}
"""What is not written -> what is."""

REFERENCE = {"hooks.py", "schema.py", "testing.py", "errors.py", "model.py", "predict.py", "load.py"}
"""Modules whose docstrings are on pages of the reference, with those of `ftcore.types`."""


def _spelt(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_spelt(part) if isinstance(part, ast.Constant) else "{x}" for part in node.values)
    return ""


def _texts(file: Path) -> list[tuple[int, str]]:
    """Return every text of a module with more than one word, and the help that docstrings of commands are."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [
        (node.lineno, _spelt(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inside | silent
    ]
    found += [
        (node.lineno, ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (_is_command(node) or _is_shown(node, file))
    ]
    return [(line, " ".join(text.split())) for line, text in found if " " in text.strip()]


def _is_command(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any("command" in ast.unparse(d) or "group" in ast.unparse(d) for d in node.decorator_list)


def _is_shown(node: ast.ClassDef | ast.FunctionDef, file: Path) -> bool:
    """Whether a docstring is in `ftcore plugins show`, or on a page of the reference."""
    if node.name.startswith("_"):
        return False
    if file.name in REFERENCE or file.parent.name == "types":
        return True
    return isinstance(node, ast.ClassDef) and (node.name.endswith("Config") or "hookimpl" in ast.unparse(node))


def _prose(page: Path) -> str:
    """Return the text of a page without blocks of code and inline code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "x", text)


def stumbles(text: str) -> list[str]:
    """Return what a stranger stumbles over, with what to write."""
    return [
        f"{found.group(0)!r}: {instead}"
        for pattern, instead in BANNED.items()
        if (found := re.search(rf"\b(?:{pattern})(?!\w)", text, re.IGNORECASE))
    ]


SOURCES = [
    file
    for folder in (
        "core/ftcore",
        "plugins/ftcore_plugins",
        *(str(p.relative_to(ROOT)) for p in ROOT.glob("contrib/*/src")),
    )
    for file in sorted((ROOT / folder).rglob("*.py"))
]


TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("contrib/*/README.md"))]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_and_help_are_in_plain_english(file: Path) -> None:
    wrong = {f"{line}: {text[:200]}": found for line, text in _texts(file) if (found := stumbles(text))}

    assert wrong == {}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_plain_english(page: Path) -> None:
    lines = re.split(r"\n\n|\n(?=[-|#])", _prose(page))
    wrong = {" ".join(part.split())[:200]: found for part in lines if (found := stumbles(" ".join(part.split())))}

    assert wrong == {}
