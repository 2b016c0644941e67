"""The page that explains a run: its numbers, what it is drawn from, and what it survives."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
import structlog
import torch
from PIL import Image
from sklearn import metrics
from sklearn.calibration import calibration_curve
from tests.ranks.starting import messages
from tests.ranks.starting import run as run_in_processes
from torch.nn.modules.module import register_module_forward_pre_hook

from ftcore import BatchEvaluated, EpochEnded, RunFailed, RunStarted, StepLogged, Table, Task, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.inference import load as inference_load
from ftcore.inference.gradcam import explain_prediction
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.runs.run import fit, resume
from ftcore.system.signals import StoppedBySignal
from ftcore.testing import image_folder, invoke
from ftcore_plugins.observers.report import record
from ftcore_plugins.observers.report import scores as report_scores
from ftcore_plugins.observers.report.accumulators import TopK
from ftcore_plugins.observers.report.page import page
from ftcore_plugins.observers.report.reporter import Reporter
from ftcore_plugins.observers.report.statistics import measured
from ftcore_plugins.observers.report.thumbnails import thumbnail
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from ftcore import Event, SampleDataset
    from ftcore.config.schema import RunConfig

MB = 1_000_000


def config(
    folder: Path,
    *sets: str,
    data: str = "digits:5-9",
    model: str = "digits/cnn",
    plugins: Sequence[str] = (),
    without: Sequence[str] = (),
) -> RunConfig:
    few = ("train.epochs=2", "train.batch_size=64", f"run.folder={folder}")
    return load_config(None, CliOverrides(model, data, plugins, without, (*few, *sets)))


def labels_table(folder: Path) -> Path:
    """Digits as pictures with two labels, of which a picture may have none."""
    from sklearn.datasets import load_digits

    digits, lines = load_digits(), ["path,even,small"]
    for place, (image, digit) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        Image.fromarray((image * (255 / 16)).astype("uint8")).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{int(digit % 2 == 0)},{int(digit < 5)}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "labels.csv"


@attrs.frozen
class Seen:
    """A run with a report, and what its network gave for the validation split in the last epoch.

    Attributes:
        folder: of the run.
        task: of it.
        outputs: (N, K), as the metrics see them.
        targets: of them.
        val: metrics of the last epoch.
    """

    folder: Path
    task: Task
    outputs: Tensor
    targets: Tensor
    val: dict[str, Any]

    @property
    def record(self) -> record.Record:
        return record.read(self.folder)

    @property
    def counts(self) -> dict[str, Any]:
        """Of the last epoch."""
        return self.record.last_evaluation

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


def seen(asked: RunConfig) -> Seen:
    """Train, and look at what goes through the network by the same events."""
    batches: list[BatchEvaluated] = []
    found: dict[str, Any] = {}

    def observe(event: Event) -> None:
        match event:
            case RunStarted(task=task):
                found["task"] = task
            case BatchEvaluated():
                batches.append(event)
            case EpochEnded():
                found["val"], found["batches"] = dict(event.val), list(batches)
                batches.clear()
            case _:
                pass

    fit(asked, [observe])
    last = found["batches"]
    assert torch.cat([batch.indices for batch in last]).tolist() == list(range(sum(len(b.indices) for b in last)))
    outputs, targets = (torch.cat([getattr(batch, name) for batch in last]) for name in ("outputs", "targets"))
    assert asked.run.folder
    return Seen(Path(asked.run.folder), found["task"], outputs, targets, found["val"])


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen(config(tmp_path_factory.mktemp("classes") / "run"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("labels")
    return seen(config(folder / "run", 'table.target=["even", "small"]', data=str(labels_table(folder))))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen(config(tmp_path_factory.mktemp("numbers") / "run", "data.task=regression"))


class Tables(HTMLParser):
    """Tables of a page: caption -> rows of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.caption, self.inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
        if tag in {"th", "td", "caption"}:
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.found.setdefault(self.caption, self.rows)
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "caption":
            self.caption += data
        elif self.inside:
            self.rows[-1][-1] += data


# The numbers are scikit-learn's


def test_precision_recall_and_f1_of_classes_are_scikit_learns(classes: Seen) -> None:
    predicted = classes.outputs.argmax(dim=1)
    expected = metrics.precision_recall_fscore_support(classes.targets, predicted, zero_division=np.nan)

    found = report_scores.per_class_scores(classes.counts, classes.task.names)

    assert [each.name for each in found] == list(classes.task.names)
    for column, name in zip(expected, ("precision", "recall", "f1", "true"), strict=True):
        assert [getattr(each, name) for each in found] == pytest.approx(column.tolist(), abs=1e-12)
    assert report_scores.mean([each.f1 for each in found]) == pytest.approx(classes.val["f1"], abs=1e-6)
    assert sum(classes.counts["hits"]) / len(predicted) == pytest.approx(classes.val["accuracy"], abs=1e-6)


def test_the_confusion_matrix_is_scikit_learns(classes: Seen) -> None:
    expected = metrics.confusion_matrix(classes.targets, classes.outputs.argmax(dim=1))

    found = np.zeros_like(expected)
    for true, predicted, images in classes.counts["pairs"]:
        found[true, predicted] = images

    assert (found == expected).all()
    assert classes.val["confusion_matrix"] == expected.tolist()


def test_a_class_that_is_never_there_or_never_said_has_no_score_instead_of_a_zero() -> None:
    true, predicted = [0, 0, 1], [0, 1, 1]
    event = batch(torch.nn.functional.one_hot(torch.tensor(predicted), 4).float(), torch.tensor(true))
    counter = measured(Classification(("a", "b", "c", "d")), 3)
    assert counter
    counter.add(event)

    found = report_scores.per_class_scores(counter.result(), "abcd")

    expected = metrics.precision_recall_fscore_support(true, predicted, labels=range(4), zero_division=np.nan)
    for column, name in zip(expected, ("precision", "recall", "f1"), strict=False):
        got = [getattr(each, name) for each in found]
        assert [math.nan if value is None else value for value in got] == pytest.approx(column.tolist(), nan_ok=True)


def test_the_reliability_diagram_is_scikit_learns(classes: Seen) -> None:
    confidence, predicted = classes.task.decode(classes.outputs).max(dim=1)
    right = predicted == classes.targets
    accuracy, mean = calibration_curve(right.numpy(), confidence.double().numpy(), n_bins=15)

    bins = [found for found in report_scores.reliability(classes.counts) if found.images]

    assert [found.accuracy for found in bins] == pytest.approx(accuracy.tolist(), abs=1e-9)
    assert [found.confidence for found in bins] == pytest.approx(mean.tolist(), abs=1e-6)
    gaps = [found.images * abs((found.accuracy or 0) - (found.confidence or 0)) for found in bins]
    assert report_scores.calibration_error(classes.counts) == pytest.approx(sum(gaps) / len(predicted), abs=1e-6)


def test_the_threshold_curves_of_labels_are_scikit_learns(labels: Seen) -> None:
    given = labels.task.decode(labels.outputs)
    for place in range(len(labels.task.names)):
        assert labels.counts["drawn"] == [0, 1]
        curve = report_scores.threshold_curve(labels.counts["present"][place], labels.counts["absent"][place])

        assert [cut.threshold for cut in curve] == pytest.approx(np.linspace(0, 1, 101).tolist())
        for cut in curve[::7]:
            chosen = (given[:, place] >= torch.tensor(cut.threshold)).int()
            p, r, f1, _ = metrics.precision_recall_fscore_support(
                labels.targets[:, place], chosen, average="binary", zero_division=np.nan
            )
            got = [math.nan if value is None else value for value in (cut.precision, cut.recall, cut.f1)]
            assert got == pytest.approx([p, r, f1], nan_ok=True)


def test_precision_recall_and_f1_of_labels_are_scikit_learns(labels: Seen) -> None:
    chosen = labels.task.decode(labels.outputs) > 0.5
    expected = metrics.precision_recall_fscore_support(labels.targets, chosen, zero_division=np.nan)

    found = report_scores.per_class_scores(labels.counts, labels.task.names)

    for column, name in zip(expected, ("precision", "recall", "f1", "true"), strict=True):
        assert [getattr(each, name) for each in found] == pytest.approx(column.tolist(), abs=1e-12)
    assert [each.f1 for each in found] == pytest.approx(labels.val["f1_of_each"], abs=1e-6)


def test_the_errors_of_numbers_are_scikit_learns(numbers: Seen) -> None:
    true, predicted = numbers.targets.double(), numbers.outputs.double()

    assert isinstance(numbers.task, Regression)
    (found,) = report_scores.errors(numbers.counts, numbers.task.names, numbers.task.std)

    assert found.rmse == pytest.approx(metrics.root_mean_squared_error(true, predicted))
    assert found.mae == pytest.approx(metrics.mean_absolute_error(true, predicted))
    assert found.r2 == pytest.approx(metrics.r2_score(true, predicted))
    assert found.bias == pytest.approx(float((predicted - true).mean()))
    assert (found.rmse, found.r2) == pytest.approx((numbers.val["rmse"], numbers.val["r2"]), abs=1e-4)


def test_every_image_is_in_the_drawings_of_numbers_once(numbers: Seen) -> None:
    (bars,), (grid,) = numbers.counts["residuals"], numbers.counts["grid"]

    assert isinstance(numbers.task, Regression)
    residuals = ((numbers.outputs - numbers.targets)[:, 0] / numbers.task.std[0]).numpy()
    edges = bars["low"] + bars["width"] * np.arange(len(bars["counts"]) + 1)
    expected = np.histogram(residuals.clip(edges[0], edges[-1]), edges)[0]
    assert sum(bars["counts"]) == sum(images for *_, images in grid["cells"]) == len(residuals)
    assert np.abs(np.array(bars["counts"]) - expected).sum() <= 2  # on an edge, to which side it rounds


def test_the_page_shows_these_numbers(classes: Seen) -> None:
    found = Tables(classes.page).found

    predicted = classes.outputs.argmax(dim=1)
    best = classes.record.best_evaluation["epoch"] == classes.counts["epoch"]
    assert best  # so the last epoch is the one that is shown first
    expected = metrics.precision_recall_fscore_support(classes.targets, predicted)
    rows = found["Precision, recall and F1 of each class"][1:]
    assert [row[0] for row in rows] == list(classes.task.names)
    assert [row[3:6] for row in rows] == [[f"{value:.4f}" for value in row] for row in np.stack(expected[:3]).T]
    assert [row[1] for row in rows] == [str(images) for images in expected[3]]
    matrix = [[int(cell.replace("·", "0")) for cell in row[1:]] for row in found["Confusion matrix"][1:]]
    assert matrix == metrics.confusion_matrix(classes.targets, predicted).tolist()


# What is counted


def batch(outputs: Tensor, targets: Tensor, first: int = 0) -> BatchEvaluated:
    return BatchEvaluated(torch.arange(first, first + len(outputs)), outputs, targets)


TASKS = {
    "classes": Classification(tuple("abcdefg")),
    "labels": Multilabel(tuple("abcde")),
    "numbers": Regression(tuple("abc"), mean=(1.0, 2000.0, -3.0), std=(0.1, 5.0, 2.0)),
}


def made(task: Task, size: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets at random."""
    draw = torch.Generator().manual_seed(size)
    outputs = 2 * torch.randn(size, task.outputs, generator=draw)
    if isinstance(task, Classification):
        return outputs, torch.randint(task.outputs, (size,), generator=draw)
    if isinstance(task, Multilabel):
        return outputs, torch.randint(2, (size, task.outputs), generator=draw).float()
    assert isinstance(task, Regression)
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    return outputs * std + mean, torch.randn(size, task.outputs, generator=draw) * std + mean


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_is_counted_does_not_depend_on_the_batches(task: Task) -> None:
    outputs, targets = made(task, 500)
    results = []
    for size in (500, 64, 1):
        counter = measured(task, 5)
        assert counter
        for start in range(0, 500, size):
            counter.add(batch(outputs[start : start + size], targets[start : start + size], start))
        results.append(counter.result())

    for other in results[1:]:
        assert flat(other) == pytest.approx(flat(results[0]), rel=1e-5, abs=1e-5)


def flat(value: Any) -> list[Any]:
    """All numbers of nested plain data, in order."""
    if isinstance(value, dict | list):
        return [item for inner in (value.values() if isinstance(value, dict) else value) for item in flat(inner)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_memory_does_not_grow_with_the_samples(task: Task) -> None:
    counter: Any = measured(task, 24)
    sizes = []
    for start in range(0, 4000, 1000):
        counter.add(batch(*made(task, 1000), start))
        kept = [*counter.sums.values(), *counter.worst.columns]
        sizes.append(sum(tensor.numel() for tensor in kept))

    assert len(set(sizes)) == 1


def test_the_worst_of_all_samples_are_kept_whatever_the_batches() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    worst = TopK(7)

    for part in torch.tensor_split(values, 31):
        worst.add(part, part)

    assert [row[0] for row in worst.rows()] == values.sort(descending=True).values[:7].tolist()


def test_mistakes_are_the_surest_and_the_samples_of_highest_loss_are_the_worst(classes: Seen) -> None:
    given, index = classes.task.decode(classes.outputs), torch.arange(len(classes.targets))
    confidence, predicted = given.max(dim=1)
    wrong = index[predicted != classes.targets]
    surest = wrong[confidence[wrong].argsort(descending=True)][:12].tolist()
    loss = torch.nn.functional.cross_entropy(classes.outputs, classes.targets, reduction="none")
    order = loss.argsort(descending=True).tolist()

    shown = classes.record.best_evaluation

    assert [sample["index"] for sample in shown["confident"]] == surest
    rest = [place for place in order if place not in surest][: 24 - len(surest)]
    assert [sample["index"] for sample in shown["worst"]] == rest
    assert all(sample["name"].startswith("digits[") for sample in shown["worst"])


# What a run leaves


def test_a_run_with_a_report_trains_the_same_network(classes: Seen, tmp_path: Path) -> None:
    without = fit(config(tmp_path / "run", without=("report",)))

    last = json.loads((classes.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: without["last"][name] for name in last["val"]} == last["val"]
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"report.html", "report.json"}


def test_the_page_says_what_was_decided_and_where_each_setting_came_from(classes: Seen) -> None:
    found = Tables(classes.page).found

    plugins = {row[0]: row[1:] for row in found["Plugins"][1:]}
    assert plugins["cross_entropy"][:2] == ["make_loss", "ftcore 0.1.0"]
    assert ["train.epochs", "2", "--set train.epochs=2"] in found["Set for this run"]
    assert ["adamw.lr", "0.001", "default"] in found["Defaults"]
    assert ["torch", torch.__version__.partition("+")[0]] in [row[:2] for row in found["Versions"]]
    assert {row[0] for row in found["trainable parameters"]} >= {"layer1", "head"}
    assert "56,229 / 56,229 parameters are trainable" in classes.page


def test_a_network_of_which_all_but_the_head_is_computed_once_has_the_same_report(tmp_path: Path) -> None:
    found = {}
    for once in ("always", "never"):
        fit(config(tmp_path / once, f"train.precompute={once}", plugins=("linear_probe",)))
        counts = record.read(tmp_path / once).best_evaluation
        shown = [sample["name"] for sample in [*counts["confident"], *counts["worst"]]]
        found[once] = {**{name: counts[name] for name in ("true", "predicted", "hits", "pairs")}, "shown": shown}

    assert found["always"] == found["never"]
    assert len(found["never"]["shown"]) == 24


def test_what_is_frozen_is_told_with_its_number_of_parameters(tmp_path: Path) -> None:
    fit(config(tmp_path / "run", "train.epochs=1", plugins=("freeze_backbone",)))

    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in Tables(text).found["trainable parameters"]}
    assert rows["layer1"][:3] == ["frozen", "352", "0"]
    assert rows["head"][:3] == ["trainable", "325", "325"]
    assert "325 / 56,229 parameters are trainable" in text


def test_what_is_released_later_is_told_with_its_epoch(tmp_path: Path) -> None:
    released = 'gradual_unfreeze.at={0 = "head", 1 = "layer3"}'
    fit(config(tmp_path / "run", released, plugins=("gradual_unfreeze",)))

    found = Tables((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).found
    assert found["unfrozen later"][1:] == [["1", "head"], ["2", "layer3"]]
    assert ["layer3", "frozen", "36,992", "0"] in [row[:4] for row in found["trainable parameters"]]


def test_the_gain_over_the_head_alone_is_told_where_that_was_trained_first(tmp_path: Path) -> None:
    fit(config(tmp_path / "both", "train.epochs=5", "lp_ft.probe_epochs=2", plugins=("lp_ft",)))
    fit(config(tmp_path / "all", "train.epochs=2"))
    fit(config(tmp_path / "head", "train.epochs=2", plugins=("linear_probe",)))

    shown = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("both", "all", "head")]
    scores = [
        json.loads(line)["val"]["accuracy"] for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()
    ]
    probe = max(scores[:2])
    assert max(scores) == max(scores[2:])
    value = f'<span class="what">gain over a linear probe</span><span class="value">+{max(scores) - probe:.4f}</span>'
    remark = f"accuracy {probe:.4f} in epoch {scores.index(probe) + 1}, before more than the head was trained"
    assert f'{value}<span class="remark">{remark}</span>' in shown[0]
    assert not any("linear probe" in text.partition("<nav")[0] for text in shown[1:])


def test_numbers_of_what_learns_are_told_and_kept_as_numbers(tmp_path: Path) -> None:
    told: list[RunStarted] = []
    job = config(tmp_path / "run", "train.epochs=2", "lp_ft.probe_epochs=1", plugins=("lp_ft",))

    fit(job, [lambda event: told.append(event) if isinstance(event, RunStarted) else None])

    (event,), kept = told, record.read(tmp_path / "run")
    assert (event.trainable_parameters, event.total_parameters) == (325, 56_229)
    assert (event.heads, event.releases) == (("head",), {1: ("head",), 2: ("",)})
    assert (kept.trainable_parameters, kept.total_parameters) == (325, 56_229)
    assert (kept.heads, kept.releases) == (["head"], [[1, ["head"]], [2, [""]]])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<span class="value">325</span><span class="remark">of 56,229 parameters</span>' in page


def test_a_record_of_a_version_that_kept_no_such_numbers_is_drawn_without_them(tmp_path: Path) -> None:
    fit(config(tmp_path / "run", "train.epochs=3", "lp_ft.probe_epochs=1", plugins=("lp_ft",)))
    new = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    file = tmp_path / "run" / "report.json"
    newer = {"trainable_parameters", "total_parameters", "heads", "releases"}
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name not in newer}
    file.write_text(json.dumps(kept), encoding="utf-8")

    result = invoke("report", tmp_path / "run")

    assert result.code == 0, result.err
    old = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    tile = r'<li><span class="what">(?:trainable|gain over a linear probe)</span>.*</li>\n'
    assert len(re.findall(tile, new)) == 2
    assert re.sub(tile, "", new) == old
    assert "325 / 56,229 parameters are trainable when the run begins" in old


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_the_command_writes_the_same_page_again(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind).folder
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()

    result = invoke("report", folder)

    assert result.out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_bytes() == before


def test_the_command_draws_where_the_network_saw_what_it_said(tmp_path: Path) -> None:
    asked = config(tmp_path / "run", "report.pictures=4", "train.epochs=2")
    fit(asked)
    before = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    result = invoke("report", tmp_path / "run", "--why")

    assert result.code == 0, result.err
    after = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    shown = record.read(tmp_path / "run").best_evaluation
    samples = [*shown["confident"], *shown["worst"]]
    assert after.count("<img ") == 2 * before.count("<img ") == 2 * len(samples) > 0
    model = inference_load.load(tmp_path / "run")
    val = HookCalls(activate(asked)).build_data(asked.data.source).val
    for sample in samples:
        said = sample["said"][0][0]
        assert f'alt="the same, bright where the network saw {said}"' in after
        assert sample["heat"] == thumbnail(explain_prediction(model, val[sample["index"]][0], said).overlay())
    assert invoke("report", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == after


def test_pictures_that_are_others_now_are_not_drawn_on(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", ("red", "blue"), per_class=8)
    sets = ("train.epochs=1", "model.weights=none")
    fit(config(tmp_path / "run", *sets, data=str(pictures), model="timm/test_resnet"))
    before = (tmp_path / "run" / "report.html").read_bytes()
    for file in pictures.rglob("*.jpg"):
        file.rename(file.with_stem(f"x{file.stem}"))

    result = invoke("report", tmp_path / "run", "--why")

    assert result.code == 2
    assert f"the data of {tmp_path / 'run'} has changed: " in result.err
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_the_command_refuses_a_run_without_a_report_and_a_folder_of_no_run(tmp_path: Path) -> None:
    fit(config(tmp_path / "run", "train.epochs=1", without=("report",)))

    assert "was made without a plugin that writes a report" in invoke("report", tmp_path / "run").err
    assert "is not a run folder" in invoke("report", tmp_path).err


DAMAGE = ["{", "null", "[]", '{"epoch": 1}', '{"epoch": 1, "val": 3}', "[" * 100_000, "\0\xff"]
"""Lines of a history that a disk or a person has spoilt."""


def test_the_command_leaves_out_damaged_lines_of_the_history_and_says_so(classes: Seen, tmp_path: Path) -> None:
    run = shutil.copytree(classes.folder, tmp_path / "run")
    for name in ("metrics.jsonl", "log.jsonl"):
        before = (run / name).read_text(encoding="utf-8").splitlines() if (run / name).exists() else []
        spoilt = [*DAMAGE, *before, *('{"level": "warning", ' for _ in range(2))]
        (run / name).write_text("\n".join(spoilt), encoding="utf-8")

    result = invoke("report", run)

    assert result.code == 0, result.err
    expected, found = (
        Tables((folder / "report.html").read_text(encoding="utf-8")).found["Epochs"] for folder in (classes.folder, run)
    )
    assert found == expected
    for name, lines in (("metrics.jsonl", len(DAMAGE) + 2), ("log.jsonl", 2)):
        assert f"damaged lines are ignored (file={run / name}, lines={lines})" in result.err


@pytest.mark.parametrize(
    "content", ['{"steps": "text"}', '{"steps": [1]}', '{"tables": 3}', '{"best": 3}', "[" * 100_000], ids=repr
)
def test_a_record_that_no_page_can_be_drawn_of_is_one_message_or_an_empty_page(
    classes: Seen, tmp_path: Path, content: str
) -> None:
    run = shutil.copytree(classes.folder, tmp_path / "run")
    (run / "report.json").write_text(content, encoding="utf-8")

    result = invoke("report", run)

    assert result.code in {0, 2}
    assert result.code == 0 or f"{run / 'report.json'} is damaged, so no report can be written" in result.err


def test_the_command_says_that_the_record_is_gone(classes: Seen, tmp_path: Path) -> None:
    for name in ("manifest.json", "config.toml"):
        (tmp_path / name).write_bytes((classes.folder / name).read_bytes())

    result = invoke("report", tmp_path)

    assert result.code == 2
    assert f"there is no {tmp_path / 'report.json'}" in result.err


def test_no_picture_is_in_the_page_where_that_was_asked_for(tmp_path: Path) -> None:
    fit(config(tmp_path / "run", "report.pictures=0", "train.epochs=1"))

    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in text
    assert "the report shows no images" in invoke("report", tmp_path / "run", "--why").err
    assert "Most confident mistakes" not in text
    assert "Precision, recall and F1 of each class" in text


def test_more_pictures_than_a_page_has_room_for_are_refused(tmp_path: Path) -> None:
    result = invoke("run", "--set", "report.pictures=25", "--set", f"run.folder={tmp_path / 'run'}")

    assert result.code == 2
    assert "report.pictures" in result.err


def test_to_name_the_plugin_imports_neither_torch_nor_a_template_engine() -> None:
    check = "import ftcore_plugins.observers.report, sys; print({'torch', 'jinja2', 'matplotlib'} & set(sys.modules))"

    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "set()"


@pytest.mark.slow
def test_two_processes_report_what_one_reports(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        sets = ("train.epochs=1", "train.batch_size=24", f"run.folder={tmp_path / str(ranks)}")
        words = ["run", "--model", "digits/cnn", "--data", "digits:5-7", "--plugin", "freeze_norm"]
        words += ["--plugin", "ddp"] * (ranks > 1) + [word for text in sets for word in ("--set", text)]
        codes = run_in_processes(*words, ranks=ranks, log=tmp_path / f"log-{ranks}")
        assert codes == [0] * ranks, messages(tmp_path / f"log-{ranks}", ranks)
        found.append(record.read(tmp_path / str(ranks)).last_evaluation)

    one, two = found
    assert one["true"] == two["true"]
    assert sum(two["true"]) == sum(n for *_, n in two["pairs"]) == 109  # all of the split, each once
    assert flat(two["confidence"]) == pytest.approx(flat(one["confidence"]), abs=1e-3)
    for kind in ("confident", "worst"):
        assert [sample["index"] for sample in two[kind]] == [sample["index"] for sample in one[kind]]


# Stopped, gone on with, and in the way


def at_step(number: int, act: Callable[[], None]) -> Callable[[Event], None]:
    """Make an observer that does something once a number of steps were logged."""
    logged = iter(range(1, 10**6))

    def observe(event: Event) -> None:
        if isinstance(event, StepLogged) and next(logged) == number:
            act()

    return observe


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_stopped_and_gone_on_with_shows_its_whole_history(tmp_path: Path) -> None:
    sets = ("train.epochs=4", "train.log_every=4")
    fit(config(tmp_path / "whole", *sets))
    with pytest.raises(StoppedBySignal):
        fit(config(tmp_path / "run", *sets), [at_step(8, stop)])
    stopped = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    resume(tmp_path / "run")

    whole, found = record.read(tmp_path / "whole"), record.read(tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "stopped by SIGTERM after step" in stopped
    assert [start["step"] for start in found.starts] == [0, 32]
    assert [row[0] for row in Tables(text).found["Epochs"][1:]] == ["1", "2", "3", "4"]
    assert [row[2] for row in Tables(text).found["Sessions (started and resumed)"][1:]] == [
        "begun",
        "resumed after step 32, epoch 3",
    ]
    assert found.steps == whole.steps
    assert (found.best, found.best_evaluation) == (whole.best, whole.best_evaluation)
    assert "finished" in text


@pytest.mark.slow
def test_a_run_that_is_killed_and_gone_on_with_counts_no_epoch_twice(tmp_path: Path) -> None:
    """What the observers heard after the checkpoint from which a run goes on is trained again."""
    job = config(tmp_path / "run", "train.epochs=4", "run.save_every=2 epochs", "train.log_every=6")
    fit(attrs.evolve(job, run=attrs.evolve(job.run, folder=str(tmp_path / "whole"))))

    class KilledError(Exception):
        pass

    def kill() -> None:
        stack.callback(register_module_forward_pre_hook(die).remove)

    def die(*_: Any) -> None:
        raise KilledError

    with ExitStack() as stack, pytest.raises(KilledError):
        fit(job, [at_step(7, kill)])  # in epoch 4, two steps of an epoch are logged
    assert record.read(tmp_path / "run").last_evaluation["epoch"] == 3
    resume(tmp_path / "run")

    whole, found = record.read(tmp_path / "whole"), record.read(tmp_path / "run")
    assert (found.steps, found.best) == (whole.steps, whole.best)
    assert found.last_evaluation == whole.last_evaluation


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("<b>no</b> more")

    with pytest.raises(UserError, match="more"):
        fit(config(tmp_path / "run", "train.log_every=1", "observers.on_error=stop"), [at_step(14, fail)])

    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "RuntimeError: &lt;b&gt;no&lt;/b&gt; more" in text


def test_a_page_that_cannot_be_written_is_a_warning_and_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text(
        "from ftcore import RunStarted, hookimpl\n"
        "def observe(event):\n"
        "    if isinstance(event, RunStarted):\n"
        "        (event.folder / 'report.html' / 'full').mkdir(parents=True)\n"
        "@hookimpl\n"
        "def make_observers():\n"
        "    return [observe]\n"
    )
    sets = ("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--plugin", tmp_path / "blocks.py", *sets, "--json")

    assert result.code == 0, result.err
    assert result.report["epochs"] == 1
    assert "ftcore: warning: report.html is not up to date" in result.err
    assert not list((tmp_path / "run").glob(".new-*"))


def test_a_record_that_is_damaged_ends_no_run(tmp_path: Path) -> None:
    job = config(tmp_path / "run", "train.log_every=4")
    with pytest.raises(StoppedBySignal):
        fit(job, [at_step(5, stop)])
    (tmp_path / "run" / "report.json").write_text('{"facts": 3', encoding="utf-8")

    report = resume(tmp_path / "run")

    assert report["epochs"] == 2
    assert [row[0] for row in Tables((tmp_path / "run" / "report.html").read_text()).found["Epochs"][1:]] == ["1", "2"]


# Large, and hostile


@attrs.frozen
class Noise:
    """Pictures that compress badly."""

    name_of: Callable[[int], str]

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        return Image.fromarray(pixels), 0

    def name(self, index: int) -> str:
        return self.name_of(index)


def events(task: Task, folder: Path, val: SampleDataset, epochs: int, groups: int = 1) -> Iterator[Event]:
    """Those of a run of many epochs, with what its metrics would be."""
    names = tuple(f"group {place}" for place in range(groups))
    table = Table("images", ("class", "train", "val"), tuple((name, "12", "3") for name in task.names))
    started = RunStarted(folder, {}, (table,), epochs, 50, groups=names, task=task, val=val)
    yield attrs.evolve(started, trainable_parameters=1, total_parameters=2)
    for epoch in range(1, epochs + 1):
        for step in range(10, 60, 10):
            rates = tuple(0.1 / epoch / (place + 1) for place in range(groups))
            yield StepLogged(epoch, step, 1 / epoch, rates, 100.0, {}, 1.0 + step)
        yield batch(*made(task, 600))
        loss = {"loss": 1.0 / epoch, "penalty": 0.1}
        values = {"loss": 1.1 / epoch, **{f"metric_{place}": 1 - 1 / epoch for place in range(4)}}
        yield EpochEnded(epoch, 50 * epoch, loss, values, epoch % 7 == 1, "metric_0", 1.0, 100.0)


class DrawsLast(Reporter):
    """Draws the last page alone, where there are hundreds."""

    def write(self) -> None:
        if self.record.epochs == len(self.epochs) or self.record.epochs < 3:
            super().write()


def told(told_events: Iterator[Event]) -> Reporter:
    reporter = DrawsLast(24, structlog.get_logger())
    for event in told_events:
        reporter.hear(event)
    return reporter


LARGE = {
    "100 classes": Classification(tuple(f"a class with a name, {place}" for place in range(100))),
    "1000 classes": Classification(tuple(f"a class with a name, {place}" for place in range(1000))),
    "2000 classes": Classification(tuple(f"a class with a name, {place}" for place in range(2000))),
    "500 labels": Multilabel(tuple(f"a label with a name, {place}" for place in range(500))),
    "40 numbers": Regression(tuple(f"target {n}" for n in range(40)), mean=(0.0,) * 40, std=(1.0,) * 40),
}


@pytest.mark.parametrize("task", LARGE.values(), ids=LARGE)
def test_a_page_of_much_is_below_two_megabytes(tmp_path: Path, task: Task) -> None:
    epochs = 300 if task.outputs == 100 else 9

    reporter = told(events(task, tmp_path, Noise("pictures/{}.jpg".format), epochs, groups=30))

    assert reporter.record.last_evaluation["epoch"] == epochs
    size = (tmp_path / "report.html").stat().st_size
    assert 0.1 * MB < size < 2 * MB
    assert (tmp_path / "report.json").stat().st_size < 4 * MB
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<img ") == 24
    assert max(len(rows) for rows in Tables(text).found.values()) <= 502


def test_a_long_history_is_thinned_out_evenly(tmp_path: Path) -> None:
    task = TASKS["classes"]

    reporter = told(events(task, tmp_path, Noise(str), 400))

    steps = [point[0] for point in reporter.record.steps]
    assert 250 <= len(steps) <= record.POINTS
    assert len({later - earlier for earlier, later in pairwise(steps)}) == 1
    assert len(reporter.epochs) == 400


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; --><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "a\u202egnp.exe",
    "]]></style><style>*{display:none}",
)


def hostile(folder: Path, kind: Any = Classification) -> None:
    """Draw a page whose every name is hostile."""
    spread = {"mean": (1.0,) * len(HOSTILE), "std": (2.0,) * len(HOSTILE)} if kind is Regression else {}
    task = kind(HOSTILE, **spread)
    (folder / "config.toml").write_text(f"[run]\nfolder = '{HOSTILE[0]}' # {HOSTILE[1]}\n", encoding="utf-8")
    told(events(task, folder, Noise(lambda index: HOSTILE[index % len(HOSTILE)] + "\udcff.jpg"), 3))


class Tags(HTMLParser):
    """Elements of a page, and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value for name, value in attributes if name in {"href", "src"}}


@pytest.mark.parametrize("kind", [Classification, Multilabel, Regression])
def test_names_that_would_be_code_are_text(tmp_path: Path, kind: Any) -> None:
    hostile(tmp_path, kind)
    text = (tmp_path / "report.html").read_bytes().decode("utf-8")

    found = Tags(text)
    assert not found.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) or link == "data:," for link in found.links)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("</style>") == 1
    assert "\\udcff.jpg" in text


def test_a_folder_of_pictures_with_odd_names_is_reported(tmp_path: Path) -> None:
    names = ("<b>", "a & b", "\N{SNOWMAN}")
    pictures = image_folder(tmp_path / "pictures", names, per_class=8)
    sets = ("train.epochs=1", f"run.folder={tmp_path / 'run'}", "model.weights=none", "model.image_size=32")
    words = ["run", "--data", str(pictures), "--model", "timm/test_resnet"]

    result = invoke(*words, *(word for text in sets for word in ("--set", text)))

    assert result.code == 0, result.err
    assert "not up to date" not in result.err
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert [row[0] for row in Tables(text).found["Confusion matrix"][1:]] == sorted(names)
    assert text.count("<img ") > 0
    assert "<b>" not in text


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_network_that_gives_no_numbers_any_more_has_a_page(tmp_path: Path, task: Task) -> None:
    outputs, targets = made(task, 50)
    for number in (math.nan, math.inf):
        wrong = attrs.evolve(batch(outputs, targets), outputs=outputs.where(torch.rand_like(outputs) > 0.3, number))
        loss, val = {"loss": number}, {"loss": number, "accuracy": number}
        ended = EpochEnded(1, 5, loss, val, best=True, monitor="accuracy", seconds=1.0, samples_per_second=1.0)
        started = RunStarted(tmp_path, {}, (), 2, 5, task=task, val=Noise(str))

        reporter = told(iter([started, wrong, ended, RunFailed("it is not finite")]))

        reporter.write()
        assert json.loads((tmp_path / "report.json").read_text())["last_evaluation"]["epoch"] == 1
        before = (tmp_path / "report.html").read_text()
        (tmp_path / "metrics.jsonl").write_text(
            json.dumps(record.plain(reporter.epochs[0] | {"val": val})) + "\n", encoding="utf-8"
        )
        reporter.redraw(tmp_path)
        assert (tmp_path / "report.html").read_text() == before
        (tmp_path / "metrics.jsonl").unlink()


def test_a_page_of_nothing_is_a_page(tmp_path: Path) -> None:
    assert "<main" in page(tmp_path, record.Record(), [])


SLOW = """
import time
from attrs import evolve
from ftcore import hookimpl

SLEPT = []

@hookimpl(wrapper=True)
def make_transforms():
    made = yield
    step = made.evaluate.resize

    def slow(image):
        began = time.monotonic()
        time.sleep(0.002)
        SLEPT.append(time.monotonic() - began)
        return step(image)

    both = evolve(made.evaluate, resize=slow)
    return evolve(made, train=both, evaluate=both)
"""


@pytest.mark.parametrize(("precompute", "passes"), [("always", 1), ("never", 2)])
def test_the_tile_of_images_a_second_counts_what_was_spent_before_the_first_step_of_an_epoch(
    precompute: str, passes: int, tmp_path: Path
) -> None:
    """Every picture is slept on: in each epoch, or once, before the first step of the first."""
    module = f"slow_pictures_{precompute}"
    (tmp_path / f"{module}.py").write_text(SLOW, encoding="utf-8")
    plugins = (str(tmp_path / f"{module}.py"), "freeze_backbone")
    epochs: list[EpochEnded] = []

    def observe(event: Event) -> None:
        if isinstance(event, EpochEnded):
            epochs.append(event)

    sets = ("train.workers=0", f"train.precompute={precompute}")
    report = fit(config(tmp_path / "run", *sets, data="digits:5-6", plugins=plugins), [observe])

    slept, images = sys.modules[module].SLEPT, 290
    assert len(slept) >= passes * images  # both splits, at least
    assert sum(epoch.seconds for epoch in epochs) >= sum(slept[-passes * images :])
    assert sum(epoch.training_seconds for epoch in epochs) >= sum(sorted(slept)[: passes * images])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    spent = sum(line["training_seconds"] for line in lines)
    assert report["samples_per_second"] == pytest.approx(2 * images / spent)
    shown = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    tile = re.search(r"images per second.{,80}?([\d,.]+)<.{,200}? images trained on in ([\d.]+) s", shown, re.DOTALL)
    assert tile
    assert float(tile[1].replace(",", "")) == pytest.approx(2 * images / spent, rel=1e-3)
    assert float(tile[2]) == pytest.approx(spent, abs=0.06)


def test_a_page_of_a_run_that_wrote_down_no_seconds_of_training_has_no_tile_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(config(folder))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    (folder / "metrics.jsonl").write_text(re.sub(r', ?"training_seconds": ?[\d.e-]+', "", lines), encoding="utf-8")

    assert "images per second" not in page(folder, record.read(folder), record.read_epochs(folder))
