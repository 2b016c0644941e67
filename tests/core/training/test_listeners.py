"""Losses, terms, batch transforms and penalties are told where the run is, on every rank and after a resume."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from ftcore import StepLogged
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.run import fit, resume
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Event

HOOKS = """
import json, os
from pathlib import Path
import attrs
import torch
from torch.nn.functional import cross_entropy
from ftcore import BatchImageTransform, Loss, Moment, Regularizer, hookimpl
from ftcore_plugins.tasks import Classification

def note(who, now):
    with (Path(__file__).parent / f"{who}-{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
        file.write(json.dumps(attrs.asdict(now)) + "\\n")

class Cooling(torch.nn.Module):
    smoothing = None

    def at(self, now):
        assert isinstance(now, Moment)
        note("loss", now)
        self.smoothing = 0.5 * (1 - now.step / (now.epochs * now.steps_per_epoch))

    def forward(self, outputs, targets):
        return cross_entropy(outputs, targets, label_smoothing=self.smoothing)

class Fading:
    strength = None

    def at(self, now):
        self.strength = 0.1 / (1 + now.step)

    def change(self, images):
        return images * (1 + self.strength)

    def penalty(self):
        return torch.tensor(self.strength, requires_grad=True) * 0.0

class Noted:
    def at(self, now):
        note("penalty", now)

    def __call__(self):
        return torch.zeros((), requires_grad=True) * 1.0

@hookimpl
def make_loss(task):
    return Loss(Cooling()) if isinstance(task, Classification) else None

@hookimpl
def batch_transforms():
    return [BatchImageTransform(Fading().change)]

@hookimpl
def make_regularizers():
    return [Regularizer("nothing", Noted())]
"""

RUN = ("--data", "digits:5-6", "--model", "digits/cnn", "--set", "train.batch_size=64", "--set", "train.threads=1")


def arguments(folder: Path, *more: str) -> tuple[str, ...]:
    (folder / "hooks.py").write_text(HOOKS, encoding="utf-8")
    settings = ("--set", "train.epochs=3", "--set", f"run.folder={folder / 'run'}")
    return ("run", *RUN, "--plugin", str(folder / "hooks.py"), *settings, *more)


class Cut(BaseException):
    pass


def cut(event: Event) -> None:
    if isinstance(event, StepLogged) and (event.epoch, event.step) == (2, 3):
        raise Cut


def told(folder: Path, who: str = "loss", rank: int = 0) -> list[tuple[int, int]]:
    lines = [json.loads(line) for line in (folder / f"{who}-{rank}.jsonl").read_text().splitlines()]
    assert {(line["epochs"], line["steps_per_epoch"]) for line in lines} == {(3, 5)}
    return [(line["epoch"], line["step"]) for line in lines]


EXPECTED = [(epoch, epoch * 5 + step) for epoch in range(3) for step in range(6)]
"""Five steps an epoch, and the evaluation behind them."""


def test_each_is_told_before_each_step_and_each_evaluation(tmp_path: Path) -> None:
    assert invoke(*arguments(tmp_path)).code == 0

    assert told(tmp_path) == told(tmp_path, "penalty") == EXPECTED


def test_a_run_that_was_ended_and_gone_on_with_is_told_the_same_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert invoke(*arguments(tmp_path / "whole")).code == 0
    file = tmp_path / "cut" / "cut_in_mid_epoch_hooks.py"  # which stays imported
    file.write_text(HOOKS, encoding="utf-8")
    run = tmp_path / "cut" / "run"
    sets = ("train.epochs=3", "train.log_every=1", "run.save_every=1 step", f"run.folder={run}", *RUN[5::2])

    with pytest.raises(Cut):
        fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=[str(file)], sets=sets)), [cut])
    resume(run)

    first, second = (load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(set(told(tmp_path / "cut"))) == EXPECTED


def test_two_processes_are_told_the_same(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path, "--nproc", "2", "--plugin", "ddp", "--set", "ddp.device=cpu"))

    assert result.code == 0, result.err
    assert told(tmp_path, rank=0) == told(tmp_path, rank=1) == EXPECTED


def test_a_model_is_measured_with_the_loss_as_it_was_then(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path, "--json", "--set", "train.monitor=accuracy"))

    measured = invoke("evaluate", tmp_path / "run", "--json").report["metrics"]

    best = result.report["best"]
    moment = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["moment"]
    assert moment == {"epoch": best["epoch"] - 1, "step": 5 * best["epoch"], "epochs": 3, "steps_per_epoch": 5}
    assert measured["loss"] == pytest.approx(best["loss"])


def test_a_run_in_which_nobody_listens_says_no_moment(tmp_path: Path) -> None:
    assert invoke("run", *RUN, "--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}").code == 0

    assert "moment" not in json.loads((tmp_path / "run" / "model" / "model.json").read_text())
