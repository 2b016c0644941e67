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
from ftcore.cli import main
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins.calls import HookCalls
from ftcore_plugins.data import digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

ROOT = Path(__file__).parents[2]
CORE = sorted(Path(ftcore.__file__).parent.rglob("*.py"))
BUILT_IN = sorted(Path(ftcore_plugins.__file__).parent.rglob("*.py"))
CONTRIB = sorted(file for file in (ROOT / "contrib").rglob("src/**/*.py"))

PUBLIC_MODULES = {"ftcore", *re.findall(r"`(ftcore\.\w+)`", ftcore.__doc__ or "")}
"""Modules whose public names plugins may import; anybody's, not only the built-ins. ``ftcore`` itself names them."""


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(module, name)`` of every absolute import, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_every_hook_has_a_contract_and_a_typed_method(hook: str) -> None:
    spec, method = getattr(hooks, hook), getattr(HookCalls, hook)
    arguments = inspect.signature(method).parameters.values()

    assert inspect.getdoc(spec)
    assert [argument.name for argument in arguments][1:] == [
        a for a in HOOK_ARGUMENTS[hook] if a not in {"config", "ctx"}
    ]
    assert all(argument.annotation is not inspect.Parameter.empty for argument in list(arguments)[1:])
    assert inspect.signature(method).return_annotation not in {inspect.Signature.empty, "Any", "None"}


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_every_argument_and_answer_of_a_hook_is_typed_and_none_may_be_returned(hook: str) -> None:
    signature = inspect.signature(getattr(hooks, hook))

    assert all(argument.annotation is not inspect.Parameter.empty for argument in signature.parameters.values())
    assert signature.return_annotation.endswith("| None")


def test_the_hooks_and_their_arguments_are_those_of_the_api_version() -> None:
    assert hooks.HOOK_API == (2, 0)
    assert dict(HOOK_ARGUMENTS) == {
        "build_data": ("source", "config", "ctx"),
        "make_task": ("name", "config", "ctx"),
        "build_model": ("name", "weights", "config", "ctx"),
        "make_transforms": ("spec", "task", "config", "ctx"),
        "batch_transforms": ("task", "spec", "config", "ctx"),
        "build_head": ("slot", "backbone", "task", "config", "ctx"),
        "freeze": ("model", "heads", "backbone", "task", "config", "ctx"),
        "wrap_devices": ("model", "heads", "backbone", "config", "ctx"),
        "precision_context": ("placement", "config", "ctx"),
        "param_groups": ("trainable", "model", "heads", "backbone", "config", "ctx"),
        "make_optimizer": ("param_groups", "config", "ctx"),
        "make_loss": ("task", "config", "ctx"),
        "make_metrics": ("task", "config", "ctx"),
        "make_schedule": ("optimizer", "epochs", "steps_per_epoch", "higher_is_better", "config", "ctx"),
        "make_regularizers": ("trainable", "model", "heads", "config", "ctx"),
        "make_step": ("model", "heads", "backbone", "task", "placement", "precision", "config", "ctx"),
        "make_average": ("model", "placement", "epochs", "steps_per_epoch", "config", "ctx"),
        "make_observers": ("config", "ctx"),
        "list_models": ("config", "ctx"),
    }
    assert sorted(hooks.COLLECT_HOOKS) == [
        "batch_transforms",
        "list_models",
        "make_metrics",
        "make_observers",
        "make_regularizers",
    ]


def test_every_name_that_a_contract_mentions_exists() -> None:
    text = "\n".join([hooks.__doc__ or "", *(getattr(hooks, hook).__doc__ or "" for hook in HOOK_ARGUMENTS)])

    for name in re.findall(r"`ftcore\.([A-Za-z_.]+)`", text):
        head, *rest = name.split(".")
        found: Any = getattr(ftcore, head, None) or importlib.import_module(f"ftcore.{head}")
        for part in rest:
            found = getattr(found, part)


def test_the_public_names_are_sorted_and_complete() -> None:
    imported = {name for node in imports_of_init() for name in node} - {"TYPE_CHECKING", "lazy"}

    assert set(ftcore.__all__) == imported | {"load"}
    assert ftcore.__all__ == sorted(ftcore.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(hasattr(ftcore, name) for name in ftcore.__all__)


def imports_of_init() -> list[list[str]]:
    tree = ast.parse(Path(ftcore.__file__).read_bytes())
    return [[alias.name for alias in node.names] for node in tree.body if isinstance(node, ast.ImportFrom)]


def test_every_type_that_a_hook_takes_or_returns_is_a_public_name() -> None:
    tree = ast.parse(Path(hooks.__file__).read_bytes())
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]

    used = {alias.name for node in relative if (node.module or "").startswith("types.") for alias in node.names}

    assert len(used) > 10
    assert used <= set(ftcore.__all__)


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_the_core_knows_no_built_in_plugin(file: Path) -> None:
    assert "ftcore_plugins" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [*BUILT_IN, *CONTRIB], ids=lambda file: "/".join(file.parts[-3:]))
def test_a_plugin_imports_only_public_names(file: Path) -> None:
    used = [(module, name) for module, name in imports(file) if module.partition(".")[0] == "ftcore"]

    assert {module for module, _ in used} <= PUBLIC_MODULES
    assert not [name for _, name in used if name.startswith("_")]
    for module, name in used:
        exported = getattr(importlib.import_module(module), "__all__", None)
        assert exported is None or name in exported, f"{module} does not export {name}"


PACKAGES = sorted(file.parent for file in CORE if file.name == "__init__.py")


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_a_package_says_in_one_sentence_what_it_is_and_exports_sorted_names(folder: Path) -> None:
    name = ".".join(folder.relative_to(Path(ftcore.__file__).parents[1]).parts)
    package = importlib.import_module(name)

    assert package.__doc__
    assert package.__doc__.partition("\n")[0].endswith(".")
    assert package.__all__ == sorted(package.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert [exported for exported in package.__all__ if not hasattr(package, exported)] == []
    # a module of that name would take the name's place as soon as somebody imports it
    assert set(package.__all__).isdisjoint(file.stem for file in folder.glob("*.py"))


def options(command: click.Command, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the options of a command, and of those below it."""
    yield name, [" ".join([*option.opts, *option.secondary_opts]) for option in command.params]
    for inner, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{name} {inner}".strip())


def test_the_commands_and_their_options_are_these() -> None:
    flags = [
        "--epochs",
        "--lr",
        "--batch-size",
        "--image-size",
        "--weights",
        "--seed",
        "--workers",
        "--device",
        "--out",
    ]
    what_to_run = ["config", "--model", "--data", "--recipe", "--plugin", "--without", *flags, "--set"]
    trained = ["--json", "--quiet -q", "--nproc", "--max-restarts", "--traceback"]
    assert dict(options(main, "")) == {
        "": ["--version", "--traceback"],
        "check": ["data", "--plugin", "--without", "--set", "--json", "--traceback"],
        "init": ["data", "--model", "--out", "--plugin", "--without", "--set", "--traceback"],
        "run": [*what_to_run, "--from", "--resume", "--allow-drift", "--seeds", *trained],
        "folds": [*what_to_run, "--k", "--repeats", "--json", "--quiet -q", "--traceback"],
        "resume": ["run", "--plugin", "--set", "--allow-drift", *trained],
        "replay": ["run", "--plugin", "--json", "--traceback"],
        "runs": ["folder", "--where", "--json"],
        "compare": ["runs", "--plugin", "--data", "--split", "--json", "--html", "--traceback"],
        "serve": [
            "run",
            "--plugin",
            "--host",
            "--port",
            "--max-mb",
            "--max-megapixels",
            "--max-total-mb",
            "--max-connections",
            "--batch-size",
            "--token-file",
            "--insecure",
            "--allow-host",
            "--tta",
            "--traceback",
        ],
        "export": ["run", "--plugin", "--format", "--out", "--int8", "--traceback"],
        "explain": [*what_to_run, "--static", "--devices", "--json", "--traceback"],
        "plugins": ["--kind", "--search", "--config", "--plugin", "--without", "--json"],
        "plugins show": ["name", "--json"],
        "plugins check": ["name", "--model", "--data", "--plugin", "--without", "--set", "--but", "--json"],
        "plugins new": ["name", "--hook", "--in-house"],
        "models": ["pattern", "--max-params", "--pretrained", "--measure", "--plugin", "--json", "--traceback"],
        "inspect": ["model", "--plugin", "--without", "--set", "--classes", "--depth", "--traceback"],
        "report": ["run", "--plugin", "--why", "--open", "--traceback"],
        "trust": ["run", "--show", "--json", "--traceback"],
        "predict": [
            *("run", "--plugin", "pictures", "--tta", "--why", "--top", "--json", "--csv", "--raw-csv", "--traceback")
        ],
        "evaluate": ["run", "--plugin", "--data", "--split", "--tta", "--json", "--traceback"],
        "ensemble": ["runs", "--plugin", "--out", "--weights", "--traceback"],
        "soup": ["runs", "--plugin", "--out", "--uniform", "--traceback"],
        "find": [],
        "find speed": [*what_to_run, "--seconds", "--json", "--traceback"],
        "find lr": [*what_to_run, "--from", "--to", "--steps", "--png", "--json", "--traceback"],
        "find batch": [*what_to_run, "--max", "--memory", "--json", "--traceback"],
    }


def test_the_weights_that_are_shipped_are_small() -> None:
    assert digits.WEIGHTS.stat().st_size <= 1_000_000
