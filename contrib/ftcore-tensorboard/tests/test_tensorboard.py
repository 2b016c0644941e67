from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from ftcore.testing import invoke
from structlog.testing import capture_logs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from ftcore_tensorboard import wait_for_a_later_name

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 4
"""In an epoch."""

ENDING = """
import os
from ftcore import EpochEnded, StepLogged, hookimpl
from torch.nn.modules.module import register_module_forward_pre_hook

def fail(hook):
    hook.remove()
    raise RuntimeError("no more")

at, how, save = (os.environ.get(name) for name in ("AT", "HOW", "SAVE"))
told = 0

def observe(event):
    global told
    if isinstance(event, StepLogged | EpochEnded):
        told += 1
        if str(told) == save:
            os.kill(os.getpid(), 10)
        if str(told) == at:
            if how:
                os.kill(os.getpid(), int(how))
            else:
                hook = register_module_forward_pre_hook(lambda *_: fail(hook))

@hookimpl
def make_observers():
    return [observe]
"""
"""Saves or ends a run behind a number of events, steps and epochs counted together, by a signal or an error."""


def arguments(folder: Path, *settings: str, plugins: tuple[str, ...] = ()) -> list[str]:
    of_run = ("train.epochs=2", "train.batch_size=96", "train.log_every=1", f"run.folder={folder}", *settings)
    named = [word for plugin in ("tensorboard", *plugins) for word in ("--plugin", plugin)]
    sets = [word for setting in of_run for word in ("--set", setting)]
    return ["run", "--model", "digits/cnn", "--data", "digits:5-6", "--json", *named, *sets]


def ending(folder: Path) -> str:
    file = folder / "ending.py"
    file.write_text(ENDING)
    return str(file)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def losses(run: Path) -> dict[str, Any]:
    """What must be the same in a run that was interrupted."""
    found = {(name, tag): scalars(run / "tensorboard" / name, tag) for name, tag in WRITTEN}
    return {f"{name} {tag}": values for (name, tag), values in found.items()}


WRITTEN = [
    *[("steps", tag) for tag in ("train/loss", "lr/group 0")],
    *[("epochs", tag) for tag in ("train/loss", "val/loss", "val/accuracy")],
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = invoke(*arguments(folder))
    assert result.code == 0, result.err
    return folder


def test_what_is_read_back_is_what_the_run_says_of_itself(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "StepLogged"]
    epochs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = losses(whole)

    assert [step for step, _ in found["steps train/loss"]] == list(range(1, 2 * STEPS + 1))
    assert [value for _, value in found["steps train/loss"]] == pytest.approx([line["loss"] for line in steps])
    assert [value for _, value in found["steps lr/group 0"]] == pytest.approx([line["lr"][0] for line in steps])
    assert [step for step, _ in found["epochs val/accuracy"]] == [STEPS, 2 * STEPS]
    for split, name in (("val", "loss"), ("val", "accuracy"), ("train", "loss")):
        said = [line[split][name] for line in epochs]
        assert [value for _, value in found[f"epochs {split}/{name}"]] == pytest.approx(said)


def test_every_tag_is_in_the_table_of_the_readme_and_what_was_decided_is_a_text(whole: Path) -> None:
    steps = EventAccumulator(str(whole / "tensorboard" / "steps")).Reload()
    epochs = EventAccumulator(str(whole / "tensorboard" / "epochs")).Reload()

    rates = {tag for tag in steps.Tags()["scalars"] if tag.startswith("lr/group ")}
    assert {*steps.Tags()["scalars"]} - rates == {"train/loss", "speed/images per second"}
    of_epochs = {"train/loss", "val/loss", "val/accuracy", "val/f1", "speed/seconds an epoch"}
    assert {*epochs.Tags()["scalars"]} == of_epochs
    (text,) = steps.Tensors("run/text_summary")
    assert b"| task | classification: 5, 6 |" in text.tensor_proto.string_val[0]


def test_terms_beside_the_loss_have_charts_of_their_own(tmp_path: Path) -> None:
    invoke(*arguments(tmp_path / "run", "train.epochs=1", "l1.strength=0.001", plugins=("l1",)))

    assert len(scalars(tmp_path / "run" / "tensorboard" / "steps", "train/l1")) == STEPS
    assert len(scalars(tmp_path / "run" / "tensorboard" / "epochs", "train/l1")) == 1


@pytest.mark.parametrize("at", range(1, 2 * STEPS + 2))
def test_a_run_that_failed_behind_its_checkpoint_has_no_step_twice_when_it_is_resumed(
    at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("AT", str(at))
    with pytest.raises(RuntimeError, match="no more"):
        invoke(*arguments(run, "run.save_every=3 steps", plugins=(ending(tmp_path),)))
    monkeypatch.delenv("AT")

    if at > 2:  # it fails in the next forward pass, after the checkpoint of three steps
        assert invoke("resume", run).code == 0
        assert losses(run) == losses(whole)
    else:
        assert not run.exists()


def test_a_run_that_was_saved_before_an_evaluation_and_failed_after_it_has_no_epoch_twice(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SAVE", str(STEPS))
    monkeypatch.setenv("AT", str(STEPS + 1))
    with pytest.raises(RuntimeError, match="no more"):
        invoke(*arguments(run, plugins=(ending(tmp_path),)))
    monkeypatch.delenv("AT")
    monkeypatch.delenv("SAVE")
    assert [step for step, _ in scalars(run / "tensorboard" / "epochs", "val/loss")] == [STEPS]

    assert invoke("resume", run).code == 0
    assert losses(run) == losses(whole)


def test_a_run_that_is_stopped_goes_on_where_it_was(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("AT", "8")
    monkeypatch.setenv("HOW", str(int(signal.SIGTERM)))

    assert invoke(*arguments(run, plugins=(ending(tmp_path),))).code == 128 + signal.SIGTERM
    assert scalars(run / "tensorboard" / "steps", "train/loss") == losses(whole)["steps train/loss"][:7]
    monkeypatch.delenv("AT")
    assert invoke("resume", run).code == 0
    assert losses(run) == losses(whole)


def test_a_run_that_is_killed_loses_nothing_that_was_logged(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(run, "run.save_every=2 steps", plugins=(ending(tmp_path),))
    env = os.environ | {"AT": "8", "HOW": str(int(signal.SIGKILL))}
    command = [sys.executable, "-m", "ftcore", *words]

    assert subprocess.run(command, check=False, env=env, capture_output=True).returncode == -signal.SIGKILL
    assert scalars(run / "tensorboard" / "steps", "train/loss") == losses(whole)["steps train/loss"][:7]
    assert invoke("resume", run).code == 0
    assert losses(run) == losses(whole)


def test_a_run_that_is_over_writes_nothing_more(tmp_path: Path) -> None:
    invoke(*arguments(tmp_path / "run", "train.epochs=1"))
    before = losses(tmp_path / "run")

    assert invoke("resume", tmp_path / "run").code == 0
    assert losses(tmp_path / "run") == before


def test_the_folder_is_chosen_by_its_option(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path / "run", "train.epochs=1", "tensorboard.folder=events/here"))

    assert result.code == 0, result.err
    assert scalars(tmp_path / "run" / "events" / "here" / "steps", "train/loss")
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("folder", ["", ".", "/tmp/elsewhere", "../elsewhere", "model", "checkpoints/events"])
def test_a_folder_that_is_not_inside_the_run_or_is_taken_is_refused(folder: str, tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path / "run", f"tensorboard.folder='{folder}'"))

    assert result.code == 2
    assert "'folder' must be a folder inside the run folder, none of checkpoints, model, nonfinite" in result.err
    assert not (tmp_path / "run").exists()


def test_explain_writes_nothing(tmp_path: Path) -> None:
    words = [word for word in arguments(tmp_path / "run") if word != "--json"]

    assert invoke("explain", *words[1:]).code == 0
    assert not (tmp_path / "run").exists()


def test_it_is_listed_where_it_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").out)

    (row,) = [row for row in rows if row["name"] == "tensorboard"]
    assert (row["distribution"], row["hooks"], row["active"]) == ("ftcore-tensorboard", "make_observers", "no")


def test_files_made_one_behind_another_are_read_in_that_order(tmp_path: Path) -> None:
    for value in range(2):
        wait_for_a_later_name(tmp_path)
        with SummaryWriter(str(tmp_path), purge_step=1) as writer:
            writer.add_scalar("value", value, 1)
        (file,) = tmp_path.glob(f"*.{os.getpid()}.*")
        process = 9 - value  # the number of the process that made it, by which files of one second would be read
        file.rename(file.with_name(file.name.replace(f".{os.getpid()}.", f".process{process}.")))

    assert scalars(tmp_path, "value") == [(1, 1.0)]


def test_an_event_file_of_tomorrow_is_said(tmp_path: Path) -> None:
    (tmp_path / f"events.out.tfevents.{int(time.time()) + 86400}.host.1.0").touch()
    with capture_logs() as logs:
        wait_for_a_later_name(tmp_path)
    assert "TensorBoard reads those of this run first" in logs[0]["event"]
