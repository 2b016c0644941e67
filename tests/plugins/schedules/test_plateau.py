"""The schedule that looks at the monitored metric, against torch's."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ftcore import UserError
from ftcore.checkpoints import to_json
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore_plugins.schedules.plateau import Plateau, PlateauConfig

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Schedule

RATES = (0.3, 0.02)
METRIC = [0.5, 0.6, 0.60001, 0.59, 0.58, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.9, 0.1, 0.1, 0.1, 0.1]


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    return torch.optim.SGD(groups)


def rates(sgd: torch.optim.Optimizer, schedule: Schedule, steps_per_epoch: int) -> list[list[float]]:
    """Rates in every step of a run, as the loop has it: the warm-up steps with the step, the rest with the metric."""
    found = []
    scheduler: Any = schedule.scheduler
    for metric in METRIC:
        for _ in range(steps_per_epoch):
            found.append([group["lr"] for group in sgd.param_groups])
            sgd.step()
            if schedule.warmup:
                schedule.warmup.step()
        scheduler.step(metric)
    return found


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1},
        {"patience": 1, "factor": 0.5, "threshold": 0.05, "threshold_mode": "abs", "cooldown": 2, "min_lr": 0.004},
        {"patience": 0, "threshold": 0.1, "eps": 0.001},
    ],
)
def test_a_whole_run_equals_torchs(options: dict[str, Any], mode: Any) -> None:
    ours, theirs = optimizer(), optimizer()

    schedule = Plateau(PlateauConfig(**options)).make_schedule(ours, len(METRIC), 3, higher_is_better=mode == "max")
    found = rates(ours, schedule, 3)

    assert (schedule.interval, schedule.warmup, type(schedule.scheduler)) == ("metric", None, ReduceLROnPlateau)
    scheduler = ReduceLROnPlateau(theirs, mode, **options)
    expected = []
    for metric in METRIC:
        expected += [[group["lr"] for group in theirs.param_groups]] * 3
        scheduler.step(metric)
    assert found == expected
    assert found[0] != found[-1]


def test_a_warm_up_rises_step_by_step_beside_it() -> None:
    sgd = optimizer()
    schedule = Plateau(PlateauConfig(patience=3, warmup=0.125)).make_schedule(
        sgd, len(METRIC), 4, higher_is_better=True
    )

    found = rates(sgd, schedule, 4)

    shares = [min(1.0, (step + 1) / 9) for step in range(5 * 4)]
    torch.testing.assert_close(found[:20], [[share * rate for rate in RATES] for share in shares], rtol=1e-12, atol=0)
    assert found[-1] == pytest.approx([0.1 * rate for rate in RATES], rel=1e-12)


def test_a_rate_lowered_within_the_warm_up_stays_lowered() -> None:
    sgd = optimizer()
    schedule = Plateau(PlateauConfig(patience=1, warmup=0.5)).make_schedule(sgd, len(METRIC), 2, higher_is_better=False)

    found = rates(sgd, schedule, 2)

    factors = [round(pair[0] / RATES[0] / min(1.0, (step + 1) / 17), 9) for step, pair in enumerate(found)]
    assert factors[:6] == [1.0] * 6
    assert factors[6] == 0.1
    assert factors == sorted(factors, reverse=True)


def test_options_and_defaults_are_torchs() -> None:
    theirs = inspect.signature(ReduceLROnPlateau).parameters
    found = {option.name: option.default for option in attrs.fields(PlateauConfig)}

    assert set(found) - {"warmup"} == set(theirs) - {"optimizer", "mode"}
    assert all(theirs[name].default == value for name, value in found.items() if name != "warmup")


@pytest.mark.parametrize(("patience", "epochs"), [(10, 10), (10, 12), (0, 2), (0, 1)])
def test_a_run_too_short_to_lower_a_rate_is_refused(patience: int, epochs: int) -> None:
    message = (
        rf"plateau\.patience = {patience} cannot lower a rate within train\.epochs = {epochs}: .* least {patience + 3}"
    )

    with pytest.raises(UserError, match=message):
        Plateau(PlateauConfig(patience=patience)).make_schedule(optimizer(), epochs, 5, higher_is_better=True)


def test_the_shortest_run_that_is_not_refused_lowers_its_last_rate() -> None:
    sgd = optimizer()
    scheduler: Any = Plateau(PlateauConfig(patience=1)).make_schedule(sgd, 4, 1, higher_is_better=True).scheduler

    found = []
    for _ in range(4):
        found.append(sgd.param_groups[0]["lr"])
        scheduler.step(0.5)

    assert found == pytest.approx([0.3, 0.3, 0.3, 0.03])


def test_a_lowest_rate_that_no_group_is_above_is_refused() -> None:
    with pytest.raises(UserError, match=r"plateau\.min_lr = 0\.3 must be less than the highest rate, 0\.3"):
        Plateau(PlateauConfig(min_lr=0.3)).make_schedule(optimizer(), 20, 1, higher_is_better=True)


def test_a_warm_up_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"a warm-up of 20 steps \(warmup = 0\.99\) takes all of the 20"):
        Plateau(PlateauConfig(warmup=0.99)).make_schedule(optimizer(), 20, 1, higher_is_better=True)


def test_the_state_is_plain_and_goes_on() -> None:
    plugin = Plateau(PlateauConfig(patience=1, warmup=0.1))
    sgd, again = optimizer(), optimizer()
    schedule, other = (plugin.make_schedule(o, len(METRIC), 3, higher_is_better=True) for o in (sgd, again))
    rates(sgd, schedule, 3)

    for ours, theirs in ((schedule.scheduler, other.scheduler), (schedule.warmup, other.warmup)):
        assert ours is not None
        assert theirs is not None
        theirs.load_state_dict(json.loads(to_json(ours.state_dict())))
    for group, restored in zip(sgd.param_groups, again.param_groups, strict=True):
        restored["lr"] = group["lr"]

    assert rates(again, other, 3) == rates(sgd, schedule, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plateau.factor=1", "'factor' must be < 1"),
        ("plateau.factor=0", "'factor' must be > 0"),
        ("plateau.patience=-1", "'patience' must be >= 0"),
        ("plateau.threshold=-1", "'threshold' must be >= 0"),
        ("plateau.threshold_mode=relative", "'relative' is not one of 'rel', 'abs'"),
        ("plateau.cooldown=-1", "'cooldown' must be >= 0"),
        ("plateau.min_lr=-1", "'min_lr' must be >= 0"),
        ("plateau.warmup=1", "'warmup' must be < 1"),
        ("plateau.mode=max", r"unknown option 'plateau\.mode'"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load_config(None, CliOverrides(plugins=("plateau",), sets=(text,))))


@pytest.mark.parametrize(("monitor", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_its_mode_is_that_of_the_monitored_metric(monitor: str, mode: str) -> None:
    sets = ("plateau.patience=1", f"train.monitor={monitor}")

    parts = prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=("plateau",), sets=sets))
    ).assembly.parts

    assert isinstance(parts.optimization.schedule.scheduler, ReduceLROnPlateau)
    assert parts.optimization.schedule.scheduler.mode == mode


def test_a_run_lowers_its_rate_and_is_saved(tmp_path: Path) -> None:
    sets = (
        "adamw.lr=1e-12",
        "adamw.eps=1",
        "plateau.patience=0",
        "plateau.eps=0",
        "train.epochs=4",
        "plateau.warmup=0.1",
    )
    flags = [flag for text in (*sets, f"run.folder={tmp_path / 'run'}") for flag in ("--set", text)]

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "plateau", *flags)

    assert result.code == 0, result.err
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000040" / "state.json").read_text())
    assert [group["lr"] for group in state["optimizer"]["groups"]] == pytest.approx([1e-15] * 2, rel=1e-9)
    assert state["schedule"]["best"] == pytest.approx(state["progress"]["best"]["accuracy"])
    assert state["warmup"]["last_epoch"] == 40
