"""A description of a model that no run can have written is refused with the key, the value and what is allowed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

WRONG: dict[str, tuple[str, Any]] = {
    "a side that is a text": ("input.size", ["8", 8]),
    "a side of 100,000": ("input.size", [100_000, 8]),
    "a side of 0": ("input.size", [0, 8]),
    "one side": ("input.size", [8]),
    "no size": ("input.size", None),
    "a crop of 1e-9": ("input.crop_fraction", 1e-9),
    "an unknown interpolation": ("input.interpolation", "magic"),
    "an interpolation that is an object": ("input.interpolation", {}),
    "an unknown crop": ("input.crop_mode", "zoom"),
    "no mean": ("input.mean", []),
    "a mean that is a text": ("input.mean", ["a", "b", "c"]),
    "a std of 0": ("input.std", [0, 0, 0]),
    "a huge mean": ("input.mean", [10**310]),
    "a channel too many": ("input.channels", 10**9),
    "a share that is a text": ("share", "1"),
    "a share of 0": ("share", 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_no_run_writes_is_refused_by_name(digits: Path, tmp_path: Path, name: str) -> None:
    key, value = WRONG[name]
    run = shutil.copytree(digits, tmp_path / "run")
    file = run / "model" / "model.json"
    description = json.loads(file.read_text())
    section, _, inner = key.rpartition(".")
    (description[section] if section else description)[inner] = value
    file.write_text(json.dumps(description))

    found = invoke("predict", run, "picture.jpg")

    assert found.code == 2
    assert found.err.startswith(f"ftcore: cannot read {file}: ValueError: {key} is {value!r:.80}; expected ")


WRONG_TASKS: dict[str, tuple[Any, str]] = {
    "a task that there is not": ({"name": "x", "state": {}}, "no plugin supplies make_task for a task 'x'"),
    "a task that is a list": (["classification"], "cannot read"),
    "no names": ({"names": []}, "names must be unique strings, at least one, not []"),
    "names that are lists": ({"names": [["a"], ["b"], ["c"]]}, "names must be unique strings"),
    "two names that are the same": ({"names": ["5", "5", "7"]}, "names must be unique strings"),
    "counts that are texts": ({"counts": ["1"]}, "counts are 2 numbers, not ['1']"),
    "what no task has": ({"colour": 1}, "a task has no colour"),
}


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_a_task_that_no_run_writes_is_refused(digits: Path, tmp_path: Path, name: str) -> None:
    task, message = WRONG_TASKS[name]
    run = shutil.copytree(digits, tmp_path / "run")
    file = run / "model" / "model.json"
    description = json.loads(file.read_text())
    if isinstance(task, list) or "name" in task:
        description["task"] = task
    else:
        description["task"]["state"] |= task
    file.write_text(json.dumps(description))

    found = invoke("predict", run, "picture.jpg")

    assert (found.code, message in found.err) == (2, True), found.err


@pytest.mark.parametrize("weights", ["default", "/etc/passwd", "weights.pth"])
def test_weights_that_a_model_names_are_not_looked_at(digits: Path, tmp_path: Path, weights: str) -> None:
    run = shutil.copytree(digits, tmp_path / "run")
    file = run / "model" / "model.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps(description | {"model": description["model"] | {"weights": weights}}))

    assert invoke("evaluate", run).code == 0
