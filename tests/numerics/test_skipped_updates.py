"""Optimizer steps that made no update are counted, against torch's own scaler watched from outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import structlog
import torch

from ftcore import EpochEnded, StepLogged, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs import resume
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.gradients import check_updates, warn_of_skipped
from ftcore.training.loop import fit
from ftcore.training.state import EpochProgress, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Event
    from ftcore.training.state import TrainingParts

OTHERS = ("freeze_backbone", "sgd", "cosine", "ema")
"""A head alone, whose arithmetic in float16 a processor does in no time."""

HIGH = "fp16.init_scale=1e7"
"""Some steps overflow until the scale is low enough for this network."""


def build(*sets: str, plugins: tuple[str, ...] = ("fp16", *OTHERS)) -> TrainingParts:
    texts = ("train.epochs=2", "train.log_every=1", "train.batch_size=29", *sets)
    return prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=texts))
    ).assembly.parts


def trained(parts: TrainingParts) -> tuple[Progress, list[Event], list[bool], int]:
    """Train, and count by hand: whether each step changed the network, and how often the optimizer stepped."""
    events: list[Event] = []
    made: list[bool] = []
    stepped = [0]
    scaler, optimizer = parts.precision.scaler, parts.optimization.optimizer
    before = [scaler.get_scale()]

    def count(*_: Any) -> None:
        stepped[0] += 1

    def look() -> None:
        if len(made) < progress.step:  # once a step
            made.append(scaler.get_scale() >= before[0])
            before[0] = scaler.get_scale()

    optimizer.register_step_post_hook(count)
    progress = Progress()
    fit(attrs.evolve(parts, observers=(events.append,)), progress, lambda _: None, look)
    return progress, events, made, stepped[0]


def test_updates_are_counted_as_torchs_scaler_makes_them_in_the_run_in_its_events_and_in_what_follows() -> None:
    parts = build(HIGH)

    progress, events, made, stepped = trained(parts)

    assert 0 < made.count(False) < 10
    assert made.count(True) == stepped == progress.updates
    assert (progress.overflows, progress.skipped, progress.step) == (made.count(False), 0, 20)
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert [(epoch.updates, epoch.skipped) for epoch in epochs] == [
        (half.count(True), half.count(False)) for half in (made[:10], made[10:])
    ]
    assert [event.skipped for event in events if isinstance(event, StepLogged)] == [
        made[10 * (step // 10) : step + 1].count(False) for step in range(20)
    ]
    assert parts.optimization.schedule.scheduler.last_epoch == stepped
    assert progress.averages == stepped


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_first_step_that_overflows_leaves_no_momentum(fused: str) -> None:
    """torch's fused SGD takes it from memory that nobody has written: weights of 1e25 behind a gradient of 0.8."""
    junk = [torch.full((2, 64), 1e25) for _ in range(50)]
    parts = build(HIGH, f"sgd.fused={fused}", "train.epochs=1")
    del junk

    progress, _, made, _ = trained(parts)

    assert made[0] is False
    assert progress.last["train_loss"] < 0.7
    assert max(float(p.detach().abs().max()) for p in parts.network.get_submodule("head").parameters()) < 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_nothing_is_scaled_each_step_is_an_update(precision: str) -> None:
    progress, events, _, stepped = trained(build(plugins=(precision, *OTHERS)))

    assert (progress.updates, progress.overflows, stepped) == (20, 0, 20)
    assert [(e.updates, e.skipped) for e in events if isinstance(e, EpochEnded)] == [(10, 0), (10, 0)]


FROZEN = ("--plugin", "freeze_backbone")


def run(folder: Path, *sets: str) -> Any:
    texts = ("train.epochs=2", "train.batch_size=29", f"run.folder={folder}", *sets)
    options = [word for text in texts for word in ("--set", text)]
    return invoke(
        "run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "fp16", *FROZEN, "--json", *options
    )


def test_a_run_reports_them_and_warns_where_they_are_many(tmp_path: Path) -> None:
    result = run(tmp_path / "run", HIGH)

    report = json.loads(result.out)
    assert 2 < report["skipped_steps"] < 10
    assert report["updates"] == 20 - report["skipped_steps"]
    assert f"warning: {report['skipped_steps']} of 10 optimizer steps so far were skipped, as were" in result.err
    assert f"{report['skipped_steps']} of 10 updates skipped" in result.err
    assert f"{report['skipped_steps']} optimizer steps were skipped" in (tmp_path / "run/report.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [report["skipped_steps"], 0]


def test_a_run_that_never_made_an_update_is_an_error_and_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "fp16.init_scale=1e30", "train.epochs=1")

    assert result.code == 2
    assert "all 10 optimizer steps of this run were skipped, so the network is unchanged" in result.err
    assert "in 10 the gradient, with the loss scaled up for float16, overflowed; the scale was last" in result.err
    assert "bf16 or fp32 instead of fp16" in result.err
    (listed,) = json.loads(invoke("runs", tmp_path, "--json").out)
    assert listed["state"] == "failed"
    with pytest.raises(
        UserError, match="all 10 optimizer steps of this run were skipped"
    ):  # to go on with it changes nothing
        resume(tmp_path / "run")


def test_updates_that_were_skipped_for_a_loss_that_is_none_count_as_well() -> None:
    progress = Progress(step=10, skipped=10, current=EpochProgress(step=10, skipped=10))

    with pytest.raises(UserError, match=r"in 10 the loss or gradient was not finite \(train.on_nonfinite\)"):
        check_updates(progress)


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        ((0, 0), (10, 1), False),
        ((0, 0), (10, 2), True),
        ((100, 0), (100, 20), False),
        ((100, 0), (100, 21), True),
        ((100, 11), (100, 20), False),  # it was said
    ],
)
def test_more_than_a_tenth_of_the_steps_is_said_once(
    before: tuple[int, int],
    now: tuple[int, int],
    warned: bool,  # noqa: FBT001
) -> None:
    (steps, skipped), (more, others) = before, now
    progress = Progress(step=steps + more, overflows=skipped + others, current=EpochProgress(step=more, skipped=others))

    with structlog.testing.capture_logs() as logged:
        warn_of_skipped(progress)

    assert bool(logged) == warned


def test_a_run_that_made_one_update_is_none_without() -> None:
    check_updates(Progress(step=10, overflows=9))
    check_updates(Progress())
