"""Nothing in ftcore can read a file in a way that executes what is in it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("core", "plugins", "contrib")
    for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.relative_to(ROOT).parts
)
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
DISTRIBUTED = "torch.distributed.checkpoint"
WORDS = {"trust_remote_code", "allow_pickle", "shell", "unsafe_load", "full_load"}
HARMLESS = {"UnpicklingError", "dumps", "cpu_count"}
"""Writing executes nothing; `plugins check` reads what it wrote a moment before in a process of its own."""
OBJECTS = {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "recv_object_list"}
"""Of `torch.distributed`: they unpickle what another process sends."""
EXECUTES_ITS_OWN = {"core/ftcore/inference/library_network.py": ["exec"]}
"""The lines that an export prints, of a network that a plugin has built by that name: they are tried before."""
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


def unsafe(source: str) -> Iterator[str]:
    """Yield each way to execute what a file says."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names) if module.startswith((DISTRIBUTED, *MODULES)):
                yield from (f"{module}.{name.name}" for name in names if name.name not in HARMLESS)
            case ast.ImportFrom(module="torch.distributed", names=names):
                yield from (name.name for name in names if name.name in {"checkpoint", *OBJECTS})
            case ast.Call(func=function, keywords=keywords):
                yield from (f"{word.arg}=" for word in keywords if word.arg in WORDS and not is_false(word.value))
                yield from named(function, keywords)
            case _:
                pass


def named(function: ast.expr, keywords: list[ast.keyword]) -> Iterator[str]:
    match function:
        case ast.Name(id=name) if name in CALLS:
            yield name
        case ast.Attribute(attr=name) if name in OBJECTS:
            yield name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            if (owner, name) in {("os", "system"), ("os", "popen"), ("builtins", "eval"), ("builtins", "exec")}:
                yield f"{owner}.{name}"
            if (owner, name) == ("torch", "load") and not any(
                k.arg == "weights_only" and is_true(k.value) for k in keywords
            ):
                yield "torch.load"
        case _:
            pass


def is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_executes_what_a_file_says() -> None:
    found = {str(path.relative_to(ROOT)): list(unsafe(path.read_text(encoding="utf-8"))) for path in SOURCES}

    assert len(found) > 100
    assert {path: ways for path, ways in found.items() if ways} == EXECUTES_ITS_OWN


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from pickle import dumps, load",
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=safe)",
        "import torch\ntorch.load(file, weights_only=False)",
        "from torch.distributed.checkpoint import load",
        "from torch.distributed import checkpoint",
        "from torch import distributed\ndistributed.all_gather_object(found, mine)",
        "import numpy\nnumpy.load(file, allow_pickle=True)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
    ],
)
def test_each_way_would_be_found(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import dumps",
        "torch.load(file, weights_only=True)",
        "model.eval()",
        "re.compile(text)",
        "run(a, shell=False)",
    ],
)
def test_what_only_looks_like_one_is_not(source: str) -> None:
    assert not list(unsafe(source))
