"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftcore import Schedule, UserError
from ftcore.config import Flags, load
from ftcore.run import activate
from ftcore_plugins.schedules import Constant, ConstantConfig, Cosine, CosineConfig, warm_up

RATES = (0.3, 0.02)


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    return torch.optim.SGD(groups)


def rates(plugin: Constant | Cosine, epochs: int, steps_per_epoch: int) -> list[list[float]]:
    """Rates of both groups in each step of a run, and in the one after its end."""
    sgd = optimizer()
    schedule: Schedule = plugin.make_schedule(sgd, epochs, steps_per_epoch)
    assert schedule.per == "step"
    found = []
    for _ in range(epochs * steps_per_epoch + 1):
        found.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        schedule.scheduler.step()
    return found


def test_a_constant_rate_is_the_optimizers_in_every_step() -> None:
    assert rates(Constant(ConstantConfig()), epochs=3, steps_per_epoch=4) == [[*RATES]] * 13


def test_a_constant_rate_rises_in_equal_parts() -> None:
    found = rates(Constant(ConstantConfig(warmup=0.25)), epochs=4, steps_per_epoch=4)

    shares = [0.2, 0.4, 0.6, 0.8, *[1.0] * 13]
    assert found == [pytest.approx([share * rate for rate in RATES], rel=1e-12) for share in shares]


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
    expected = [[share * rate for rate in RATES] for share in shares]
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


def test_the_default_cosine_warms_up_for_a_twentieth_and_ends_at_nothing() -> None:
    found = rates(Cosine(CosineConfig()), epochs=2, steps_per_epoch=20)

    first = [pair[0] for pair in found]
    assert first.index(max(first)) == 2
    assert max(first) == RATES[0]
    assert first[-1] == pytest.approx(0, abs=1e-15)


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(0, 1))
def test_a_factor_is_never_negative_and_never_above_one(steps: int, warmup: float, final: float) -> None:
    if round(steps * warmup) >= steps:
        return
    factor = warm_up(lambda share: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)), steps, warmup)

    assert all(0 <= factor(step) <= 1 for step in range(steps + 5))


def test_the_rate_never_rises_again_after_the_warm_up() -> None:
    first = [pair[0] for pair in rates(Cosine(CosineConfig(0.2)), epochs=5, steps_per_epoch=6)]

    top = first.index(max(first))
    assert first[: top + 1] == sorted(first[: top + 1])
    assert first[top:] == sorted(first[top:], reverse=True)


@pytest.mark.parametrize("plugin", [Constant(ConstantConfig(0.9)), Cosine(CosineConfig(0.9))])
def test_a_warm_up_that_leaves_nothing_of_the_run_is_an_error(plugin: Constant | Cosine) -> None:
    with pytest.raises(UserError, match="a warm-up of 2 steps leaves nothing of a run of 2 steps"):
        plugin.make_schedule(optimizer(), 1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constant.warmup=1", "'warmup' must be < 1"),
        ("cosine.warmup=-0.1", "'warmup' must be >= 0"),
        ("cosine.final=1.5", "'final' must be <= 1"),
        ("cosine.final=-0.5", "'final' must be >= 0"),
        ("constant.final=0.5", r"unknown option 'constant\.final'"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load(None, Flags(plugins=(text.partition(".")[0],), sets=(text,))))
