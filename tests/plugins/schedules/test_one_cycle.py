"""One-cycle schedules against torch's and fastai's."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from ftcore import UserError
from ftcore.checkpoints import to_json
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore_plugins.schedules.one_cycle import OneCycle, OneCycleConfig, Phases, PhasesConfig

RATES = (0.3, 0.02)


def optimizer(make: Any = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    made: torch.optim.Optimizer = make(groups, **options)
    return made


def settings(optimizer: torch.optim.Optimizer) -> list[float]:
    """Rate and momentum of each group."""
    groups = optimizer.param_groups
    momenta = [group["betas"][0] if "betas" in group else group.get("momentum", 0.0) for group in groups]
    return [*(group["lr"] for group in groups), *momenta]


def run(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    """What every step has, and what comes behind the last."""
    found = [settings(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(settings(optimizer))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pct_start": 0.5, "anneal_strategy": "linear", "div_factor": 10.0, "final_div_factor": 100.0},
        {"base_momentum": 0.5, "max_momentum": 0.8},
        {"three_phase": True, "pct_start": 0.4},
        {"cycle_momentum": False},
    ],
)
@pytest.mark.parametrize(("make", "given"), [(torch.optim.SGD, {"momentum": 0.7}), (torch.optim.AdamW, {})])
def test_a_whole_run_of_one_cycle_equals_torchs(options: dict[str, Any], make: Any, given: dict[str, Any]) -> None:
    ours, theirs = optimizer(make, **given), optimizer(make, **given)

    schedule = OneCycle(OneCycleConfig(**options)).make_schedule(ours, 7, 13)

    expected = OneCycleLR(theirs, list(RATES), epochs=7, steps_per_epoch=13, **options)
    assert (schedule.interval, type(schedule.scheduler)) == ("step", OneCycleLR)
    assert run(ours, schedule.scheduler, 91) == run(theirs, expected, 91)


def test_options_and_defaults_of_one_cycle_are_torchs() -> None:
    theirs = inspect.signature(OneCycleLR).parameters
    left_out = {"optimizer", "max_lr", "total_steps", "epochs", "steps_per_epoch", "last_epoch"}
    momenta = {"base_momentum", "max_momentum"}

    options = {option.name: option.default for option in attrs.fields(OneCycleConfig)}

    assert set(options) == set(theirs) - left_out
    assert {name: theirs[name].default for name in set(options) - momenta} == {
        name: value for name, value in options.items() if name not in momenta
    }
    assert (OneCycleConfig().lowest, OneCycleConfig().highest) == tuple(theirs[n].default for n in sorted(momenta))


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.sampled_from([2, 3]), st.sampled_from(["cos", "linear"]))
def test_one_cycle_fits_its_run_or_is_refused(steps: int, share: float, phases: int, strategy: Any) -> None:
    sgd = optimizer(momentum=0.9)
    config = OneCycleConfig(share, strategy, three_phase=phases == 3)
    try:
        schedule = OneCycle(config).make_schedule(sgd, 1, steps)
    except UserError:  # what is left of the run has no step
        assert share * steps <= 1 or (phases - 1) * share * steps >= steps + phases - 3
        return
    found = run(sgd, schedule.scheduler, steps)

    first, last = found[0], found[steps - 1]
    assert first[0] == pytest.approx(RATES[0] / 25, rel=1e-12)
    assert last[0] == pytest.approx(RATES[0] / 25e4, rel=1e-9)
    assert all(0 < pair[0] <= RATES[0] * (1 + 1e-12) for pair in found[:-1])


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (OneCycleConfig(0.1), 10),
        (OneCycleConfig(), 3),
        (OneCycleConfig(0.9, three_phase=True), 20),
    ],
)
def test_a_run_too_short_for_a_phase_is_refused(config: OneCycleConfig, steps: int) -> None:
    with pytest.raises(UserError, match=rf"onecycle\.pct_start = {config.pct_start} turns at step .* of {steps} steps"):
        OneCycle(config).make_schedule(optimizer(momentum=0.9), 1, steps)


@pytest.mark.parametrize(
    ("make", "options"),
    [(torch.optim.Adagrad, {}), (torch.optim.SGD, {"momentum": 0.0}), (torch.optim.RMSprop, {})],
)
def test_an_optimizer_without_momentum_is_told_to_cycle_none(make: Any, options: dict[str, Any]) -> None:
    made = optimizer(make, **options)

    with pytest.raises(UserError, match=rf"{make.__name__} has no momentum here; set onecycle\.cycle_momentum=false"):
        OneCycle(OneCycleConfig()).make_schedule(made, 1, 20)
    run(made, OneCycle(OneCycleConfig(cycle_momentum=False)).make_schedule(made, 1, 20).scheduler, 20)


@pytest.mark.parametrize("plugin", [OneCycle(OneCycleConfig()), Phases(PhasesConfig())])
def test_the_state_is_plain_and_goes_on(plugin: Any) -> None:
    sgd, again = optimizer(momentum=0.9), optimizer(momentum=0.9)
    schedule = plugin.make_schedule(sgd, 4, 10)
    run(sgd, schedule.scheduler, 7)

    state = {k: v for k, v in schedule.scheduler.state_dict().items() if not k.startswith("lr_lambda")}
    other = plugin.make_schedule(again, 4, 10).scheduler
    other.load_state_dict({"lr_lambdas": [None] * len(RATES), **json.loads(to_json(state))})

    assert run(again, other, 20)[1:] == run(sgd, schedule.scheduler, 20)[1:]


def sched_cos(start: float, end: float, place: float) -> float:
    """fastai.callback.schedule.SchedCos, from its documentation."""
    return start + (1 + math.cos(math.pi * (1 - place))) * (end - start) / 2


def combined_cos(pct: float, start: float, middle: float, end: float, place: float) -> float:
    """fastai.callback.schedule.combined_cos, from its documentation."""
    if place >= pct:
        return sched_cos(middle, end, (place - pct) / (1 - pct))
    return sched_cos(start, middle, place / pct)


def fit_one_cycle(steps: int, lr_max: float, pct_start: float, div: float, div_final: float = 1e5) -> list[float]:
    """Rates of fastai.learner.Learner.fit_one_cycle."""
    return [combined_cos(pct_start, lr_max / div, lr_max, lr_max / div_final, k / steps) for k in range(steps)]


def test_phases_are_fastais_fine_tune() -> None:
    sgd = optimizer()

    schedule = Phases(PhasesConfig()).make_schedule(sgd, 5, 13)
    found = run(sgd, schedule.scheduler, 65)

    assert schedule.interval == "step"
    for group, rate in enumerate(RATES):
        expected = fit_one_cycle(13, rate, 0.99, 25) + fit_one_cycle(52, rate / 2, 0.3, 5)
        assert [step[group] for step in found[:-1]] == pytest.approx(expected, rel=1e-12)
        assert found[-1][group] == pytest.approx(rate / 2 * 1e-5, rel=1e-12)


def test_three_phases_with_their_own_options() -> None:
    sgd = optimizer()
    config = PhasesConfig((1, 2), (1.0, 0.5, 2.0), (0.0, 0.5, 1.0), (1.0, 10.0, 4.0), (0.1, 0.0, 1.0))

    found = [step[0] for step in run(sgd, Phases(config).make_schedule(sgd, 4, 10).scheduler, 40)]

    falling = [sched_cos(RATES[0], 0.1 * RATES[0], k / 10) for k in range(10)]
    middle = [combined_cos(0.5, 0.05 * RATES[0], 0.5 * RATES[0], 0.0, k / 20) for k in range(20)]
    rising = [sched_cos(0.5 * RATES[0], 2 * RATES[0], k / 10) for k in range(11)]
    assert found == pytest.approx(falling + middle + rising, rel=1e-12, abs=1e-15)


def test_phases_longer_than_the_run_are_refused() -> None:
    same = (0.5, 0.5, 0.5)

    with pytest.raises(UserError, match=r"phases\.epochs = \[1, 2\] leaves nothing of train\.epochs = 3"):
        Phases(PhasesConfig((1, 2), same, same, (2.0, 2.0, 2.0), same)).make_schedule(optimizer(), 3, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onecycle.pct_start=0", "'pct_start' must be > 0"),
        ("onecycle.pct_start=1", "'pct_start' must be < 1"),
        ("onecycle.anneal_strategy=cosine", "'cosine' is not one of 'cos', 'linear'"),
        ("onecycle.div_factor=0.5", "'div_factor' must be >= 1"),
        ("onecycle.final_div_factor=0", "'final_div_factor' must be >= 1"),
        ("onecycle.max_momentum=1", "'max_momentum' must be < 1"),
        ("onecycle.base_momentum=-1", "'base_momentum' must be >= 0"),
        ("onecycle.base_momentum=0.97", r"onecycle: base_momentum = 0\.97 must be <= max_momentum = 0\.95"),
        ("onecycle.max_lr=1", r"unknown option 'onecycle\.max_lr'"),
        ("phases.epochs=[]", r"phases\.epochs: "),
        ("phases.epochs=[0]", "'epochs' must be >= 1"),
        ("phases.epochs=[1, 2]", r"phases: peak must have one value for each of 3 phases .*got \[1\.0, 0\.5\]"),
        ("phases.peak=[1]", r"phases: peak must have one value for each of 2 phases .*got \[1\.0\]"),
        ("phases.peak=[0, 1]", "'peak' must be > 0"),
        ("phases.warmup=[0.5, 1.5]", "'warmup' must be <= 1"),
        ("phases.warmup=[0.5]", "phases: warmup must have one value"),
        ("phases.div=[0.5, 1]", "'div' must be >= 1"),
        ("phases.div=[1, 1, 1]", "phases: div must have one value"),
        ("phases.final=[2, 1]", "'final' must be <= 1"),
        ("phases.final=[1]", "phases: final must have one value"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load_config(None, CliOverrides(plugins=(text.partition(".")[0],), sets=(text,))))


def test_momenta_without_a_cycle_of_momentum_are_refused() -> None:
    sets = ("onecycle.cycle_momentum=false", "onecycle.max_momentum=0.9")

    with pytest.raises(UserError, match="onecycle: max_momentum needs cycle_momentum = true"):
        activate(load_config(None, CliOverrides(plugins=("onecycle",), sets=sets)))


@pytest.mark.parametrize("plugin", ["onecycle", "phases"])
def test_a_run_goes_to_its_end_and_is_saved(tmp_path: Any, plugin: str) -> None:
    sets = ("--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=2")

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", plugin, *sets)

    assert result.code == 0, result.err
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000020" / "state.json").read_text())
    assert state["schedule"]["last_epoch"] == 20


def test_phases_are_set_on_the_command_line() -> None:
    sets = ("phases.epochs=[1]", "phases.peak=[1.0, 0.25]", "train.epochs=3")
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=("phases",), sets=sets)

    parts = prepare(load_config(None, flags)).assembly.parts

    assert parts.optimization.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 / 25)
