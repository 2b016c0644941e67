"""Learning-rate schedules against their formulas and torch's own."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from torch import nn
from torch.optim import lr_scheduler

from ftcore import UserError
from ftcore.checkpoints import to_json
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore_plugins.schedules.curves import (
    Constant,
    ConstantConfig,
    Cosine,
    CosineConfig,
    Exponential,
    ExponentialConfig,
    MultiStep,
    MultiStepConfig,
    Polynomial,
    PolynomialConfig,
    Step,
    StepConfig,
    warm_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RATES = (0.3, 0.02)

ALL: list[Any] = [
    Constant(ConstantConfig()),
    Cosine(CosineConfig()),
    Cosine(CosineConfig(cycles=2, per="epoch")),
    Polynomial(PolynomialConfig(2.0)),
    Exponential(ExponentialConfig(0.5)),
    Step(StepConfig(2, 0.5)),
    MultiStep(MultiStepConfig((1, 3), 0.5)),
]


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    return torch.optim.SGD(groups)


def rates(plugin: Any, epochs: int, steps_per_epoch: int) -> list[list[float]]:
    """Rates of both groups in each step of a run, and in the one after its end."""
    sgd = optimizer()
    schedule = plugin.make_schedule(sgd, epochs, steps_per_epoch)
    assert schedule.warmup is None
    found = [[group["lr"] for group in sgd.param_groups]]
    for step in range(1, epochs * steps_per_epoch + 1):
        sgd.step()
        if schedule.interval == "step" or step % steps_per_epoch == 0:
            schedule.scheduler.step()
        found.append([group["lr"] for group in sgd.param_groups])
    return found


def theirs(make: Callable[[torch.optim.Optimizer], Any], steps: int, every: int = 1) -> list[list[float]]:
    """The same of a scheduler of torch, which steps once in `every` steps."""
    sgd = optimizer()
    scheduler = make(sgd)
    found = [[group["lr"] for group in sgd.param_groups]]
    for step in range(1, steps + 1):
        sgd.step()
        if step % every == 0:
            scheduler.step()
        found.append([group["lr"] for group in sgd.param_groups])
    return found


def assert_same(found: list[list[float]], expected: list[list[float]]) -> None:
    both = (torch.tensor(rates, dtype=torch.float64) for rates in (found, expected))
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-15)


def test_a_constant_rate_is_the_optimizers_in_every_step() -> None:
    assert rates(Constant(ConstantConfig()), epochs=3, steps_per_epoch=4) == [[*RATES]] * 13


def test_a_constant_rate_rises_in_equal_parts() -> None:
    found = rates(Constant(ConstantConfig(warmup=0.25)), epochs=4, steps_per_epoch=4)

    shares = [0.2, 0.4, 0.6, 0.8, *[1.0] * 13]
    assert_same(found, [[share * rate for rate in RATES] for share in shares])


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(1, 1), (1, 10), (7, 13)])
def test_a_cosine_equals_its_formula_in_every_step(
    warmup: float, final: float, epochs: int, steps_per_epoch: int
) -> None:
    found = rates(Cosine(CosineConfig(warmup, final)), epochs, steps_per_epoch)

    steps = epochs * steps_per_epoch
    rising = round(steps * warmup)
    rise = [(step + 1) / (rising + 1) for step in range(rising)]
    angles = [math.pi * step / (steps - rising) for step in range(steps - rising + 1)]
    shares = [*rise, *(final + (1 - final) * (1 + math.cos(angle)) / 2 for angle in angles)]
    assert_same(found, [[share * rate for rate in RATES] for share in shares])


WHOLE_RUN: list[tuple[Any, Callable[[torch.optim.Optimizer], Any], int]] = [
    (Cosine(CosineConfig(0.0)), lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 91), 1),
    (Cosine(CosineConfig(0.0, per="epoch")), lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 7), 13),
    (Polynomial(PolynomialConfig(warmup=0.0)), lambda sgd: lr_scheduler.PolynomialLR(sgd, 91), 1),
    (Polynomial(PolynomialConfig(2.5, 0.0)), lambda sgd: lr_scheduler.PolynomialLR(sgd, 91, 2.5), 1),
    (Polynomial(PolynomialConfig(0.5, 0.0, per="epoch")), lambda sgd: lr_scheduler.PolynomialLR(sgd, 7, 0.5), 13),
    (Exponential(ExponentialConfig(0.7)), lambda sgd: lr_scheduler.ExponentialLR(sgd, 0.7 ** (1 / 13)), 1),
    (Exponential(ExponentialConfig(0.7, per="epoch")), lambda sgd: lr_scheduler.ExponentialLR(sgd, 0.7), 13),
    (Step(StepConfig(2)), lambda sgd: lr_scheduler.StepLR(sgd, 2), 13),
    (Step(StepConfig(3, 0.5)), lambda sgd: lr_scheduler.StepLR(sgd, 3, 0.5), 13),
    (MultiStep(MultiStepConfig((1, 4, 5), 0.3)), lambda sgd: lr_scheduler.MultiStepLR(sgd, [1, 4, 5], 0.3), 13),
]


@pytest.mark.parametrize(("plugin", "make", "every"), WHOLE_RUN)
def test_a_whole_run_equals_torchs_scheduler(plugin: Any, make: Any, every: int) -> None:
    assert_same(rates(plugin, epochs=7, steps_per_epoch=13), theirs(make, 91, every))


@pytest.mark.parametrize(
    ("plugin", "make"),
    [
        (Cosine(CosineConfig(4 / 91)), lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 87)),
        (Polynomial(PolynomialConfig(2.0, 4 / 91)), lambda sgd: lr_scheduler.PolynomialLR(sgd, 87, 2.0)),
    ],
)
def test_behind_a_warm_up_a_curve_is_torchs_for_what_is_left(plugin: Any, make: Any) -> None:
    found = rates(plugin, epochs=7, steps_per_epoch=13)

    rise = theirs(lambda sgd: lr_scheduler.LinearLR(sgd, 1 / 5, total_iters=4), 3)
    assert_same(found, rise + theirs(make, 87))


@pytest.mark.parametrize(
    ("plugin", "make"),
    [
        (Step(StepConfig(2, warmup=6 / 91)), lambda sgd: lr_scheduler.StepLR(sgd, 2)),
        (MultiStep(MultiStepConfig((1, 4), warmup=6 / 91)), lambda sgd: lr_scheduler.MultiStepLR(sgd, [1, 4])),
        (Exponential(ExponentialConfig(0.7, 6 / 91, "epoch")), lambda sgd: lr_scheduler.ExponentialLR(sgd, 0.7)),
    ],
)
def test_a_warm_up_shifts_no_epoch_that_is_counted(plugin: Any, make: Any) -> None:
    found = rates(plugin, epochs=7, steps_per_epoch=13)

    rise = theirs(lambda sgd: lr_scheduler.LinearLR(sgd, 1 / 7, total_iters=6), 91)
    shares = [share / RATES[0] for share, _ in rise]
    expected = theirs(make, 91, every=13)
    assert_same(found, [[share * rate for rate in pair] for share, pair in zip(shares, expected, strict=True)])


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_an_exponential_rises_to_where_it_is_when_the_warm_up_ends(per: Any) -> None:
    found = rates(Exponential(ExponentialConfig(0.5, warmup=0.5, per=per)), epochs=4, steps_per_epoch=10)

    top = [0.5**2 * rate for rate in RATES]
    assert_same(found[:21], [[(step + 1) / 21 * rate for rate in top] for step in range(21)])
    assert found[30] == pytest.approx([0.5**3 * rate for rate in RATES], rel=1e-12)


@pytest.mark.parametrize("cycles", [1, 2, 3, 6, 7])
def test_cycles_equal_torchs_warm_restarts(cycles: int) -> None:
    found = rates(Cosine(CosineConfig(0.0, cycles=cycles)), epochs=7, steps_per_epoch=6)

    expected = theirs(lambda sgd: lr_scheduler.CosineAnnealingWarmRestarts(sgd, 42 // cycles), 41)
    assert_same(found[:-1], expected)
    assert found[-1] == pytest.approx([0.0, 0.0], abs=1e-15)


def test_a_restart_is_not_a_step_late_by_rounding() -> None:
    found = rates(Cosine(CosineConfig(0.0, cycles=49)), epochs=7, steps_per_epoch=14)

    assert 2 / 98 * 49 < 1  # in floating point
    assert found[:-1:2] == [[*RATES]] * 49


def test_cycles_equal_timms() -> None:
    found = rates(Cosine(CosineConfig(0.0, final=0.1, cycles=3)), epochs=7, steps_per_epoch=6)

    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATES[0])
    timms = CosineLRScheduler(sgd, 14, 0.1 * RATES[0], cycle_limit=3, t_in_epochs=False)
    for step in range(42):
        timms.step_update(step)
        assert found[step][0] == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


def test_a_polynomial_equals_timms() -> None:
    found = rates(Polynomial(PolynomialConfig(0.9, 0.0, final=0.1)), epochs=3, steps_per_epoch=5)

    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATES[0])
    timms = PolyLRScheduler(sgd, 15, power=0.9, lr_min=0.1 * RATES[0], t_in_epochs=False)
    for step in range(15):
        timms.step_update(step)
        assert found[step][0] == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


def test_per_epoch_the_rate_changes_between_epochs_alone() -> None:
    warm = (Cosine(CosineConfig(0.1, cycles=2, per="epoch")), Step(StepConfig(1, 0.5, warmup=0.1)))
    for plugin in (*warm, Polynomial(PolynomialConfig(warmup=0.0, per="epoch"))):
        found = rates(plugin, epochs=6, steps_per_epoch=5)

        changes = [step for step in range(4, 30) if found[step] != found[step - 1]]
        assert changes == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("plugin", [Step(StepConfig(2)), Cosine(CosineConfig(0.0, per="epoch"))])
def test_a_step_that_was_left_out_shifts_no_epoch_where_there_is_no_warm_up(plugin: Any) -> None:
    assert plugin.make_schedule(optimizer(), 4, 10).interval == "epoch"


def test_the_default_cosine_warms_up_for_a_twentieth_and_ends_at_nothing() -> None:
    found = rates(Cosine(CosineConfig()), epochs=2, steps_per_epoch=20)

    first = [pair[0] for pair in found]
    assert first.index(max(first)) == 2
    assert max(first) == RATES[0]
    assert first[-1] == pytest.approx(0, abs=1e-15)


CURVES: list[Callable[[float, float], Any]] = [
    lambda warmup, final: Constant(ConstantConfig(warmup)),
    lambda warmup, final: Cosine(CosineConfig(warmup, final)),
    lambda warmup, final: Cosine(CosineConfig(warmup, final, per="epoch")),
    lambda warmup, final: Polynomial(PolynomialConfig(1 + final, warmup, final)),
    lambda warmup, final: Exponential(ExponentialConfig(1 - final / 2, warmup)),
    lambda warmup, final: Exponential(ExponentialConfig(1 - final / 2, warmup, "epoch")),
    lambda warmup, final: Step(StepConfig(1, final, warmup)),
    lambda warmup, final: MultiStep(MultiStepConfig((1,), final, warmup)),
]


@given(st.sampled_from(CURVES), st.integers(2, 6), st.integers(1, 20), st.floats(0, 0.9), st.floats(0, 1))
def test_a_rate_rises_to_its_curve_and_never_again(
    make: Callable[[float, float], Any], epochs: int, steps_per_epoch: int, warmup: float, final: float
) -> None:
    if round(epochs * steps_per_epoch * warmup) >= epochs * steps_per_epoch:
        return
    first = [pair[0] / RATES[0] for pair in rates(make(warmup, final), epochs, steps_per_epoch)]

    top = round(epochs * steps_per_epoch * warmup)
    assert all(0 <= factor <= 1 + 1e-15 for factor in first)
    assert first[: top + 1] == sorted(first[: top + 1])
    assert first[top:] == sorted(first[top:], reverse=True)
    assert first[top] == max(first)


@given(st.sampled_from([Cosine, Polynomial]), st.sampled_from(["step", "epoch"]), st.floats(0, 0.9), st.floats(0, 1))
def test_the_last_step_leads_to_the_final_rate(plugin: Any, per: Any, warmup: float, final: float) -> None:
    found = rates(plugin(plugin.Config(warmup=warmup, final=final, per=per)), epochs=3, steps_per_epoch=7)

    assert found[-1] == pytest.approx([final * rate for rate in RATES], rel=1e-12, abs=1e-15)


def test_warm_up_rises_to_where_the_curve_is() -> None:
    factor = warm_up(lambda step: 1 / (step + 1), 3)

    assert [factor(step) for step in range(5)] == pytest.approx([1 / 16, 2 / 16, 3 / 16, 1 / 4, 1 / 5])


@pytest.mark.parametrize("plugin", [Constant(ConstantConfig(0.9)), Cosine(CosineConfig(0.9))])
def test_a_warm_up_that_leaves_nothing_of_the_run_is_an_error(plugin: Any) -> None:
    with pytest.raises(UserError, match=r"a warm-up of 2 steps \(warmup = 0\.9\) takes all of the 2 steps"):
        plugin.make_schedule(optimizer(), 1, 2)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Step(StepConfig(4)), r"step\.size = 4 must be less than train\.epochs = 4"),
        (MultiStep(MultiStepConfig((1, 4))), r"multistep\.milestones: 4 must be less than train\.epochs = 4"),
        (Cosine(CosineConfig(cycles=5, per="epoch")), r"cosine\.cycles = 5 is more than train\.epochs = 4"),
    ],
)
def test_a_run_that_is_too_short_for_its_schedule_is_an_error(plugin: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plugin.make_schedule(optimizer(), 4, 10)
    plugin.make_schedule(optimizer(), 5, 10)


@pytest.mark.parametrize("plugin", ALL)
def test_the_state_is_plain_and_goes_on(plugin: Any) -> None:
    sgd = optimizer()
    schedule = plugin.make_schedule(sgd, 4, 10)
    sgd.step()
    for _ in range(3):
        schedule.scheduler.step()

    state = {k: v for k, v in schedule.scheduler.state_dict().items() if not k.startswith("lr_lambda")}
    again = optimizer()
    other = plugin.make_schedule(again, 4, 10).scheduler
    other.load_state_dict({**json.loads(to_json(state)), "lr_lambdas": [None] * len(RATES)})
    again.step()
    for scheduler in (schedule.scheduler, other):
        scheduler.step()

    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in sgd.param_groups]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constant.warmup=1", "'warmup' must be < 1"),
        ("constant.per=epoch", r"unknown option 'constant\.per'"),
        ("cosine.warmup=-0.1", "'warmup' must be >= 0"),
        ("cosine.final=1.5", "'final' must be <= 1"),
        ("cosine.final=-0.5", "'final' must be >= 0"),
        ("cosine.cycles=0", "'cycles' must be >= 1"),
        ("cosine.per=batch", "'batch' is not one of 'step', 'epoch'"),
        ("constant.final=0.5", r"unknown option 'constant\.final'"),
        ("polynomial.power=0", "'power' must be > 0"),
        ("exponential.gamma=0", "'gamma' must be > 0"),
        ("exponential.gamma=1.1", "'gamma' must be <= 1"),
        ("exponential.warmup=0.1", r"exponential\.gamma has no default and must be set"),
        ("step.size=0", "'size' must be >= 1"),
        ("step.per=step", r"unknown option 'step\.per'"),
        ("multistep.milestones=[]", r"multistep\.milestones: "),
        ("multistep.milestones=[0, 1]", "'milestones' must be >= 1"),
        ("multistep.milestones=[3, 3]", r"multistep: milestones must increase, got \[3, 3\]"),
        ("multistep.milestones=[3, 2]", r"multistep: milestones must increase, got \[3, 2\]"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load_config(None, CliOverrides(plugins=(text.partition(".")[0],), sets=(text,))))


@pytest.mark.parametrize(
    "sets", [("cosine.per=epoch",), ("polynomial.power=2",), ("exponential.gamma=0.9",), ("step.size=1",)]
)
def test_each_is_named_and_set_on_the_command_line(sets: tuple[str, ...]) -> None:
    flags = CliOverrides(
        "digits/cnn", "digits:5-6", plugins=(sets[0].partition(".")[0],), sets=("train.epochs=2", *sets)
    )

    parts = prepare(load_config(None, flags)).assembly.parts

    assert isinstance(parts.optimization.schedule.scheduler, lr_scheduler.LambdaLR)
