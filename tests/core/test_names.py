"""Core knows no built-in plugin and no library of networks by name: what it must know of them, they say themselves.

The rule, for every ``.py`` file of ``core/ftcore``:

- The text ``ftcore_plugins`` occurs nowhere, not even in a comment.
- No import, and no identifier, has ``timm``, ``torchvision`` or ``transformers`` in it.
- No string literal has the name of an entry point in pyproject.toml, or one of those three, as a whole word: neither to
  look a plugin up, nor to compare with it, nor to advise it.
- Of names that are ordinary English words (`ORDINARY`) only a literal that refers to the plugin counts: ``--plugin
  folder`` or ``--without folder``, ``folder.OPTION``, or the bare name where it is compared with, handed to, looked up
  in or assigned to something that speaks of plugins or of their options.

Two kinds of text may give a name as an example, because nothing depends on it: docstrings, and what follows ``e.g.``
or ``such as`` in a help text or a message, up to the next ``;`` or ``)``. `ALLOWED` lists the other exceptions.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ftcore
from ftcore.plugins.discovery import load_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(ftcore.__file__).parent
PYPROJECT = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))

LIBRARIES = ("timm", "torchvision", "transformers")
NAMES = frozenset(PYPROJECT["project"]["entry-points"]["ftcore.plugins"]) | {*LIBRARIES}

ORDINARY = frozenset(
    {
        "advice",
        "augment",
        "compile",
        "constant",
        "folder",
        "groups",
        "linear",
        "phases",
        "progress",
        "report",
        "step",
        "table",
    }
)
"""Names of plugins that core has other uses for."""

ALLOWED = {
    (
        "authoring/two_process_check.py",
        "torchmetrics.classification",
    ): "a module of torchmetrics",
    (
        "inference/hub_export.py",
        "-classification\ntags:\n- ftcore\n---",
    ): "what the Hugging Face hub calls the use of such a network",
    (
        "model/stages.py",
        "transformers",
    ): "a module of networks, as their authors call it, beside `features` and `blocks`",
}
"""Where, and which literal -> why."""

EXAMPLE = re.compile(r"(?:e\.g\.|such as)[^;)]*")
OF_PLUGINS = re.compile(r"plugin|installed|options", re.IGNORECASE)


def literals(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line and text of each string that is no docstring, and the code that it meets: see `partner`."""
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            inner: ast.AST = node
            outer = parents[node]
            if isinstance(outer, ast.Expr):
                continue
            while isinstance(outer, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.Starred):
                inner, outer = outer, parents[outer]
            yield node.lineno, node.value, partner(inner, outer)


def partner(inner: ast.AST, outer: ast.AST) -> str:
    """The source of what an expression is compared with, handed to, looked up in or assigned to."""
    match outer:
        case ast.Compare():
            met = [part for part in (outer.left, *outer.comparators) if part is not inner]
        case ast.Call():
            met = [outer.func]
        case ast.Subscript():
            met = [outer.value]
        case ast.Assign():
            met = outer.targets
        case ast.AnnAssign():
            met = [outer.target]
        case ast.keyword():
            return outer.arg or ""
        case _:
            met = []
    return " ".join(map(ast.unparse, met))


def names_in(text: str, met: str) -> set[str]:
    """Names of plugins and libraries that a literal speaks of."""
    text = EXAMPLE.sub("", text)
    words = set(re.findall(r"\w+", text)) & NAMES
    plain = {name for name in words & ORDINARY if refers(name, text, met)}
    return words - ORDINARY | plain


def refers(name: str, text: str, met: str) -> bool:
    told = re.search(rf"--(?:plugin|without)[ =]{name}\b|(?<![\w.-]){name}\.[a-z]", text)
    return bool(told) or (text == name and bool(OF_PLUGINS.search(met)))


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of all things in a file, imported modules among them, and their lines."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for _, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            if not isinstance(node, ast.Constant):
                yield from ((line, name) for name in values if isinstance(name, str))


def violations(source: str, file: str = "") -> list[str]:
    """What a file knows by name, with the line."""
    tree = ast.parse(source)
    found = [
        (line, name)
        for line, text, met in literals(tree)
        for name in names_in(text, met)
        if (file, text) not in ALLOWED
    ]
    found += [(line, name) for line, name in identifiers(tree) if any(library in name for library in LIBRARIES)]
    found += [(line, text) for line, text in enumerate(source.splitlines(), 1) if "ftcore_plugins" in text]
    return [f"line {line}: {what}" for line, what in sorted(set(found))]


FILES = {file.relative_to(ROOT).as_posix(): file for file in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("file", FILES)
def test_core_knows_nobody_by_name(file: str) -> None:
    assert violations(FILES[file].read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize("file", FILES)
def test_core_asks_no_task_of_which_kind_it_is(file: str) -> None:
    compared = [node for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"))) if is_question(node)]

    assert [ast.unparse(node) for node in compared] == []


def is_question(node: ast.AST) -> bool:
    """Whether a task's kind is read, or its name compared with a text."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(re.search(r"task\w*\.name$", ast.unparse(side)) for side in sides) and any(
            isinstance(part, ast.Constant) and isinstance(part.value, str) for side in sides for part in ast.walk(side)
        )
    return isinstance(node, ast.Attribute) and node.attr == "kind" and "task" in ast.unparse(node.value)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("task.kind", True),
        ("data.task.name == 'count'", True),
        ("self.task.name in {'count'}", True),
        ("task.name != other.task.name", False),
        ("argument.kind", False),
    ],
)
def test_a_question_for_the_kind_of_a_task_is_found(code: str, found: bool) -> None:  # noqa: FBT001 - a table
    assert any(map(is_question, ast.walk(ast.parse(code)))) == found


def test_core_asks_for_the_advice_that_there_is() -> None:
    asked = {
        text
        for source in (file.read_text(encoding="utf-8") for file in FILES.values())
        for _, text, met in literals(ast.parse(source))
        if met == "load_defaults().ADVICE"
    }

    assert asked == load_defaults().ADVICE.keys()


@pytest.mark.parametrize("exception", ALLOWED)
def test_every_exception_is_still_needed(exception: tuple[str, str]) -> None:
    file, text = exception

    assert text in {found for _, found, _ in literals(ast.parse(FILES[file].read_text(encoding="utf-8")))}


@pytest.mark.parametrize(
    "source",
    [
        "import timm",
        "def f():\n    from timm.utils.agc import adaptive_clip_grad",
        "from acme import torchvision as tv",
        "if TYPE_CHECKING:\n    import transformers",
        "timm_version = 1",
        "x.torchvision",
        "f(timm=1)",
        "import ftcore_plugins",
        '"""As ftcore_plugins does."""',
        "# ftcore_plugins",
        'module = "ftcore_plugins.defaults"',
        'f"{prefix}timm/{name}"',
        '("torch", "torchvision")',
        'plugin.name == "ddp"',
        '("ddp", "sgd")',
        'raise UserError("lower the rate; --plugin ddp splits")',
        'raise UserError(f"{ways}, bf16, checkpointing or a smaller image help")',
        'raise UserError("a name, e.g. sgd; or --plugin ddp")',
        'sets = "ddp.device=cpu"',
        'plugin.name == "folder"',
        '"folder" in named_plugins',
        'plugin.name in ("step", "other")',
        'find_installed("folder", None)',
        'config.options["folder"]',
        'config.options.get("folder")',
        'PLUGINS = ("table", "folder")',
        'SpeedOption(plugins=("compile",))',
        'say("--plugin folder reads it")',
        'say("--without progress")',
        'say("folder.x")',
        'f"--set step.size={size}"',
    ],
)
def test_a_name_is_found(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""Networks, e.g. of timm; --plugin ddp."""',
        'LR = 1\n"""As `sgd` has it."""',
        'say("model.name, e.g. timm/resnet50")',
        'f"expected names such as [\\"sgd\\"], got {names}"',
        'say("the run folder")',
        'say("run.folder")',
        'state["step"]',
        '{"progress": 1, "groups": 2}',
        'derive_seed("augment", seed)',
        'f"progress.{name}"',
        'axes.set(xscale="linear")',
        'kind == "table"',
        'say("ends in step. A run")',
        'say("sampled")',
        "def timer(): ...",
    ],
)
def test_another_use_of_a_word_is_none(source: str) -> None:
    assert violations(source) == []
