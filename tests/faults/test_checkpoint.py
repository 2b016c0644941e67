"""Checkpoints appear whole or not at all, and hold nothing that can execute code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from ftcore import UserError
from ftcore.checkpoints import to_json
from ftcore.checkpoints.atomic import recover_interrupted_writes, resolve_current, write_dir_atomic
from ftcore.checkpoints.checkpoint import (
    CheckpointWriter,
    capture,
    checkpoint_dir,
    latest_checkpoint,
    load_state,
    prune_checkpoints,
)
from ftcore.checkpoints.manifest import find_damage
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.log import RunLog
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit
from ftcore.training.resume_state import networks_to_save, optimizer_state, state_to_save
from ftcore.training.state import Progress, TrainingParts

if TYPE_CHECKING:
    from collections.abc import Callable


def build(*sets: str, plugins: tuple[str, ...] = ()) -> TrainingParts:
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=("train.epochs=1", *sets))
    return prepare(load_config(None, flags)).assembly.parts


def write_two(folder: Path) -> None:
    (folder / "one.txt").write_text("new")
    (folder / "two.txt").write_text("new")


def write_one_and_fail(folder: Path) -> None:
    (folder / "one.txt").write_text("half")
    raise OSError("no space left on device")


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_written_with_all_its_files(tmp_path: Path) -> None:
    write_dir_atomic(tmp_path / "deep" / "model", write_two)

    assert entries(tmp_path) == ["deep", "deep/model", "deep/model/one.txt", "deep/model/two.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")

    write_dir_atomic(target, write_two)

    assert entries(tmp_path) == ["model", "model/one.txt", "model/two.txt"]


def test_a_writer_that_fails_leaves_no_half_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        write_dir_atomic(tmp_path / "model", write_one_and_fail)

    assert entries(tmp_path) == []


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_dir_atomic(tmp_path / "model", write_two)

    with pytest.raises(OSError, match="no space left"):
        write_dir_atomic(tmp_path / "model", write_one_and_fail)

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
    expected = parts.optimization.optimizer.state_dict()

    state = optimizer_state(parts.network, parts.optimization.optimizer)

    names = [name for group in state["groups"] for name in group["params"]]
    found = {names.index(name): held for name, held in state["state"].items()}
    torch.testing.assert_close(found, expected["state"], rtol=0, atol=0)
    assert len(names) == len(set(names)) == len(list(parts.network.parameters()))


def test_the_groups_settings_are_in_the_optimizers_state() -> None:
    parts = build("adamw.lr=0.002")

    state = optimizer_state(parts.network, parts.optimization.optimizer)

    for found, group in zip(state["groups"], parts.optimization.optimizer.param_groups, strict=True):
        assert {k: v for k, v in found.items() if k != "params"} == {k: v for k, v in group.items() if k != "params"}


def test_what_is_read_is_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    parts, progress = build(plugins=("ema",)), Progress()
    fit(parts, progress, lambda _: None)
    state = state_to_save(parts, progress)

    CheckpointWriter().write(capture(networks_to_save(parts, progress), state), tmp_path / "saved")

    assert parts.optimization.average
    assert find_damage(tmp_path / "saved") == ""
    found = load_state(tmp_path / "saved")
    torch.testing.assert_close(found.pop("optimizer")["state"], state.pop("optimizer")["state"], rtol=0, atol=0)
    assert found == state
    for name, network in (("model", parts.network), ("average", parts.optimization.average.network)):
        tensors = load_file(tmp_path / "saved" / f"{name}.safetensors")
        torch.testing.assert_close(tensors, dict(network.state_dict()), rtol=0, atol=0)
    assert state["schedule"]["last_epoch"] == state["progress"]["step"] == 10


def make(folder: Path, step: int) -> Path:
    target = checkpoint_dir(folder, step)
    CheckpointWriter().write(capture({"model": torch.nn.Linear(2, 2)}, {"step": step}), target)
    return target


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(1, 3, [3, 9]), (2, 3, [3, 6, 9]), (2, 9, [6, 9]), (1, 0, [9]), (7, 0, [3, 6, 9])]
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, best: int, left: list[int]) -> None:
    for step in (3, 6, 9):
        make(tmp_path, step)

    prune_checkpoints(checkpoint_dir(tmp_path, 9), keep, checkpoint_dir(tmp_path, best))

    assert names(tmp_path) == [checkpoint_dir(tmp_path, step).name for step in left]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def exchange(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "one bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "one bit of the state": lambda folder: flip(folder / "state.safetensors"),
    "one bit of the plain state": lambda folder: flip(folder / "state.json"),
    "one bit of the manifest": lambda folder: flip(folder / "manifest.json"),
    "half of the weights": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text("[3]"),
    "a manifest of another format": lambda folder: (folder / "manifest.json").write_text('{"format": 99}'),
    "a folder for a file": lambda folder: exchange(folder / "state.json"),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_of_damaged_checkpoints_the_one_before_is_used_and_that_is_said(
    tmp_path: Path, harm: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    RunLog()
    good, bad = make(tmp_path, 3), make(tmp_path, 6)
    harm(bad)

    assert latest_checkpoint(tmp_path) == good
    assert f"{bad} is damaged; using {good.name}" in capsys.readouterr().err


def test_where_all_checkpoints_are_damaged_each_is_named(tmp_path: Path) -> None:
    folders = [make(tmp_path, step) for step in (3, 6)]
    for folder in folders:
        (folder / "state.json").write_text("{}")

    with pytest.raises(UserError) as raised:
        latest_checkpoint(tmp_path)

    assert str(raised.value).splitlines()[0] == "no complete checkpoint"
    assert all(f"{folder}: state.json does not match its checksum" in str(raised.value) for folder in folders)


def test_where_there_is_no_checkpoint_there_is_no_newest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None


def test_what_a_killed_process_left_is_finished_or_removed(tmp_path: Path) -> None:
    for name in (".new-step-3-aa", ".gone-step-1", ".old-model-bb", ".old-step-2-cc", "step-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    (tmp_path / ".new-report.json").write_text("{")
    assert resolve_current(tmp_path / "model") == tmp_path / ".old-model-bb"

    recover_interrupted_writes(tmp_path)

    assert names(tmp_path) == ["model", "step-2"]
    assert (tmp_path / "model" / "of").read_text() == ".old-model-bb"
    assert (tmp_path / "step-2" / "of").read_text() == "step-2"
    assert resolve_current(tmp_path / "model") == tmp_path / "model"


def test_no_checkpoint_is_begun_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Linear(1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 4_400_000))

    with pytest.raises(UserError, match=r"cannot save .*/new: it needs 4,\d+,\d+ bytes; 4,400,000 bytes are free"):
        CheckpointWriter().write(capture({"model": network}, {}), tmp_path / "new")

    assert names(tmp_path) == []


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

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", hooks, *sets)

    assert result.code == 2
    assert "state.optimizer.groups.0.object is <object object" in result.err

    assert not (tmp_path / "run").exists()
