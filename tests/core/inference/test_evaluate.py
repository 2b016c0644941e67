"""A run is measured again as it measured itself, and on other data by the names of its classes."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, mean_absolute_error

from ftcore.inference.evaluate import compute_metrics, prepare
from ftcore.inference.load import load
from ftcore.testing import image_folder, invoke
from ftcore.training.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOSS = """
from ftcore import hookimpl
from torch.nn.functional import cross_entropy


@hookimpl
def make_loss():
    return lambda outputs, targets: cross_entropy(outputs, targets, label_smoothing=0.1)
"""


NEEDY_LOSS = """
from pathlib import Path

from ftcore import UserError, hookimpl
from torch.nn.functional import cross_entropy


@hookimpl
def make_loss():
    file = Path(__file__).with_name("factor.txt")
    if not file.exists():
        raise UserError("factor.txt is gone")
    factor = float(file.read_text())
    return lambda outputs, targets: factor * cross_entropy(outputs, targets)
"""


def train(folder: Path, data: str | Path, *sets: str, plugins: Sequence[str | Path] = ()) -> Path:
    """Train the little network of the digits on something."""
    options: list[str | Path] = []
    for text in (f"run.folder={folder}", "train.epochs=1", *sets):
        options += ["--set", text]
    for plugin in plugins:
        options += ["--plugin", plugin]
    result = invoke("run", "--data", data, "--model", "digits/cnn", *options)
    assert result.code == 0, result.err
    return folder


def evaluated(run: Path, *arguments: str | Path) -> dict[str, Any]:
    result = invoke("evaluate", run, *arguments, "--json")
    assert result.code == 0, result.err
    return result.report


def written(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "model" / "model.json").read_text())["metrics"]
    return metrics


def assert_same(found: dict[str, Any], wanted: dict[str, Any], within: float = 1e-6) -> None:
    """Compare metrics number for number; what JSON calls null is nan."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        ours, theirs = (np.array(numbers, dtype=float) for numbers in (found[name], value))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=within, err_msg=name)


def table(folder: Path, header: Sequence[str], targets: Sequence[Sequence[object]], name: str = "table.csv") -> Path:
    """Write a table over noise pictures 0.png, 1.png, ..., each a little brighter than the one before."""
    noise = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number in range(len(targets)):
        pixels = noise.integers(0, 120, (8, 8)) + 4 * number
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
    with (folder / name).open("w", newline="") as file:
        rows = [(f"{n}.png", *values) for n, values in enumerate(targets)]
        csv.writer(file).writerows([("path", *header), *rows])
    return folder / name


LABELS = [(n % 2, n // 2 % 2, n // 15) for n in range(30)]
NUMBERS = [(1000 + n, -(n**2) / 7) for n in range(30)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("evaluate") / "run", "digits:5-9", "train.epochs=2")


def test_the_figures_are_those_of_the_best_epoch(run: Path) -> None:
    report = evaluated(run)

    assert_same(report["metrics"], written(run))
    assert (report["data"], report["split"], report["tta"]) == ("digits:5-9", "val", False)
    assert (report["images"], report["total"]) == (180, 896)


@pytest.mark.parametrize(
    ("sets", "plugins"),
    [
        (("train.epochs=3", "train.batch_size=37", "ema.decay=0.8"), ("ema", "weighted_ce", "bf16")),
        (("train.epochs=3", "adamw.lr=0.3"), ("channels_last", "augment")),
        (("train.workers=2", "data.val_fraction=0.3", "data.split_seed=3", "train.monitor=loss"), ("mlp_head",)),
    ],
    ids=["average in half precision", "best is not last", "other split in workers"],
)
def test_the_figures_are_the_runs_own_whatever_it_used(
    tmp_path: Path, sets: tuple[str, ...], plugins: tuple[str, ...]
) -> None:
    run = train(tmp_path / "run", "digits:5-9", *sets, plugins=plugins)

    assert_same(evaluated(run)["metrics"], written(run))


def test_photographs_are_decoded_at_the_scale_of_the_run(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    for file in data.rglob("*.jpg"):
        Image.open(file).resize((320, 240), Image.Resampling.NEAREST).save(file)
    run = train(tmp_path / "run", data, "train.epochs=4", "adamw.lr=0.02")

    assert_same(evaluated(run)["metrics"], written(run))


def test_the_loss_may_come_from_a_hooks_file(tmp_path: Path) -> None:
    hooks = tmp_path / "smooth_loss_evaluated.py"
    hooks.write_text(LOSS)
    run = train(tmp_path / "run", "digits:5-6", plugins=[hooks])

    assert_same(evaluated(run)["metrics"], written(run))


@pytest.mark.parametrize(
    ("targets", "header", "sets"),
    [
        (LABELS, ("cat", "dog", "owl"), ('table.target=["cat", "dog", "owl"]',)),
        (NUMBERS, ("age", "height"), ('table.target=["age", "height"]', "data.task=regression")),
    ],
    ids=["labels", "numbers"],
)
def test_labels_and_numbers_are_measured_as_in_the_run(
    tmp_path: Path, targets: list[tuple[float, ...]], header: tuple[str, ...], sets: tuple[str, ...]
) -> None:
    run = train(tmp_path / "run", table(tmp_path / "data", header, targets), *sets)

    assert_same(evaluated(run)["metrics"], written(run))


def test_the_training_split_is_measured_without_augmentation(run: Path) -> None:
    digits = load_digits()
    train_and_val = evaluated(run, "--split", "all")
    parts = [evaluated(run, "--split", split) for split in ("train", "val")]
    chosen = digits.target >= 5
    pixels = (digits.images[chosen] * (255 / 16)).round() / 255
    images = torch.tensor((pixels - 0.3) / 0.38, dtype=torch.float32)[:, None]
    with torch.inference_mode():
        found = load(run).module(images).argmax(1).numpy() + 5

    assert [part["images"] for part in [train_and_val, *parts]] == [896, 716, 180]
    assert train_and_val["metrics"]["accuracy"] == pytest.approx(accuracy_score(digits.target[chosen], found))
    for name in ("accuracy", "loss"):
        mean = np.average([part["metrics"][name] for part in parts], weights=[716, 180])
        assert train_and_val["metrics"][name] == pytest.approx(mean, rel=1e-5)


def test_a_subset_of_the_classes_is_mapped_by_name(run: Path) -> None:
    digits = load_digits()
    chosen = (digits.target >= 7) & (digits.target <= 8)
    pixels = (digits.images[chosen] * (255 / 16)).round() / 255
    images = torch.tensor((pixels - 0.3) / 0.38, dtype=torch.float32)[:, None]
    with torch.inference_mode():
        scores = load(run).module(images).double().softmax(1).numpy()

    metrics = evaluated(run, "--data", "digits:7-8", "--split", "all")["metrics"]

    truth = digits.target[chosen] - 5
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert metrics["loss"] == pytest.approx(log_loss(truth, scores, labels=range(5)), rel=1e-5)
    assert [sum(row) for row in metrics["confusion_matrix"]] == [0, 0, sum(truth == 2), sum(truth == 3), 0]


def test_labels_of_other_data_are_mapped_by_name_and_absent_ones_do_not_apply(tmp_path: Path) -> None:
    sets = ('table.target=["cat", "dog", "owl"]',)
    run = train(tmp_path / "run", table(tmp_path / "data", ("cat", "dog", "owl"), LABELS), *sets)
    config = run / "config.toml"
    config.write_text(config.read_text().replace('["cat", "dog", "owl"]', '["owl", "cat"]'))
    other = table(tmp_path / "other", ("owl", "cat"), [(owl, cat) for cat, _, owl in LABELS])

    metrics = evaluated(run, "--data", other, "--split", "all")["metrics"]

    model, truth = load(run), np.array([(cat, 0, owl) for cat, _, owl in LABELS])
    pictures = [Image.open(other.parent / f"{n}.png") for n in range(30)]
    images = model.transforms.on_device(torch.stack([model.transforms.evaluate(picture) for picture in pictures]))
    with torch.inference_mode():
        scores = model.module(images).sigmoid().numpy()
    wanted = [average_precision_score(truth[:, label], scores[:, label]) for label in (0, 2)]
    assert metrics["average_precision"] == pytest.approx(np.mean(wanted))
    assert metrics["average_precision_of_each"] == [pytest.approx(wanted[0]), None, pytest.approx(wanted[1])]
    assert metrics["f1"] == pytest.approx(f1_score(truth, scores > 0.5, average="macro", zero_division=0))


def test_targets_of_other_data_are_mapped_by_name_and_keep_their_unit(tmp_path: Path) -> None:
    sets = ('table.target=["age", "height"]', "data.task=regression")
    run = train(tmp_path / "run", table(tmp_path / "data", ("age", "height"), NUMBERS), *sets)
    config = run / "config.toml"
    config.write_text(config.read_text().replace('["age", "height"]', '["height", "age"]'))
    other = table(tmp_path / "other", ("height", "age"), [(height + 5, age) for age, height in NUMBERS])

    metrics = evaluated(run, "--data", other, "--split", "all")["metrics"]

    answers = [json.loads(line)["values"] for line in invoke("predict", run, other.parent, "--json").out.splitlines()]
    places = sorted(range(30), key=str)
    ages, heights = ([answer[name] for answer in answers] for name in ("age", "height"))
    wanted = [
        mean_absolute_error([NUMBERS[n][0] for n in places], ages),
        mean_absolute_error([NUMBERS[n][1] + 5 for n in places], heights),
    ]
    assert metrics["mae"] == pytest.approx(wanted, rel=1e-4)


def test_classes_that_the_model_does_not_know_are_an_error_that_names_both(run: Path) -> None:
    result = invoke("evaluate", run, "--data", "digits:4-6")

    assert result.code == 2
    assert "the classes differ: digits:4-6 has 4, 5, 6;" in result.err
    assert "knows 5, 6, 7, 8, 9; unknown: 4" in result.err


def test_data_for_another_task_is_an_error(run: Path, tmp_path: Path) -> None:
    config = (run / "config.toml").read_text()
    (tmp_path / "model").symlink_to(run / "model")
    (tmp_path / "config.toml").write_text(config.replace("[data]", '[data]\ntask = "regression"'))

    result = invoke("evaluate", tmp_path)

    assert result.code == 2
    assert "was trained for classification, but digits:5-9 is for regression" in result.err


def test_regression_needs_the_very_targets_of_the_model(tmp_path: Path) -> None:
    sets = ('table.target=["age", "height"]', "data.task=regression")
    run = train(tmp_path / "run", table(tmp_path / "data", ("age", "height"), NUMBERS), *sets)
    config = run / "config.toml"
    config.write_text(config.read_text().replace('["age", "height"]', '"age"'))

    result = invoke("evaluate", run, "--data", tmp_path / "data" / "table.csv")

    assert result.code == 2
    assert "the targets differ:" in result.err
    assert "has age;" in result.err


def test_a_setting_of_the_runs_own_split_does_not_count_for_other_data(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    run = train(tmp_path / "run", data, "data.folds=3", "data.fold=1")
    for split in ("train", "val"):
        image_folder(tmp_path / "other" / split, per_class=2)

    assert evaluated(run)["images"] == 6
    assert evaluated(run, "--data", tmp_path / "other")["images"] == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named(tmp_path: Path, workers: int) -> None:
    run = train(tmp_path / "run", image_folder(tmp_path / "data"), f"train.workers={workers}")
    for split in ("train", "val"):
        image_folder(tmp_path / "other" / split)
    bad = tmp_path / "other" / "val" / "red" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:-300])

    result = invoke("evaluate", run, "--data", tmp_path / "other")

    assert result.code == 2
    assert str(bad) in result.err


def test_changed_data_is_reported(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    run = train(tmp_path / "run", data)
    image_folder(tmp_path / "more", ("red",))
    (tmp_path / "more" / "red" / "0.jpg").rename(data / "red" / "new.jpg")

    result = invoke("evaluate", run)

    assert result.code == 0
    assert "the data has changed since the run" in result.err
    assert "changed" not in invoke("evaluate", run, "--data", data).err


def test_a_loss_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    hooks = tmp_path / "needy_loss_evaluated.py"
    hooks.write_text(NEEDY_LOSS)
    (tmp_path / "factor.txt").write_text("2")
    run = train(tmp_path / "run", "digits:5-6", plugins=[hooks])
    (tmp_path / "factor.txt").unlink()

    result = invoke("evaluate", run, "--json")

    assert "loss" not in result.report["metrics"]
    assert_same({"loss": written(run)["loss"], **result.report["metrics"]}, written(run))
    assert "the loss is not computed (reason=factor.txt is gone)" in result.err


def test_a_picture_and_its_mirror_image_are_averaged(run: Path) -> None:
    evaluation = prepare(run)
    correct, total, loss = 0, 0, 0.0
    for (batch,) in evaluation.batches():
        with torch.inference_mode():
            passes = [load(run).module(images).double().softmax(1) for images in (batch.images, batch.images.flip(3))]
        mean = (passes[0] + passes[1]) / 2
        correct += int((mean.argmax(1) == batch.targets).sum())
        loss -= float(mean.log()[range(len(mean)), batch.targets].sum())
        total += len(mean)

    metrics = compute_metrics(evaluation, tta=True)

    assert (metrics["accuracy"], metrics["loss"]) == (
        pytest.approx(correct / total),
        pytest.approx(loss / total, rel=1e-5),
    )
    assert metrics["loss"] != pytest.approx(written(run)["loss"], rel=1e-3)
    assert_same(evaluated(run, "--tta")["metrics"], metrics)


def test_a_symmetric_network_gains_nothing_from_mirror_images(run: Path) -> None:
    evaluation = prepare(run)
    for module in evaluation.model.module.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data += module.weight.data.flip(3)

    assert_same(compute_metrics(evaluation, tta=True), compute_metrics(evaluation))


def test_several_measurements_do_not_add_up(run: Path) -> None:
    evaluation = prepare(run)

    assert compute_metrics(evaluation) == compute_metrics(evaluation)


def test_people_see_tables(run: Path) -> None:
    lines = invoke("evaluate", run).out.splitlines()

    assert lines[0] == "180 of 896 images of digits:5-9, split val"
    assert lines[1].split("  ")[-1].strip() == "95 % interval"
    low, high = wilson(written(run)["accuracy"], 180)
    assert lines[3].split() == ["accuracy", f"{written(run)['accuracy']:.6g}", f"{low:.4g}", "to", f"{high:.4g}"]
    matrix = lines[lines.index("confusion_matrix") + 2 :]
    assert [row.split()[1:] for row in matrix[:5]] == [
        [f"{n}" for n in row] for row in written(run)["confusion_matrix"]
    ]


def test_people_see_the_metrics_of_each_label_by_name(tmp_path: Path) -> None:
    sets = ('table.target=["cat", "dog", "owl"]',)
    run = train(tmp_path / "run", table(tmp_path / "data", ("cat", "dog", "owl"), LABELS), *sets)

    lines = invoke("evaluate", run).out.splitlines()

    header = lines[lines.index("of each") + 1].split()
    assert header == ["name", "average_precision_of_each", "f1_of_each", "thresholds"]
    owl = next(line.split() for line in lines if line.startswith("owl"))
    assert owl[1:] == [f"{written(run)[name][2]:.6g}" for name in header[1:]]


@pytest.mark.parametrize("missing", ["folder", "model", "config"])
def test_a_folder_that_is_no_whole_run_is_an_error(run: Path, tmp_path: Path, missing: str) -> None:
    if missing != "model":
        (tmp_path / "model").symlink_to(run / "model")
    if missing != "config":
        (tmp_path / "config.toml").write_text((run / "config.toml").read_text())
    folder = tmp_path / "nowhere" if missing == "folder" else tmp_path

    result = invoke("evaluate", folder)

    assert result.code == 2
    expected = (
        f"config file not found: {folder}" if missing == "config" else f"{folder} is not a run folder with a model"
    )
    assert expected in result.err


def test_one_network_says_the_same_through_the_model_as_by_itself(run: Path) -> None:
    model, images = load(run), torch.linspace(-2, 2, 2 * 64).reshape(2, 1, 8, 8)

    with torch.inference_mode():
        outputs = model.outputs([images])

        assert torch.equal(outputs, model.module(images))
        assert torch.equal(model.task.decode(outputs), model.module(images).softmax(1))
