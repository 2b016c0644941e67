"""Checkpoints appear whole or not at all, and hold nothing that can execute code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftcore.checkpoint import optimizer_state, save, to_json, write_folder
from ftcore.config import Flags, load
from ftcore.loop import Parts, Progress, fit
from ftcore.run import prepare
from ftcore.testing import invoke


def build(*sets: str, plugins: tuple[str, ...] = ()) -> Parts:
    flags = Flags("digits/cnn", "digits:5-6", plugins=plugins, sets=("train.epochs=1", *sets))
    return prepare(load(None, flags)).assembly.parts


def write_two(folder: Path) -> None:
    (folder / "one.txt").write_text("new")
    (folder / "two.txt").write_text("new")


def write_one_and_fail(folder: Path) -> None:
    (folder / "one.txt").write_text("half")
    raise OSError("no space left on device")


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_written_with_all_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "model", write_two)

    assert entries(tmp_path) == ["deep", "deep/model", "deep/model/one.txt", "deep/model/two.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")

    write_folder(target, write_two)

    assert entries(tmp_path) == ["model", "model/one.txt", "model/two.txt"]


def test_a_writer_that_fails_leaves_no_half_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        write_folder(tmp_path / "model", write_one_and_fail)

    assert entries(tmp_path) == []


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", write_two)

    with pytest.raises(OSError, match="no space left"):
        write_folder(tmp_path / "model", write_one_and_fail)

    assert entries(tmp_path) == ["model", "model/one.txt", "model/two.txt"]
    assert (tmp_path / "model" / "one.txt").read_text() == "new"


def test_a_run_leaves_only_tensors_and_json(tmp_path: Path) -> None:
    sets = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=2"]

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets)

    kept = [path for name in ("checkpoints", "model") for path in (tmp_path / "run" / name).rglob("*")]
    assert result.code == 0
    assert {path.suffix for path in kept if path.is_file()} == {".safetensors", ".json"}
    assert entries(tmp_path / "run" / "model") == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("plugin", ["adamw", "sgd", "rmsprop"])
def test_the_optimizers_state_by_name_is_its_state_dict(plugin: str) -> None:
    parts = build(plugins=(plugin,))
    fit(parts, Progress(), lambda _: None)
    expected = parts.optimizer.state_dict()

    tensors, plain = optimizer_state(parts.network, parts.optimizer)

    names = [name for group in plain["groups"] for name in group["params"]]
    found: dict[int, dict[str, Any]] = {number: {} for number in range(len(names))}
    for key, value in [*tensors.items(), *plain["state"].items()]:
        name, _, entry = key.partition("/")
        found[names.index(name)][entry] = value
    torch.testing.assert_close(found, expected["state"], rtol=0, atol=0)
    assert len(names) == len(set(names)) == len(list(parts.network.parameters()))


def test_the_groups_settings_are_in_the_optimizers_state() -> None:
    parts = build("adamw.lr=0.002")

    _, plain = optimizer_state(parts.network, parts.optimizer)

    for found, group in zip(plain["groups"], parts.optimizer.param_groups, strict=True):
        assert {k: v for k, v in found.items() if k != "params"} == {k: v for k, v in group.items() if k != "params"}


def test_a_checkpoint_holds_network_optimizer_schedule_and_progress(tmp_path: Path) -> None:
    parts, progress = build(), Progress()
    fit(parts, progress, lambda _: None)

    folder = save(tmp_path, parts, progress)

    state = json.loads((folder / "state.json").read_text())
    torch.testing.assert_close(load_file(folder / "model.safetensors"), dict(parts.network.state_dict()))
    assert (
        load_file(folder / "optimizer.safetensors").keys() == optimizer_state(parts.network, parts.optimizer)[0].keys()
    )
    assert state["schedule"]["last_epoch"] == state["progress"]["step"] == 10
    assert state["progress"]["best"]["epoch"] == state["progress"]["epoch"] == 1


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    parts, kept = build(), []

    for epoch, best in enumerate([1, 2, 2, 2], start=1):
        save(tmp_path, parts, Progress(epoch=epoch, step=epoch * 10, best={"epoch": best}))
        kept.append(entries(tmp_path))

    names = [[entry for entry in found if "/" not in entry] for found in kept]
    assert names == [
        ["step-00000010"],
        ["step-00000020"],
        ["step-00000020", "step-00000030"],
        ["step-00000020", "step-00000040"],
    ]


def test_a_number_that_is_not_finite_becomes_null() -> None:
    assert json.loads(to_json({"r2": float("nan"), "scores": [1.0, float("inf")]})) == {
        "r2": None,
        "scores": [1.0, None],
    }


def test_anything_but_plain_data_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        to_json({"folder": Path("runs")})


FAILS_TO_SAVE = """
import torch
from ftcore import hookimpl


class Strange(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["object"] = object()


@hookimpl
def make_optimizer(param_groups):
    return Strange([{"params": list(group.params.values())} for group in param_groups], lr=0.01)
"""


def test_a_first_checkpoint_that_cannot_be_written_leaves_no_run_folder(tmp_path: Path) -> None:
    hooks = tmp_path / "fails_to_save.py"
    hooks.write_text(FAILS_TO_SAVE)
    sets = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=1"]

    with pytest.raises(TypeError, match="not JSON serializable"):
        invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", hooks, *sets)

    assert not (tmp_path / "run").exists()
