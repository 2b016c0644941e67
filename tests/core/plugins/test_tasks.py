"""The class of a task is found by its name, and a task must be read again as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import ftcore
from ftcore.testing import invoke
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.testing import Result

RUN = ("run", "--data", "digits:5-6", "--model", "digits/cnn", "--set", "train.epochs=1", "--set", "train.threads=1")

HOOKS = """

from ftcore import hookimpl
from ftcore_plugins.tasks import Classification


class Odd(Classification):
    name = "odd"
    {method}


@hookimpl
def make_task(name):
    return Odd if name == "odd" else None
"""


def run(folder: Path, text: str, *more: str) -> Result:
    (folder / "hooks.py").write_text(text, encoding="utf-8")
    return invoke(*RUN, "--plugin", folder / "hooks.py", "--set", f"run.folder={folder / 'run'}", *more)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("def state(self): return {'names': {1, 2}}", "Odd.read does not take what state() gives: TypeError"),
        ("def state(self): return {}", "Odd.read does not take what state() gives: KeyError: 'names'"),
        ("def state(self): return {'names': ['5', '6']}", "Odd.read(state()) is not equal to the task"),
    ],
)
def test_a_task_that_cannot_be_read_again_is_refused_before_the_first_step(
    tmp_path: Path, method: str, message: str
) -> None:
    result = run(tmp_path, HOOKS.format(method=method), "--set", "data.task=odd")

    assert result.code == 2
    assert message in result.err
    assert "hooks.make_task" in result.err
    assert not (tmp_path / "run").exists()


def test_data_of_another_task_than_the_one_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    text = """
from ftcore import Data, hookimpl
from ftcore_plugins.tasks import Classification

@hookimpl
def build_data():
    return Data([], [], Classification(("a", "b"), (1, 1), 2), "0")
"""

    result = run(tmp_path, text, "--set", "data.task=regression")

    assert result.code == 2
    assert "data.task = 'regression' (--set data.task=regression), and hooks (" in result.err
    assert "gives a task 'classification'" in result.err


def test_a_class_of_another_name_is_refused(tmp_path: Path) -> None:
    text = HOOKS.format(method="pass").replace('if name == "odd" else None', 'if name == "even" else None')

    result = run(tmp_path, text, "--set", "data.task=even")

    assert result.code == 2
    assert "expected ftcore.Task, or one derived from it, whose name is 'even'" in result.err


def test_one_that_is_derived_from_classification_has_its_losses_metrics_and_report(tmp_path: Path) -> None:
    result = run(tmp_path, HOOKS.format(method="pass"), "--set", "data.task=odd", "--plugin", "weighted_ce", "--json")

    assert result.code == 0, result.err
    assert (result.report["hooks"]["make_task"], result.report["hooks"]["make_loss"]) == ("hooks", "weighted_ce")
    assert "Confusion matrix" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "task"),
    [
        (
            {"kind": "classification", "names": ["5", "6"], "counts": [3, 4], "images": 7, "mean": [], "std": []},
            Classification(("5", "6"), (3, 4), 7),
        ),
        (
            {"kind": "multilabel", "names": ["5", "6"], "counts": [3, 4], "images": 7, "mean": [], "std": []},
            Multilabel(("5", "6"), (3, 4), 7, thresholds=(0.25, 0.5)),
        ),
        (
            {
                "kind": "regression",
                "names": ["a", "b"],
                "counts": [],
                "images": 7,
                "mean": [1.0, 2.0],
                "std": [3.0, 4.0],
            },
            Regression(("a", "b"), 7, (1.0, 2.0), (3.0, 4.0)),
        ),
    ],
    ids=lambda given: given["kind"] if isinstance(given, dict) else "",
)
def test_a_model_that_was_written_before_tasks_were_objects_is_read(
    tmp_path: Path, given: dict[str, object], task: ftcore.Task
) -> None:
    assert invoke(*RUN, "--set", f"run.folder={tmp_path / 'run'}").code == 0
    file = tmp_path / "run" / "model" / "model.json"
    description = json.loads(file.read_text())
    description |= {"format": 1, "task": given}
    description["metrics"] |= {"thresholds": [0.25, 0.5]}
    file.write_text(json.dumps(description))

    found = ftcore.load(tmp_path / "run")

    assert found.task == task
