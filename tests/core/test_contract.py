from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ftcore
import ftcore_plugins
from ftcore import hooks
from ftcore.calls import Calls
from ftcore.cli import main
from ftcore.lint import SPECS
from ftcore_plugins import digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

CORE = sorted(Path(ftcore.__file__).parent.rglob("*.py"))
BUILT_IN = sorted(Path(ftcore_plugins.__file__).parent.rglob("*.py"))

OPEN_MODULES = {
    "ftcore",
    "ftcore.config",
    "ftcore.console",
    "ftcore.files",
    "ftcore.freezing",
    "ftcore.heads",
    "ftcore.images",
    "ftcore.labelled",
    "ftcore.log",
    "ftcore.predict",
    "ftcore.shapes",
    "ftcore.splitting",
    "ftcore.spread",
    "ftcore.stages",
    "ftcore.weights",
}
"""Modules whose public names plugins may import; anybody's, not only the built-ins."""


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(module, name)`` of every absolute import, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_has_a_contract_and_a_typed_method(hook: str) -> None:
    spec, method = getattr(hooks, hook), getattr(Calls, hook)
    arguments = inspect.signature(method).parameters.values()

    assert inspect.getdoc(spec)
    assert [argument.name for argument in arguments][1:] == [a for a in SPECS[hook] if a not in {"config", "ctx"}]
    assert all(argument.annotation is not inspect.Parameter.empty for argument in list(arguments)[1:])
    assert inspect.signature(method).return_annotation not in {inspect.Signature.empty, "Any", "None"}


@pytest.mark.parametrize("hook", SPECS)
def test_every_argument_and_answer_of_a_hook_is_typed_and_none_may_be_returned(hook: str) -> None:
    signature = inspect.signature(getattr(hooks, hook))

    assert all(argument.annotation is not inspect.Parameter.empty for argument in signature.parameters.values())
    assert signature.return_annotation.endswith("| None")


def test_the_hooks_and_their_arguments_are_those_of_the_api_version() -> None:
    assert hooks.HOOK_API == (1, 5)
    assert dict(SPECS) == {
        "build_data": ("source", "config", "ctx"),
        "build_model": ("name", "weights", "config", "ctx"),
        "make_transforms": ("spec", "task", "config", "ctx"),
        "batch_transforms": ("task", "spec", "config", "ctx"),
        "build_head": ("slot", "backbone", "task", "config", "ctx"),
        "freeze": ("model", "heads", "backbone", "task", "config", "ctx"),
        "wrap_devices": ("model", "heads", "backbone", "config", "ctx"),
        "precision_context": ("placement", "config", "ctx"),
        "param_groups": ("learning", "model", "heads", "backbone", "config", "ctx"),
        "make_optimizer": ("param_groups", "config", "ctx"),
        "make_loss": ("task", "config", "ctx"),
        "make_metrics": ("task", "config", "ctx"),
        "make_schedule": ("optimizer", "epochs", "steps_per_epoch", "higher_is_better", "config", "ctx"),
        "make_regularizers": ("learning", "model", "heads", "config", "ctx"),
        "make_step": ("model", "heads", "backbone", "task", "placement", "precision", "config", "ctx"),
        "make_average": ("model", "placement", "epochs", "steps_per_epoch", "config", "ctx"),
        "make_observers": ("config", "ctx"),
        "list_models": ("config", "ctx"),
    }
    assert sorted(hooks.ALL) == [
        "batch_transforms",
        "list_models",
        "make_metrics",
        "make_observers",
        "make_regularizers",
    ]


def test_every_name_that_a_contract_mentions_exists() -> None:
    text = "\n".join([hooks.__doc__ or "", *(getattr(hooks, hook).__doc__ or "" for hook in SPECS)])

    for name in re.findall(r"`ftcore\.([A-Za-z_.]+)`", text):
        head, *rest = name.split(".")
        found: Any = getattr(ftcore, head, None) or importlib.import_module(f"ftcore.{head}")
        for part in rest:
            found = getattr(found, part)


def test_the_public_names_are_sorted_and_complete() -> None:
    imported = {name for node in imports_of_init() for name in node}

    assert set(ftcore.__all__) == imported
    assert ftcore.__all__ == sorted(ftcore.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(hasattr(ftcore, name) for name in ftcore.__all__)


def imports_of_init() -> list[list[str]]:
    tree = ast.parse(Path(ftcore.__file__).read_bytes())
    return [[alias.name for alias in node.names] for node in tree.body if isinstance(node, ast.ImportFrom)]


def test_every_type_that_a_hook_takes_or_returns_is_a_public_name() -> None:
    tree = ast.parse(Path(hooks.__file__).read_bytes())
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]

    used = {alias.name for node in relative if node.module in {"backbone", "parts", "events"} for alias in node.names}

    assert used <= set(ftcore.__all__)


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_the_core_knows_no_built_in_plugin(file: Path) -> None:
    assert "ftcore_plugins" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", BUILT_IN, ids=lambda file: file.stem)
def test_a_built_in_plugin_imports_only_what_any_plugin_may(file: Path) -> None:
    used = [(module, name) for module, name in imports(file) if module.partition(".")[0] == "ftcore"]

    assert {module for module, _ in used} <= OPEN_MODULES
    assert not [name for _, name in used if name.startswith("_")]
    assert {name for module, name in used if module == "ftcore"} <= set(ftcore.__all__)


def options(command: click.Command, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the options of a command, and of those below it."""
    yield name, [" ".join([*option.opts, *option.secondary_opts]) for option in command.params]
    for inner, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{name} {inner}".strip())


def test_the_commands_and_their_options_are_these() -> None:
    what_to_run = ["config", "--model", "--data", "--plugin", "--without", "--set"]
    shown = ["--json", "--quiet -q"]
    assert dict(options(main, "")) == {
        "": ["--version"],
        "check": ["data", "--plugin", "--without", "--set", "--json"],
        "run": [*what_to_run, "--from", "--resume", "--allow-drift", *shown, "--nproc", "--max-restarts"],
        "resume": ["run", "--set", "--allow-drift", *shown, "--nproc", "--max-restarts"],
        "replay": ["run", "--json"],
        "runs": ["folder", "--where", "--json"],
        "compare": ["runs", "--data", "--json", "--html"],
        "serve": ["run", "--host", "--port", "--max-mb", "--batch-size", "--tta"],
        "export": ["run", "--format", "--out", "--int8"],
        "explain": [*what_to_run, "--static", "--devices", "--json"],
        "plugins": ["--config", "--plugin", "--without", "--json"],
        "plugins show": ["name", "--json"],
        "plugins check": ["name", "--model", "--data", "--plugin", "--without", "--set", "--but", "--json"],
        "plugins new": ["name", "--hook", "--in-house"],
        "models": ["pattern", "--max-params", "--pretrained", "--measure", "--plugin", "--json"],
        "inspect": ["model", "--plugin", "--without", "--set", "--classes", "--depth"],
        "report": ["run", "--why"],
        "predict": ["run", "pictures", "--tta", "--why", "--top", "--json", "--csv"],
        "evaluate": ["run", "--data", "--split", "--tta", "--json"],
        "ensemble": ["runs", "--out", "--weights"],
        "soup": ["runs", "--out", "--uniform"],
        "find": [],
        "find speed": [*what_to_run, "--seconds", "--json"],
        "find lr": [*what_to_run, "--from", "--to", "--steps", "--png", "--json"],
        "find batch": [*what_to_run, "--max", "--memory", "--json"],
    }


def test_the_weights_that_are_shipped_are_small() -> None:
    assert digits.WEIGHTS.stat().st_size <= 1_000_000
