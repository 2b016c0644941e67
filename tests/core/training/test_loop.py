"""When a run stops early: `train.patience` and `train.min_delta`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torchmetrics import Metric

from ftcore import EpochEnded, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit
from ftcore.training.monitoring import should_stop_early, update_best
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from ftcore import Event
    from ftcore.training.state import TrainingParts


class Rising(Metric):
    """Says in each epoch what it was told to; more is better."""

    higher_is_better = True

    def __init__(self, values: Sequence[float] = ()) -> None:
        super().__init__()
        self.values = iter(values)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.tensor(next(self.values), dtype=torch.float64)


class Falling(Rising):
    """Less is better."""

    higher_is_better = False


class Peak:
    values = (0.1, 0.5, 0.4, 0.3, 0.2, 0.1)

    @hookimpl
    def make_metrics(self) -> dict[str, Metric]:
        return {"scripted": Rising(self.values)}


class PeakTooLate(Peak):
    values = (0.5, 0.4, 0.3, 0.9, 0.9, 0.9)


class Better(Peak):
    values = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


class Worse(Peak):
    values = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def build(*sets: str, plugins: tuple[str, ...] = ()) -> TrainingParts:
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=("train.batch_size=290", *sets))
    return prepare(load_config(None, flags)).assembly.parts


def trained(parts: TrainingParts) -> list[EpochEnded]:
    events: list[Event] = []
    fit(attrs.evolve(parts, observers=(events.append,)), Progress(), lambda _: None)
    return [event for event in events if isinstance(event, EpochEnded)]


def scripted(values: Sequence[float], *sets: str, up: bool = True) -> list[EpochEnded]:
    """A run of as many epochs as there are values, in which the monitored metric takes them."""
    parts = build(f"train.epochs={len(values)}", *sets)
    return trained(
        attrs.evolve(
            parts,
            evaluation=attrs.evolve(
                parts.evaluation, metrics={"scripted": (Rising if up else Falling)(values)}, monitor="scripted"
            ),
        )
    )


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.5, 0.4, 0.3, 0.9], 1, 2),
        ([0.5, 0.4, 0.3, 0.9], 2, 3),
        ([0.5, 0.4, 0.3, 0.9], 3, 4),
        ([0.5, 0.5, 0.5, 0.9], 2, 3),  # as good is not better
        ([0.5, 0.4, 0.6, 0.5, 0.55, 0.9], 2, 5),  # counted anew from the best on
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.5, 0.4, 0.3, 0.2], 0, 4),
        ([0.5, math.nan, math.nan, 0.9], 2, 3),
    ],
)
def test_a_run_stops_after_so_many_epochs_without_a_better_metric(
    values: list[float],
    patience: int,
    epochs: int,
    up: bool,  # noqa: FBT001
) -> None:
    turned = values if up else [-value for value in values]

    assert len(scripted(turned, f"train.patience={patience}", up=up)) == epochs


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ([0.5, 0.75, 0.75, 1.25], 3),  # better by just as much does not count
        ([0.5, 0.8, 1.1, 1.4], 4),
        ([0.5, 0.7, 0.8, 0.9], 4),  # small steps count once they add up
        ([0.5, 0.6, 0.7, 0.9], 3),
    ],
)
@pytest.mark.parametrize("up", [True, False])
def test_a_metric_must_be_better_by_min_delta(values: list[float], epochs: int, up: bool) -> None:  # noqa: FBT001
    turned = values if up else [-value for value in values]

    assert len(scripted(turned, "train.patience=2", "train.min_delta=0.25", up=up)) == epochs


def test_an_epoch_that_is_better_by_less_is_still_the_best() -> None:
    events = scripted([0.5, 0.6, 0.55], "train.patience=2", "train.min_delta=0.25")

    assert [event.best for event in events] == [True, True, False]


@pytest.fixture(scope="module")
def parts() -> TrainingParts:
    return build("train.patience=4", "train.min_delta=0")


Eighths = st.integers(-40, 40).map(lambda number: number / 8)


@given(values=st.lists(Eighths, min_size=1, max_size=30), delta=st.integers(0, 12), up=st.booleans())
def test_epochs_are_counted_as_torch_counts_them_for_a_plateau(
    parts: TrainingParts,
    values: list[float],
    delta: int,
    up: bool,  # noqa: FBT001
) -> None:
    settings = attrs.evolve(parts.train_config, min_delta=delta / 8)
    metrics = {"scripted": Rising() if up else Falling()}
    mine = attrs.evolve(
        parts, evaluation=attrs.evolve(parts.evaluation, metrics=metrics, monitor="scripted"), train_config=settings
    )
    optimizer = torch.optim.SGD([torch.zeros(1)])
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max" if up else "min", threshold=delta / 8, threshold_mode="abs", patience=1000
    )
    progress, best = Progress(), []

    for epoch, value in enumerate(values, start=1):
        best.append(update_best(mine, progress, {"epoch": epoch, "scripted": value}))
        plateau.step(value)
        assert progress.epochs_since_best == plateau.num_bad_epochs
        assert should_stop_early(mine, progress) == (plateau.num_bad_epochs >= 4)

    signed = [value if up else -value for value in values]
    assert progress.best["epoch"] == signed.index(max(signed)) + 1
    assert best == [value > max(signed[:place], default=-math.inf) for place, value in enumerate(signed)]
    assert progress.last["epoch"] == len(values)


def test_a_loss_that_stays_stops_a_run_and_one_that_falls_does_not() -> None:
    sets = ("train.monitor=loss", "train.epochs=6", "train.patience=2", "sgd.momentum=0")
    still = build(*sets, "sgd.lr=1e-30", "sgd.weight_decay=0", plugins=("sgd", "constant", "freeze_norm"))
    falls = build(*sets, "sgd.lr=0.02", plugins=("sgd", "constant", "freeze_norm"))

    losses = [[event.val["loss"] for event in trained(parts)] for parts in (still, falls)]

    assert [len(found) for found in losses] == [3, 6]
    assert losses[1] == sorted(losses[1], reverse=True)


def run(folder: Path, script: type[Peak], patience: int) -> tuple[dict[str, Any], str]:
    """The report of six epochs at most, of which all are kept, and what was printed."""
    texts = ("train.epochs=6", f"train.patience={patience}", "train.monitor=scripted", "train.batch_size=290")
    sets = (f"run.folder={folder}", "run.keep=9", "adamw.lr=0.01", *texts)
    options = [part for text in sets for part in ("--set", text)]
    named = ("--plugin", f"{__name__}:{script.__name__}")
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *named, "--json", *options)
    assert result.code == 0, result.err
    return result.report, result.err


@pytest.mark.parametrize(("script", "best"), [(Peak, 2), (PeakTooLate, 1)])
def test_the_model_of_the_best_epoch_is_kept(script: type[Peak], best: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    report, printed = run(folder, script, patience=2)

    epochs = range(1, best + 3)
    model = load_file(folder / "model" / "model.safetensors")
    states = [load_file(folder / "checkpoints" / f"step-{n:08d}" / "model.safetensors") for n in epochs]
    same = [all(torch.equal(model[name], state[name]) for name in model) for state in states]
    assert same == [epoch == best for epoch in epochs]
    assert json.loads((folder / "model" / "model.json").read_text())["epoch"] == report["best"]["epoch"] == best
    assert (report["epochs"], report["stopped_early"], report["last"]["epoch"]) == (best + 2, True, best + 2)
    assert "stopped: scripted has not improved" in printed
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == best + 2


@pytest.mark.parametrize(("script", "patience", "best"), [(Better, 1, 6), (Worse, 5, 1), (Worse, 0, 1)])
def test_a_run_of_all_its_epochs_was_not_stopped(script: type[Peak], patience: int, best: int, tmp_path: Path) -> None:
    report, printed = run(tmp_path / "run", script, patience)

    assert (report["epochs"], report["stopped_early"], report["best"]["epoch"]) == (6, False, best)
    assert "stopped" not in printed


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("train.min_delta=0.1",), "min_delta needs patience > 0"),
        (("train.patience=-1",), "patience"),
        (("train.patience=2", "train.min_delta=-0.1"), "min_delta"),
    ],
)
def test_patience_that_makes_no_sense_is_refused(sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(*sets)
