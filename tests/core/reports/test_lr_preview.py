"""The learning rates that `ftcore explain` shows are those that the run will have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from torch.optim import lr_scheduler

from ftcore import Schedule, StepLogged, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.reports.lr_preview import MAX_STEPS, preview_learning_rates, table
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from ftcore import Event
    from ftcore.reports.lr_preview import LRPreview
    from ftcore.training.assemble import Assembly


class Chained:
    """Schedules of torch whose next rate depends on the last, beside a warm-up."""

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=7)
        return Schedule(lr_scheduler.ExponentialLR(optimizer, 0.5), interval="epoch", warmup=warmup)


class EachStep:
    """The same without one, at each step."""

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(lr_scheduler.ExponentialLR(optimizer, 0.9), interval="step")


SCHEDULES: dict[str, tuple[str, ...]] = {
    "cosine": ("cosine.warmup=0.2",),
    "onecycle": (),
    "step": ("step.size=1",),
    "constant": ("constant.warmup=0.5",),
    "phases": (),
    "polynomial": ("polynomial.per=epoch", "polynomial.warmup=0"),
    "multistep": ("multistep.milestones=[2]", "multistep.warmup=0.1"),
    "plateau": ("plateau.patience=0", "plateau.warmup=0.3"),
    f"{__name__}:Chained": (),
    f"{__name__}:EachStep": (),
}


def assembly(schedule: str, *sets: str) -> Assembly:
    """Ten steps an epoch, three epochs, five rates."""
    flags = ("train.epochs=3", "train.log_every=1", "groups.layer_decay=0.5", *SCHEDULES[schedule], *sets)
    return prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=(schedule, "sgd"), sets=flags))
    ).assembly


def by_group(rates: LRPreview, groups: Any) -> list[tuple[float, ...]]:
    """Step -> the rate of each group."""
    curves = {name: curve.rates for curve in rates.curves for name in curve.groups}
    return list(zip(*(curves[group.name] for group in groups), strict=True))


def at_each_step(rates: LRPreview, groups: Any, steps: int) -> list[tuple[float, ...]]:
    """The same, where what was not looked at is as before."""
    found = dict(zip(rates.steps, by_group(rates, groups), strict=True))
    return [found[max(seen for seen in found if seen <= step)] for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rates_are_those_that_the_run_will_have(schedule: str) -> None:
    done, planned = assembly(schedule), assembly(schedule)
    told: list[Event] = []
    fit(evolve(done.parts, observers=(told.append,)), Progress(), lambda _: None)
    real = [event.lr for event in told if isinstance(event, StepLogged)]

    rates = preview_learning_rates(planned.parts, planned.groups)

    assert len(real) == 30
    assert len(set(real[0])) > 2
    known = 10 if schedule == "plateau" else 30  # what the metric does to it nobody knows
    assert at_each_step(rates, planned.groups, 30)[:known] == real[:known]


def test_following_the_rates_changes_no_parameter() -> None:
    run = assembly("cosine")
    before = {name: tensor.clone() for name, tensor in run.parts.network.state_dict().items()}

    preview_learning_rates(run.parts, run.groups)

    assert all(torch.equal(before[name], tensor) for name, tensor in run.parts.network.state_dict().items())


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "phases"])
def test_of_a_long_run_some_steps_are_looked_at_and_have_the_same_rates(schedule: str) -> None:
    whole, long = assembly(schedule), assembly(schedule)
    every = by_group(preview_learning_rates(whole.parts, whole.groups), whole.groups)

    some = preview_learning_rates(long.parts, long.groups, most=8)

    assert some.steps == (0, 4, 8, 12, 16, 20, 24, 28, 29)
    assert by_group(some, long.groups) == [every[step] for step in some.steps]
    assert some.changes == "each step; one in 4 of 30 steps is shown"


@pytest.mark.parametrize("schedule", [f"{__name__}:EachStep", f"{__name__}:Chained", "plateau"])
def test_what_cannot_be_sampled_is_followed_as_far_as_is_allowed(schedule: str) -> None:
    whole, long = assembly(schedule), assembly(schedule)
    every = by_group(preview_learning_rates(whole.parts, whole.groups), whole.groups)

    some = preview_learning_rates(long.parts, long.groups, most=12)

    assert some.steps == tuple(range(12))
    assert by_group(some, long.groups) == every[:12]
    assert some.changes.endswith("; the first 12 of 30 steps are shown")


def test_a_rate_that_changes_with_epochs_is_known_for_any_number_of_steps() -> None:
    run = assembly("step")

    rates = preview_learning_rates(run.parts, run.groups, most=4)

    assert rates.steps == (0, 9, 10, 19, 20, 29)
    assert rates.changes == "each epoch"


def test_a_very_long_run_is_bounded() -> None:
    run = assembly("cosine", "train.epochs=100000")

    rates = preview_learning_rates(run.parts, run.groups)

    assert MAX_STEPS / 2 < len(rates.steps) <= MAX_STEPS + 1
    assert rates.steps[-1] == 999_999


def test_a_rate_that_follows_the_metric_shows_its_warm_up_and_says_so() -> None:
    run = assembly("plateau")

    (shown,) = {row[-1] for row in table(preview_learning_rates(run.parts, run.groups)).rows}

    assert shown == "after the warm-up, with the monitored metric (accuracy), which is unknown before the run"


def test_people_see_the_curve_and_programs_the_table_alone() -> None:
    flags = ("--set", "groups.backbone_lr=0.5")
    out, machine = invoke("explain", *flags).out, invoke("explain", *flags, "--json").out

    assert out.splitlines()[-2:] == ["a: backbone.decay, backbone.no_decay", "b: head.decay, head.no_decay"]
    assert "┌──" in out
    (line,) = machine.splitlines()
    assert [row["in epoch"] for row in json.loads(line)["learning rates"]] == ["1", "1"]
