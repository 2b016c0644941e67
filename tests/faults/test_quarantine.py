"""A broken package disturbs no command that does not name it; one that does gets package, plugin and cause."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn")
ASKED_BY_A_RUN = [hook for hook in HOOK_ARGUMENTS if hook != "list_models"]
ANSWER = "from ftcore import hookimpl\n\nclass Broken:\n    @hookimpl\n    def {hook}(self):\n        {body}\n"
WRAPPER = ANSWER.replace("@hookimpl\n", "@hookimpl(wrapper=True)\n")
GONE = "import {}\n"


def loss(body: str) -> str:
    return ANSWER.format(hook="make_loss", body=body)


WITH_OPTIONS = (
    "from ftcore import hookimpl\n{}\nclass Broken:\n    Config = Options\n    {}\n"
    "    @hookimpl\n    def freeze(self): ..."
)

IMPORTS = {
    "raises at import": ("raise OSError('no licence')\n", "failed to import acme_broken: OSError: no licence"),
    "exits at import": ("raise SystemExit(0)\n", "failed to import acme_broken: SystemExit: 0"),
    "exits at import by a call": ("import sys\nsys.exit('bye')\n", "failed to import acme_broken: SystemExit: bye"),
    "recurses at import": ("def f(): f()\nf()\n", "failed to import acme_broken: RecursionError"),
    "asserts at import": ("assert False, 'never'\n", "failed to import acme_broken: AssertionError: never"),
    "has no memory at import": ("raise MemoryError\n", "failed to import acme_broken: MemoryError"),
    "is not a Python": ("def (\n", "failed to import acme_broken: SyntaxError"),
    "is binary": ("\0\0\0", "failed to import acme_broken: "),
    "needs a library that is not there": (
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_l",
    ),
    "needs a name that is not there": ("from ftcore import Losses\n", "ImportError: cannot import name 'Losses'"),
    "needs a newer ftcore": (f"{loss('...')}    FTCORE_API = (2, 99)\n", "needs hook API 2.99; this is ftcore "),
    "needs another ftcore": (f"{loss('...')}    FTCORE_API = (1, 5)\n", "needs hook API 1.5; this is ftcore "),
    "says nonsense of its API": (f"{loss('...')}    FTCORE_API = 'new'\n", "FTCORE_API is 'new'; expected"),
    "has another class": ("class Broke: ...\n", "acme_broken has no 'Broken'; did you mean 'Broke'?"),
    "is a number": ("Broken = 3\n", "acme_broken:Broken is int; expected a module or a class"),
    "has no hooks": ("class Broken: ...\n", "no hooks found: it has no @ftcore.hookimpl"),
    "has a misspelt hook": (ANSWER.format(hook="make_los", body="..."), "no such hook 'make_los'; did you mean 'make_"),
    "has another's marker": (
        f"import pluggy\nhookimpl = pluggy.HookimplMarker('pytest')\n{loss('...').partition(chr(10))[2]}",
        "make_loss: decorated with the hookimpl of 'pytest', not of ftcore",
    ),
    "has a wrapper that is none": (
        WRAPPER.format(hook="make_loss", body="..."),
        "make_loss: a wrapper must yield once",
    ),
    "takes an unknown argument": (loss("...").replace("(self)", "(self, tsk)"), "unknown argument 'tsk'; did you mean"),
    "has a default": (loss("...").replace("(self)", "(self, task=None)"), "make_loss: task has a default"),
    "has options that are a dict": (WITH_OPTIONS.format("Options = dict", ""), "Config is not an attrs class"),
    "does not take its options": (
        WITH_OPTIONS.format("import attrs\n@attrs.frozen\nclass Options: ...", ""),
        "must take one argument, its Config",
    ),
    "needs an option": (
        WITH_OPTIONS.format("import attrs\n@attrs.frozen\nclass Options:\n    x: int", "def __init__(self, c): ..."),
        "broken.x has no default and must be set",
    ),
}
"""Fault -> source of the package, and what the command that names it says."""

RAISED_WHEN_MADE = loss("...") + "    def __init__(self):\n        raise OSError('no licence')\n"


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Install a package ``acme-broken`` with a plugin ``broken``; it is forgotten afterwards."""
    site, path, modules = tmp_path / "site", list(sys.path), set(sys.modules)

    def write(source: str) -> None:
        info = site / "acme_broken-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("[ftcore.plugins]\nbroken = acme_broken:Broken\n", encoding="utf-8")
        (site / "acme_broken.py").write_text(source, encoding="utf-8")
        sys.path.append(str(site))

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(site)):
            del sys.modules[name]


def check_others_undisturbed() -> None:
    rows = {row["name"]: row["distribution"] for row in json.loads(invoke("plugins", "--json").out)}
    explained = invoke("explain", "--static", "--plugin", "weighted_ce")

    assert rows["broken"] == "acme-broken"
    assert (explained.code, explained.err) == (0, "")
    assert "acme_broken" not in sys.modules


def naming_it(hook: str) -> Any:
    if hook == "list_models":
        return invoke("models", "--plugin", "broken")
    return invoke("explain", "--plugin", "broken", *DIGITS)


@pytest.mark.parametrize("fault", IMPORTS)
def test_a_package_that_cannot_be_activated(fault: str, install: Callable[[str], None]) -> None:
    source, cause = IMPORTS[fault]
    install(source)
    check_others_undisturbed()

    result = naming_it("make_loss")

    assert result.code == 2
    assert "broken" in result.err
    assert "acme-broken 1.0" in result.err or "acme_broken" in result.err
    assert cause in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_a_hook_that_answers_with_something_else(hook: str, install: Callable[[str], None]) -> None:
    install(ANSWER.format(hook=hook, body="return 42"))
    check_others_undisturbed()

    result = naming_it(hook)

    assert result.code == 2
    assert re.search(
        rf"^ftcore: broken\.{hook} \(acme-broken 1\.0, .*acme_broken\.py:4\) returned int 42; expected ", result.err
    )


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_a_hook_that_raises(hook: str, install: Callable[[str], None]) -> None:
    install(ANSWER.format(hook=hook, body="raise ZeroDivisionError('by acme')"))
    check_others_undisturbed()

    with pytest.raises(ZeroDivisionError, match="by acme") as caught:
        naming_it(hook)

    (note,) = caught.value.__notes__
    assert re.fullmatch(
        rf"raised by plugin broken \(acme-broken 1\.0, --plugin broken\) in {hook} \(.*acme_broken\.py:4\)", note
    )


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_a_hook_that_wants_to_end_the_process(hook: str, install: Callable[[str], None]) -> None:
    install(ANSWER.format(hook=hook, body="raise SystemExit(0)"))
    check_others_undisturbed()

    result = naming_it(hook)

    assert result.code == 2
    assert f"broken.{hook} (acme-broken 1.0, " in result.err
    assert "tried to exit the process: SystemExit: 0" in result.err


@pytest.mark.parametrize(
    "hook", [hook for hook in HOOK_ARGUMENTS if hook != "make_average"]
)  # to which nobody may answer
def test_a_wrapper_that_drops_the_result(hook: str, install: Callable[[str], None]) -> None:
    install(WRAPPER.format(hook=hook, body="yield"))
    check_others_undisturbed()

    result = naming_it(hook)

    assert result.code == 2
    assert f"wrapper broken.{hook} (acme-broken 1.0, " in result.err
    assert "returned None and would discard the result" in result.err


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_a_wrapper_that_raises(hook: str, install: Callable[[str], None]) -> None:
    install(WRAPPER.format(hook=hook, body="yield; raise ZeroDivisionError('by acme')"))
    check_others_undisturbed()

    with pytest.raises(ZeroDivisionError, match="by acme") as caught:
        naming_it(hook)

    (note,) = caught.value.__notes__
    assert note.startswith(f"raised by plugin broken (acme-broken 1.0, --plugin broken) in {hook} (")


def test_a_class_that_raises_when_it_is_made(install: Callable[[str], None]) -> None:
    install(RAISED_WHEN_MADE)
    check_others_undisturbed()

    with pytest.raises(OSError, match="no licence") as caught:
        naming_it("make_loss")

    (note,) = caught.value.__notes__
    assert note == "raised by plugin 'broken' (acme-broken 1.0) when acme_broken:Broken was made"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights that a run leaves in which no broken package is named."""
    return trained(tmp_path_factory.mktemp("undisturbed"))


def trained(folder: Path, *arguments: str) -> Any:
    sets = ("train.epochs=1", "train.batch_size=96", f"run.folder={folder / 'run'}")
    result = invoke("run", *DIGITS, *arguments, *(flag for text in sets for flag in ("--set", text)))
    assert result.code == 0, result.err
    (file,) = (folder / "run" / "checkpoints").glob("*/model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("hook", ASKED_BY_A_RUN)
def test_a_hook_that_draws_from_the_global_generators_changes_no_bit(
    hook: str, undisturbed: Any, install: Callable[[str], None], tmp_path: Path
) -> None:
    draws = "import random, numpy, torch; random.random(), numpy.random.rand(), torch.rand(3); return (yield)"
    install(WRAPPER.format(hook=hook, body=draws))

    assert trained(tmp_path, "--plugin", "broken") == undisturbed


@pytest.mark.parametrize(
    "leak", ["threading.Thread(target=threading.Event().wait, daemon=True).start()", "os.open('/dev/null', 0)"]
)
def test_what_a_hook_leaves_behind_changes_no_bit(
    leak: str, undisturbed: Any, install: Callable[[str], None], tmp_path: Path
) -> None:
    install(WRAPPER.format(hook="make_loss", body=f"import os, threading; self.kept = {leak}; return (yield)"))

    assert trained(tmp_path, "--plugin", "broken") == undisturbed


def test_there_are_at_least_60_of_these() -> None:
    marks = [mark for name, test in globals().items() if name.startswith("test_") for mark in marks_of(test)]

    assert sum(len(mark.args[1]) for mark in marks) >= 60


def marks_of(test: Any) -> list[Any]:
    return [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
