"""What a docstring names is there: a renamed function, class or argument is renamed where it is spoken of, too."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import ftcore
import ftcore_plugins

FILES = sorted(
    file for package in (ftcore, ftcore_plugins) for file in Path(str(package.__file__)).parent.rglob("*.py")
)
NAMED = re.compile(r"`(ftcore(?:_plugins)?\.[\w.]+)`")
ENTRY = re.compile(r"^ {4}\*{0,2}([a-zA-Z_]\w*)(?:, \*{0,2}\w+)*: ", re.MULTILINE)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def documented(file: Path) -> list[tuple[Documented, str]]:
    nodes = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, Documented)]
    return [(node, text) for node in nodes if (text := ast.get_docstring(node))]


def section(text: str, title: str) -> str:
    """Return the lines below ``Args:`` and the like, up to the next empty line."""
    return text.partition(f"{title}:\n")[2].partition("\n\n")[0]


def exists(name: str) -> bool:
    """Whether a dotted name can be imported, or reached from what can."""
    head, *rest = name.split(".")
    found = import_module(head)
    for place, part in enumerate(rest, start=1):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = import_module(".".join([head, *rest[:place]]))
        except ModuleNotFoundError:
            return False
    return True


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_every_name_of_ftcore_in_a_docstring_exists(file: Path) -> None:
    named = {name for _, text in documented(file) for name in NAMED.findall(text)}

    assert {name for name in named if not exists(name)} == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_every_argument_that_a_docstring_describes_exists(file: Path) -> None:
    wrong = []
    for node, text in documented(file):
        if isinstance(node, ast.FunctionDef):
            spec = node.args
            names = {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg] if a}
            wrong += [f"{node.name}: {name}" for name in ENTRY.findall(section(text, "Args")) if name not in names]

    assert wrong == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_every_error_that_a_docstring_announces_exists(file: Path) -> None:
    known = {node.id for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Name)}
    announced = {name for _, text in documented(file) for name in ENTRY.findall(section(text, "Raises"))}
    errors = known | set(vars(__import__("builtins"))) | {"DataError", "UserError", "NotFiniteError", "PeerFailed"}

    assert announced - errors - {"StoppedBySignal", "CheckFailedError", "NotApplicableError"} == set()


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("ftcore.data.ImageSplit.name")
    assert exists("ftcore.training.loop.fit")
    assert not exists("ftcore.data.ImageSplitt")
    assert not exists("ftcore.loading.order")
