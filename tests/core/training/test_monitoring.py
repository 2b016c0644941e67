"""A monitored value that is no number never wins, is said once with its cause, and is reported as what it is."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import attrs
import numpy as np
import pytest
import structlog
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torchmetrics import Metric

from ftcore import UserError, hookimpl
from ftcore.checkpoints import write_manifest
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.dataset import ImageSplit
from ftcore.runs import fit, resume
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.monitoring import check_metrics_are_defined, comparable, should_stop_early, update_best
from ftcore.training.state import Progress
from ftcore_plugins.metrics.multilabel import AveragePrecision, AveragePrecisionOfEach
from ftcore_plugins.tasks import Multilabel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ftcore.training.state import TrainingParts

NAN, INF = math.nan, math.inf


class Scripted(Metric):
    """Says in each epoch what it was told to; more is better."""

    higher_is_better = True

    def __init__(self, values: tuple[float, ...]) -> None:
        super().__init__()
        self.values = iter(values)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.tensor(next(self.values), dtype=torch.float64)


class Falling(Scripted):
    """Less is better."""

    higher_is_better = False


class NanFirst:
    values: ClassVar[tuple[float, ...]] = (NAN, 0.2, 0.3, 0.4)

    @hookimpl
    def make_metrics(self) -> dict[str, Metric]:
        return {"score": Scripted(self.values)}


class NanAlways(NanFirst):
    values = (NAN, NAN, NAN, NAN)


class InfFirst(NanFirst):
    values = (INF, 0.2, 0.3, 0.4)


def sets(folder: Path, *more: str) -> tuple[str, ...]:
    return (
        f"run.folder={folder}",
        "train.monitor=score",
        "train.epochs=4",
        "train.batch_size=290",
        "run.keep=9",
        *more,
    )


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def run(folder: Path, plugin: type[NanFirst], *more: str) -> tuple[dict[str, Any], str]:
    options = [part for text in sets(folder, *more) for part in ("--set", text)]
    named = ("--plugin", f"{__name__}:{plugin.__name__}")
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *named, "--json", *options)
    assert result.code == 0, result.err
    return json.loads(result.out, parse_constant=refuse), result.err


@pytest.mark.parametrize("plugin", [NanFirst, InfFirst])
def test_a_first_epoch_without_a_number_is_not_the_best_and_patience_does_not_end_the_run(
    plugin: type[NanFirst], tmp_path: Path
) -> None:
    report, printed = run(tmp_path / "run", plugin, "train.patience=3")

    assert (report["epochs"], report["stopped_early"]) == (4, False)
    assert (report["best"]["epoch"], report["best"]["score"]) == (4, 0.4)
    model = load_file(tmp_path / "run" / "model" / "model.safetensors")
    last = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(torch.equal(model[name], last[name]) for name in model)
    assert printed.count("so this epoch cannot be the best") == 1
    assert "the loss is finite, but Scripted has no value for the 73 images" in printed


def test_a_run_without_a_best_epoch_says_so_and_keeps_the_last_network(tmp_path: Path) -> None:
    report, printed = run(tmp_path / "run", NanAlways)

    assert (report["best"], report["last"]["epoch"], report["last"]["score"]) == ({}, 4, None)
    assert printed.count("so this epoch cannot be the best") == 1
    assert (
        "no epoch is the best, because score was not finite in any of 4 epochs; model/ has the network of the last "
        "epoch" in printed
    )
    assert "best score none, it was never finite of 4" in printed
    described = json.loads((tmp_path / "run" / "model" / "model.json").read_text(), parse_constant=refuse)
    assert (described["epoch"], described["metrics"]["score"]) == (4, None)
    for name in ("metrics.jsonl", "log.jsonl"):
        for line in (tmp_path / "run" / name).read_text(encoding="utf-8").splitlines():
            json.loads(line, parse_constant=refuse)
    json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    listed = json.loads(invoke("runs", tmp_path, "--json").out, parse_constant=refuse)
    assert [(found["epochs"], found["monitor"], found["best"]) for found in listed] == [(4, "score", None)]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_run_that_waits_for_a_first_number_stops_when_its_patience_ends(tmp_path: Path) -> None:
    report, printed = run(tmp_path / "run", NanAlways, "train.patience=2")

    assert (report["epochs"], report["stopped_early"], report["best"]) == (2, True, {})
    assert "stopped: score has not improved for train.patience epochs" in printed


def test_a_loss_that_is_no_number_is_told_with_what_of_the_network_is_none(parts: TrainingParts) -> None:
    mine = attrs.evolve(parts, evaluation=attrs.evolve(parts.evaluation, monitor="loss"))
    name, buffer = next((n, b) for n, b in parts.network.named_buffers() if b.is_floating_point())
    before = buffer.clone()

    with structlog.testing.capture_logs() as logged:
        update_best(mine, Progress(epoch=1), {"epoch": 1, "loss": NAN})
        buffer.fill_(INF)
        update_best(mine, Progress(epoch=1), {"epoch": 1, "loss": NAN})
    buffer.copy_(before)

    assert [event["event"].partition(": ")[2] for event in logged] == [
        "the loss of the validation split is nan; its weights are finite",
        f"the loss of the validation split is nan, and so is {name} of the network",
    ]


@pytest.fixture(scope="module")
def parts() -> TrainingParts:
    flags = CliOverrides("digits/cnn", "digits:5-6", sets=("train.patience=3",))
    return prepare(load_config(None, flags)).assembly.parts


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([NAN, 0.2, NAN, 0.3, 0.1], 4),
        ([NAN, NAN, -5.0], 3),
        ([INF, -INF, 0.0, -1.0], 3),
        ([0.3, INF, NAN, -INF, 0.2], 1),
    ],
)
def test_epochs_are_counted_as_torch_counts_them_for_a_plateau_and_none_wins_without_a_number(
    parts: TrainingParts,
    values: list[float],
    best: int,
    up: bool,  # noqa: FBT001
) -> None:
    metric = (Scripted if up else Falling)(())
    mine = attrs.evolve(parts, evaluation=attrs.evolve(parts.evaluation, metrics={"score": metric}, monitor="score"))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([torch.zeros(1)]), mode="max" if up else "min", threshold=0, threshold_mode="abs", patience=99
    )
    progress = Progress()

    for epoch, value in enumerate(values if up else [-value for value in values], start=1):
        progress.epoch = epoch
        update_best(mine, progress, {"epoch": epoch, "score": value})
        plateau.step(value if math.isfinite(value) else NAN)
        assert progress.epochs_since_best == plateau.num_bad_epochs
        assert should_stop_early(mine, progress) == (plateau.num_bad_epochs >= 3)

    assert progress.best["epoch"] == best


@pytest.mark.parametrize("nothing", [NAN, INF, -INF, None])
@pytest.mark.parametrize("up", [True, False])
def test_what_is_no_finite_number_is_worse_than_any(nothing: float | None, up: bool) -> None:  # noqa: FBT001
    worst = -1e300 if up else 1e300

    assert comparable(nothing, higher_is_better=up) < comparable(worst, higher_is_better=up)


def test_a_plateau_is_not_held_by_a_value_that_is_none(tmp_path: Path) -> None:
    """An infinite score would be torch's best for ever, and lower the rate in each epoch behind it."""
    more = ("plateau.patience=1", "plateau.threshold=0", "train.epochs=4")
    flags = CliOverrides(
        "digits/cnn", "digits:5-6", (f"{__name__}:InfFirst", "plateau", "sgd"), sets=sets(tmp_path / "run", *more)
    )
    rates: list[float] = []

    fit(load_config(None, flags), [lambda event: rates.extend(getattr(event, "lr", ()))])

    assert len(set(rates)) == 1


def test_a_run_whose_best_was_none_goes_on_and_forgets_it(tmp_path: Path) -> None:
    """As a version wrote it in which the first epoch was the best, whatever its value."""
    flags = CliOverrides(
        "digits/cnn", "digits:5-6", (f"{__name__}:NanFirst",), sets=sets(tmp_path / "run", "train.epochs=1")
    )
    fit(load_config(None, flags))
    saved = tmp_path / "run" / "checkpoints" / "step-00000001"
    state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
    state["progress"]["best"] = {**state["progress"]["last"]}
    state["progress"]["best_value"] = {"$float": "nan"}
    for name in ("overflows", "unmeasured_epochs"):  # which it did not know
        del state["progress"][name]
    del state["progress"]["current"]["skipped"]
    (saved / "state.json").write_text(json.dumps(state), encoding="utf-8")
    write_manifest(saved)
    assert state["progress"]["best"]["score"] == {"$float": "nan"}

    report = resume(tmp_path / "run", ["train.epochs=3"], allow_drift=True)

    assert (report["best"]["epoch"], report["epochs"]) == (3, 3)


# what a split cannot have


def multilabel(*rows: tuple[int, ...]) -> tuple[ImageSplit, Multilabel]:
    targets = np.array(rows, dtype=np.uint8)
    names = tuple("abcdefgh"[: targets.shape[1]])
    images: Any = None
    return ImageSplit(images, np.arange(len(targets)), targets), Multilabel(names, counts=(1,) * len(names))


def test_a_metric_without_a_positive_label_is_found_before_training_where_scikit_learn_warns() -> None:
    split, task = multilabel((0, 0), (0, 0), (0, 0))
    metrics = {"average_precision": AveragePrecision(2), "average_precision_of_each": AveragePrecisionOfEach(2)}

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        average_precision_score(split.targets, np.random.default_rng(0).random((3, 2)), average=None)
    with pytest.raises(
        UserError,
        match="average_precision, which selects .* cannot be computed for a, b on the 3 images of the validation "
        r"split; .*monitor loss: --set train.monitor=loss",
    ):
        check_metrics_are_defined(metrics, "average_precision", split, task)

    assert {"No positive class found in y_true, recall is set to one for all thresholds."} == {
        str(warning.message) for warning in warned
    }


def test_what_is_measured_of_some_labels_alone_is_said() -> None:
    split, task = multilabel((1, 0, 0), (1, 0, 1))
    metrics = {"average_precision": AveragePrecision(3), "other": Scripted(())}

    with structlog.testing.capture_logs() as logged:
        check_metrics_are_defined(metrics, "average_precision", split, task)

    assert [event["event"] for event in logged] == [
        "average_precision cannot be computed for b on the 2 images of the validation split"
    ]


def test_a_metric_that_is_not_monitored_does_not_stop_a_run_that_cannot_have_it() -> None:
    split, task = multilabel((0, 0), (0, 0))

    with structlog.testing.capture_logs() as logged:
        check_metrics_are_defined({"average_precision": AveragePrecision(2)}, "loss", split, task)

    assert len(logged) == 1


def test_a_split_with_all_labels_has_every_metric() -> None:
    split, task = multilabel((0, 1), (1, 0))

    with structlog.testing.capture_logs() as logged:
        check_metrics_are_defined({"average_precision": AveragePrecision(2)}, "average_precision", split, task)

    assert logged == []
