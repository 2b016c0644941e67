"""Several labels: loss and metrics against scikit-learn and torch, thresholds, and a whole run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from ftcore import Context, RunConfig
from ftcore.testing import invoke
from ftcore_plugins.losses.bce import BinaryCrossEntropy, BinaryCrossEntropyConfig
from ftcore_plugins.metrics.builtin import MultilabelMetrics
from ftcore_plugins.metrics.multilabel import AveragePrecision, AveragePrecisionOfEach, Thresholds
from ftcore_plugins.tasks import Multilabel

TASK = Multilabel(("boat", "car", "dog"), counts=(50, 10, 25), images=100)


def scores(seed: int, images: int = 60, *, steps: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and labels, related; with `steps`, outputs have that many different values, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(images, 3, generator=generator) > 0.6).float()
    outputs = targets + torch.randn(images, 3, generator=generator)
    return (outputs * steps).round() / steps if steps else outputs, targets


@given(st.integers(0, 1000), st.sampled_from([0, 1, 2, 5]))
def test_average_precision_is_scikit_learns_also_with_ties(seed: int, steps: int) -> None:
    outputs, targets = scores(seed, steps=steps)
    each, mean = AveragePrecisionOfEach(3), AveragePrecision(3)
    for metric in (each, mean):
        metric.update(outputs[:25], targets[:25])
        metric.update(outputs[25:], targets[25:])

    expected = average_precision_score(targets.numpy(), outputs.sigmoid().numpy(), average=None)
    np.testing.assert_allclose(each.compute().numpy(), expected, atol=1e-6)
    assert float(mean.compute()) == pytest.approx(expected.mean(), abs=1e-6)


def test_a_label_that_no_image_has_counts_in_no_mean() -> None:
    outputs, targets = scores(0)
    targets[:, 1] = 0
    mean = AveragePrecision(3)
    mean.update(outputs, targets)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = average_precision_score(targets[:, [0, 2]].numpy(), outputs[:, [0, 2]].numpy())
    assert float(mean.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@given(st.integers(0, 1000), st.sampled_from([0, 1, 2, 5]))
def test_thresholds_reach_the_best_f1_that_any_cut_reaches(seed: int, steps: int) -> None:
    outputs, targets = scores(seed, steps=steps)
    metric = Thresholds(3)
    metric.update(outputs, targets)

    found = metric.compute()

    probabilities = outputs.sigmoid().numpy()
    for label in range(3):
        cuts = [*np.unique(probabilities[:, label]), 2.0]
        best = max(f1_score(targets[:, label], probabilities[:, label] >= c, zero_division=0) for c in cuts)
        reached = f1_score(targets[:, label], probabilities[:, label] >= float(found[label]), zero_division=0)
        assert reached == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("positive", "factors"),
    [("equal", [1.0, 1.0, 1.0]), ("balanced", [1.0, 9.0, 3.0]), ({"car": 10.0}, [1.0, 10.0, 1.0])],
    ids=["equal", "balanced", "table"],
)
def test_bce_is_the_formula_written_out(positive: object, factors: list[float]) -> None:
    outputs, targets = scores(1)
    ctx = Context(Path(), structlog.get_logger(), named=False)
    loss = BinaryCrossEntropy(BinaryCrossEntropyConfig(positive)).make_loss(TASK, ctx)  # type: ignore[arg-type]

    assert loss is not None
    p = outputs.double().sigmoid()
    expected = -(torch.tensor(factors).double() * targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert float(loss.function(outputs, targets)) == pytest.approx(float(expected), rel=1e-5)
    assert loss.denominator(targets) == 60


def table(folder: Path) -> Path:
    """Pictures that are red, green, both or neither; the labels are in one cell."""
    noise, lines = np.random.default_rng(0), ["path,colours"]
    folder.mkdir()
    for number in range(80):
        red, green = number % 2, number // 2 % 2
        pixels = noise.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
        pixels[..., 0] += np.uint8(160 * red)
        pixels[..., 1] += np.uint8(160 * green)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'|'.join(['red'] * red + ['green'] * green)}")
    (folder / "colours.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "colours.csv"


def test_a_run_learns_several_labels_and_predict_uses_the_thresholds_of_its_validation(tmp_path: Path) -> None:
    sets = ["table.labels=|", "train.epochs=15", "model.weights=none", "adamw.lr=0.01", "model.image_size=32"]
    sets += [f"run.folder={tmp_path / 'run'}", "train.batch_size=16"]
    words = [word for text in sets for word in ("--set", text)]
    result = invoke("run", "--data", table(tmp_path / "data"), "--model", "timm/test_resnet", *words, "--json")

    assert result.code == 0, result.err
    assert "multilabel: green, red" in result.err
    best = result.report["best"]
    assert best["average_precision"] > 0.95
    assert len(best["thresholds"]) == len(best["f1_of_each"]) == 2

    model = json.loads((tmp_path / "run" / "model" / "model.json").read_text(encoding="utf-8"))
    model["metrics"]["thresholds"] = [0.0, 1.0]
    (tmp_path / "run" / "model" / "model.json").write_text(json.dumps(model), encoding="utf-8")
    line = json.loads(invoke("predict", tmp_path / "run", tmp_path / "data" / "0.png", "--json").out)
    assert line["labels"] == ["green"]
    assert set(line["values"]) == {"green", "red"}
    assert invoke("predict", tmp_path / "run", tmp_path / "data" / "0.png").out.split("\t")[1].startswith("green ")


def test_mixed_labels_are_learnt_too(tmp_path: Path) -> None:
    sets = ["table.labels=|", "train.epochs=1", "model.weights=none", f"run.folder={tmp_path / 'run'}"]
    words = [word for text in [*sets, "model.image_size=32"] for word in ("--set", text)]

    result = invoke(
        "run", "--data", table(tmp_path / "data"), "--model", "timm/test_resnet", *words, "--plugin", "mixup"
    )

    assert result.code == 0, result.err


def test_several_numbers_are_learnt_each_in_its_own_unit(tmp_path: Path) -> None:
    table(tmp_path / "data")
    lines = ["path,age,weight"]
    lines += [f"{number}.png,{20.5 + 40 * (number % 2)},{1000 + 500 * (number // 2 % 2)}" for number in range(80)]
    (tmp_path / "data" / "numbers.csv").write_text("\n".join(lines), encoding="utf-8")
    sets = ["train.epochs=15", "model.weights=none", "adamw.lr=0.01", f"run.folder={tmp_path / 'run'}"]
    sets += ["model.image_size=32", "train.batch_size=16", 'table.target=["age", "weight"]']
    words = [word for text in sets for word in ("--set", text)]

    data = tmp_path / "data" / "numbers.csv"
    result = invoke("run", "--data", data, "--model", "timm/test_resnet", *words, "--json")

    assert result.code == 0, result.err
    best = result.report["best"]
    assert best["r2"] > 0.8
    assert best["rmse"][0] < 20
    assert 1 < best["rmse"][1] < 250
    values = json.loads(invoke("predict", tmp_path / "run", tmp_path / "data" / "3.png", "--json").out)["values"]
    assert values["age"] == pytest.approx(60.5, abs=20)
    assert values["weight"] == pytest.approx(1500, abs=250)


def test_f1_takes_outputs_near_zero_for_outputs() -> None:
    outputs, targets = torch.tensor([[0.3, -0.2], [0.4, 0.1]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    made = MultilabelMetrics().make_metrics(Multilabel(("a", "b"), (2, 1), 2), RunConfig())
    assert made is not None

    for part in range(2):
        made["f1"].update(outputs[part : part + 1].abs(), targets[part : part + 1])

    wanted = f1_score(targets, outputs.abs() > 0, average="macro", zero_division=0)
    assert float(made["f1"].compute()) == pytest.approx(wanted)
