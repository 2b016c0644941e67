"""Each of these plugins breaks one contract; exactly that check fails, and says what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ftcore_plugins.defaults
from ftcore.authoring.check import run_checks
from ftcore.authoring.checks import CHECKS
from ftcore.authoring.plugin_under_test import CheckRequest
from ftcore.testing import invoke

from .killing import end, forked

BAD = Path(__file__).parent / "bad_plugins"
FAILURES = {
    "seeds_at_import": ("import", "importing it changed the state of Python's random generator", "do that in the hook"),
    "options_that_change:OptionsThatChange": ("config", "Options.smoothing is mutable", "@attrs.frozen"),
    "misspelt_argument": ("lint", "make_loss: unknown argument 'tsk'", "did you mean 'task'?"),
    "loss_per_sample": (
        "contract",
        "loss_per_sample.make_loss (",
        "has shape (64,); return a scalar",
    ),
    "loss_of_whatever": (
        "tasks",
        "make_loss answers for a task that it has never seen",
        "isinstance(task, ...)",
    ),
    "leaves_a_thread": (
        "effects",
        "a run with the plugin changed running threads",
        "restore it at the end of the run",
    ),
    "own_dice": ("determinism", "two runs of the same configuration differ", "use only the global"),
    "transforms_in_a_function": ("spawn", "it cannot be sent to loader processes", "define it at the top of a module"),
    "state_that_is_dropped": (
        "state",
        "observer Counter: load_state_dict does not restore",
        "everything that state_dict returned",
    ),
    "memory_without_a_state": (
        "resume",
        "a run interrupted in step 3 and resumed differs",
        "state_dict and load",
    ),
    "only_with_adamw": ("combination", "with sgd: KeyError: 'betas'", "do not depend on other plugins"),
    "weights_of_a_share": (
        "ranks",
        "two processes that split each batch end with other weights than",
        "set Loss.denominator to what its mean is divided by",
    ),
}
"""Plugin -> the check that fails, how its message begins, and what it says to change."""


def written(name: str) -> str:
    stem, colon, attribute = name.partition(":")
    return f"{BAD / stem}.py{colon}{attribute}"


def make_checks(plugin: str, folder: str, out: str, but: tuple[str, ...]) -> None:
    """Make all checks, in combination with two plugins instead of all, and write down what came of them."""
    ftcore_plugins.defaults.COMBINATION_CHECKS = {"sgd": (), "mixup": ()}
    found = [
        (finding.check, finding.state, finding.why)
        for finding in run_checks(CheckRequest(plugin, but=but), Path(folder))
    ]
    Path(out).write_text(json.dumps(found))


def checked(plugin: str, folder: Path, *but: str) -> dict[str, tuple[str, str]]:
    process = forked(make_checks, plugin, str(folder), str(folder / "findings.json"), but)
    assert end(process) == 0
    found: list[Any] = json.loads((folder / "findings.json").read_text())
    return {check: (state, why) for check, state, why in found}


@pytest.mark.parametrize("plugin", FAILURES)
def test_a_bad_plugin_fails_exactly_the_check_of_what_is_bad(plugin: str, tmp_path: Path) -> None:
    check, beginning, change = FAILURES[plugin]

    found = checked(written(plugin), tmp_path)

    assert list(found) == list(CHECKS)
    assert [name for name, (state, _) in found.items() if state == "failed"] == [check]
    assert found[check][1].startswith(beginning)
    assert change in found[check][1]


def test_every_check_is_failed_by_a_bad_plugin() -> None:
    assert [check for check, _, _ in FAILURES.values()] == list(CHECKS)
    assert {written(plugin).partition(":")[0] for plugin in FAILURES} == {str(file) for file in BAD.glob("*.py")}


def test_a_check_that_has_failed_leaves_out_those_that_build_on_it(tmp_path: Path) -> None:
    found = checked(written("misspelt_argument"), tmp_path)

    assert found["import"] == ("ok", "the process is unchanged")
    assert found["resume"] == ("not applicable", "lint has failed")


@pytest.mark.parametrize(
    "plugin", ["weighted_ce", "ema", pytest.param("augment", marks=pytest.mark.slow), "freeze_backbone", "sam"]
)
def test_a_built_in_plugin_passes_every_check(plugin: str, tmp_path: Path) -> None:
    found = checked(plugin, tmp_path)

    assert [why for state, why in found.values() if state == "failed"] == []
    assert found["determinism"][0] == found["resume"][0] == found["ranks"][0] == found["combination"][0] == "ok"


@pytest.mark.slow
def test_the_command_says_line_by_line_what_came_of_each_check() -> None:
    result = invoke("plugins", "check", written("misspelt_argument"))

    lines = result.out.splitlines()
    assert result.code == 2
    assert [line.split("  ")[0] for line in lines[:3]] == ["ok", "not applicable", "failed"]
    assert lines[2].endswith("make_loss: unknown argument 'tsk'; did you mean 'task'?; allowed: task, config, ctx")
    assert len(lines) == len(CHECKS)


@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("import os\nos.abort()", "SIGABRT"),
    ],
    ids=["segfault", "exit", "abort"],
)
@pytest.mark.slow
def test_a_plugin_whose_import_kills_the_process_is_reported_with_the_line(
    death: str, how: str, tmp_path: Path
) -> None:
    file = tmp_path / "deadly_hooks.py"
    file.write_text(f"{death}\n")

    result = invoke("plugins", "check", file, "--json")

    first, *others = json.loads(result.out)
    assert result.code == 2
    assert (first["check"], first["state"]) == ("import", "failed")
    assert f"the process died, {how}" in first["why"]
    assert how == "exit code 3" or f'File "{file}", line 2' in first["why"]
    assert {other["why"] for other in others} == {"import has failed"}


def test_a_check_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    found = checked(written("weights_of_a_share"), tmp_path, "ranks")
    unknown = invoke("plugins", "check", "weighted_ce", "--but", "rank")

    assert [why for state, why in found.values() if state == "failed"] == []
    assert found["ranks"] == ("not applicable", "skipped by --but ranks")
    assert unknown.code == 2
    assert "--but rank: no such check; did you mean 'ranks'?; the checks are import, " in unknown.err


def test_a_plugin_that_is_not_there_is_an_error_before_any_check() -> None:
    result = invoke("plugins", "check", "wieghted_ce")

    assert (result.code, result.out) == (2, "")
    assert "no plugin named 'wieghted_ce'; did you mean 'weighted_ce'?" in result.err
