"""Several networks answer as one, with the mean of their probabilities."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, mean_absolute_error

from ftcore import Prediction, UserError
from ftcore.data.decoding import read_image
from ftcore.inference.ensemble import create_ensemble
from ftcore.inference.load import load
from ftcore.inference.predict import predict
from ftcore.testing import image_folder, invoke
from ftcore_plugins.tasks import Multilabel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NETWORK = """
from torch import nn

from ftcore import Backbone, HeadSlot, InputSpec, hookimpl


@hookimpl
def build_model(name):
    if name == "other/net":
        layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 9)
        return Backbone(nn.Sequential(*layers), (HeadSlot("4", 5),), InputSpec(size=(20, 20), mean=(0.1, 0.2, 0.3)))
"""
COLOURS = ("blue", "green", "red")


def train(
    folder: Path, data: str | Path, *sets: str, model: str = "digits/cnn", plugins: Sequence[str | Path] = ()
) -> Path:
    options: list[str | Path] = []
    for text in (f"run.folder={folder}", "adamw.lr=0.02", "train.batch_size=6", *sets):
        options += ["--set", text]
    for plugin in plugins:
        options += ["--plugin", plugin]
    result = invoke("run", "--data", data, "--model", model, *options)
    assert result.code == 0, result.err
    return folder


def answers(folder: Path, pictures: Path, *flags: str) -> dict[str, dict[str, float]]:
    """Picture -> name -> value, as the command gives them."""
    result = invoke("predict", folder, pictures, "--json", *flags)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    return {row["path"]: row["values"] for row in rows}


def assert_mean(found: Any, members: Sequence[Any], weights: Sequence[float], within: float = 1e-6) -> None:
    """Compare answers with the mean of others, picture by picture and name by name."""
    assert found.keys() == members[0].keys()
    for picture, values in found.items():
        for name, value in values.items():
            mean = np.average([member[picture][name] for member in members], weights=weights)
            assert value == pytest.approx(mean, abs=within), (picture, name)


def table(folder: Path, header: Sequence[str], targets: Sequence[Sequence[object]]) -> Path:
    """Write a table over pictures, each a little brighter than the one before."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(len(targets)):
        pixels = noise.integers(0, 120, (8, 8)) + 4 * number
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{number:02}.png")
    with (folder / "table.csv").open("w", newline="") as file:
        rows = [(f"{n:02}.png", *values) for n, values in enumerate(targets)]
        csv.writer(file).writerows([("path", *header), *rows])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours: ``data``; two runs on them of different architecture and input: ``a`` and ``b``."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = image_folder(folder / "data", COLOURS)
    (folder / "other_network_joined.py").write_text(NETWORK)
    train(folder / "a", data, "train.epochs=3")
    train(folder / "b", data, "train.epochs=3", model="other/net", plugins=[folder / "other_network_joined.py"])
    return folder


@pytest.fixture(scope="module")
def joined(colours: Path) -> Path:
    create_ensemble([colours / "a", colours / "b"], colours / "joined")
    return colours / "joined"


def test_an_ensemble_answers_with_the_mean_of_members_of_any_architecture(joined: Path) -> None:
    members = [answers(joined.parent / name, joined.parent / "data") for name in ("a", "b")]

    found = answers(joined, joined.parent / "data")

    assert len(found) == 18
    assert_mean(found, members, [1, 1])
    assert members[0] != members[1]


def test_each_member_sees_a_photograph_at_its_own_scale(joined: Path, tmp_path: Path) -> None:
    for name in COLOURS:
        picture = Image.open(joined.parent / "data" / name / "0.jpg").resize((320, 240), Image.Resampling.NEAREST)
        picture.save(tmp_path / f"{name}.jpg")

    members = [answers(joined.parent / name, tmp_path) for name in ("a", "b")]

    assert_mean(answers(joined, tmp_path), members, [1, 1])


def test_weights_count_in_proportion(colours: Path, tmp_path: Path) -> None:
    result = invoke("ensemble", colours / "a", colours / "b", "--out", tmp_path / "out", "--weights", "6,2")

    members = [answers(colours / name, colours / "data") for name in ("a", "b")]
    assert (result.code, result.out) == (0, f"{tmp_path / 'out'}\n")
    assert_mean(answers(tmp_path / "out", colours / "data"), members, [3, 1])


def test_mirror_images_are_averaged_for_each_member(colours: Path, tmp_path: Path) -> None:
    create_ensemble([colours / "a", colours / "b"], tmp_path / "out", [3, 1])
    file = colours / "data" / "red" / "0.jpg"
    passes = []
    for member in load(tmp_path / "out").members:
        steps = member.transforms.evaluate
        image = member.transforms.on_device(steps(read_image(file, steps.min_decode_side))[None])
        with torch.inference_mode():
            passes += [member.module(seen).double().softmax(1)[0].numpy() for seen in (image, image.flip(3))]

    (found,) = answers(tmp_path / "out", file, "--tta").values()

    wanted = np.average(passes, axis=0, weights=[3, 3, 1, 1])
    assert [found[name] for name in COLOURS] == pytest.approx(wanted, abs=1e-6)
    assert [found[name] for name in COLOURS] != pytest.approx(np.average(passes[::2], axis=0, weights=[3, 1]), abs=1e-6)


def test_the_members_are_not_needed_any_more(colours: Path, tmp_path: Path) -> None:
    runs = [shutil.copytree(colours / name, tmp_path / name) for name in ("a", "b")]
    create_ensemble(runs, tmp_path / "out")
    before = answers(tmp_path / "out", colours / "data")
    for run in runs:
        shutil.rmtree(run)

    shutil.move(tmp_path / "out", tmp_path / "moved")

    assert answers(tmp_path / "moved", colours / "data") == before
    assert {file.suffix for file in (tmp_path / "moved").rglob("*") if file.is_file()} == {
        ".json",
        ".toml",
        ".safetensors",
    }


def test_an_ensemble_of_ensembles_is_one(joined: Path, tmp_path: Path) -> None:
    create_ensemble([joined.parent / "a", joined], tmp_path / "out", [1, 3])

    members = [answers(joined.parent / name, joined.parent / "data") for name in ("a", "b")]
    assert len(load(tmp_path / "out").members) == 3
    assert_mean(answers(tmp_path / "out", joined.parent / "data"), members, [1 + 1.5, 1.5])


def permuted(run: Path, out: Path) -> Path:
    """Copy a run with its classes, and the rows of its head, in another order."""
    shutil.copytree(run, out)
    file = out / "model" / "model.json"
    description = json.loads(file.read_text())
    order = [2, 0, 1]
    state = description["task"]["state"]
    state |= {key: [state[key][place] for place in order] for key in ("names", "counts")}
    del description["reference"]  # of the order before
    file.write_text(json.dumps(description))
    tensors = load_file(out / "model" / "model.safetensors")
    head = {name: tensor[order].contiguous() for name, tensor in tensors.items() if name.startswith("head.")}
    save_file(tensors | head, out / "model" / "model.safetensors")
    return out


def test_classes_may_be_in_another_order(colours: Path, tmp_path: Path) -> None:
    other = permuted(colours / "a", tmp_path / "permuted")
    create_ensemble([colours / "a", other], tmp_path / "out")

    assert load(other).task.names == ("red", "blue", "green")
    assert_mean(answers(other, colours / "data"), [answers(colours / "a", colours / "data")], [1])
    assert_mean(
        answers(tmp_path / "out", colours / "data"), [answers(colours / "a", colours / "data")], [1], within=1e-6
    )


def test_an_ensemble_is_evaluated_like_a_run(joined: Path) -> None:
    found = answers(joined, joined.parent / "data")
    truth = [path.split("/")[-2] for path in found]
    scores = np.array([[values[name] for name in COLOURS] for values in found.values()])
    scores /= scores.sum(axis=1, keepdims=True)  # scikit-learn wants it to more digits than float32 has

    report = invoke("evaluate", joined, "--split", "all", "--json").report

    assert report["images"] == 18
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, [COLOURS[n] for n in scores.argmax(1)]))
    assert report["metrics"]["loss"] == pytest.approx(log_loss(truth, scores, labels=COLOURS), rel=1e-5)


def test_numbers_are_averaged_in_their_own_unit(tmp_path: Path) -> None:
    numbers = [(1000 + n**2, -n / 7) for n in range(30)]
    data = table(tmp_path / "data", ("age", "height"), numbers)
    sets = ("data.task=regression", 'table.target=["age", "height"]', "train.epochs=2")
    runs = [train(tmp_path / f"{n}", data, *sets, f"data.split_seed={n}", f"train.seed={n}") for n in range(2)]

    result = invoke("ensemble", *runs, "--out", tmp_path / "out")

    members = [answers(run, data.parent) for run in runs]
    found = answers(tmp_path / "out", data.parent)
    assert load(runs[0]).task != load(runs[1]).task
    assert "used another split" in result.err
    assert_mean(found, members, [1, 1], within=1e-3)
    metrics = invoke("evaluate", tmp_path / "out", "--split", "all", "--json").report["metrics"]
    for place, name in enumerate(("age", "height")):
        wanted = mean_absolute_error([row[place] for row in numbers], [values[name] for values in found.values()])
        assert metrics["mae"][place] == pytest.approx(wanted, rel=1e-4)


def test_labels_have_the_mean_of_their_thresholds(tmp_path: Path) -> None:
    labels = [(n % 2, n // 2 % 2, n // 15) for n in range(30)]
    data = table(tmp_path / "data", ("cat", "dog", "owl"), labels)
    sets = ('table.target=["cat", "dog", "owl"]', "train.epochs=2")
    runs = [train(tmp_path / f"{n}", data, *sets, f"train.seed={n}") for n in range(2)]
    create_ensemble(runs, tmp_path / "out", [3, 1])

    model, members = load(tmp_path / "out"), [load(run) for run in runs]
    task, each = model.task, [member.task for member in members if isinstance(member.task, Multilabel)]
    assert isinstance(task, Multilabel)
    thresholds = np.average([one.thresholds for one in each], axis=0, weights=[3, 1])
    found = [one for one in predict(model, [data.parent]) if isinstance(one, Prediction)]
    assert task.thresholds == pytest.approx(thresholds)
    assert each[0].thresholds != each[1].thresholds
    assert_mean(answers(tmp_path / "out", data.parent), [answers(run, data.parent) for run in runs], [3, 1])
    for one in found:
        assert one.labels == tuple(
            n for n, least in zip(("cat", "dog", "owl"), task.thresholds, strict=True) if one.values[n] >= least
        )
    metrics = invoke("evaluate", tmp_path / "out", "--split", "all", "--json").report["metrics"]
    scores = np.array([[one.values[name] for name in model.task.names] for one in found])
    wanted = average_precision_score(np.array(labels), scores, average="macro")
    assert metrics["average_precision"] == pytest.approx(wanted)


def test_an_ensemble_has_no_single_network(joined: Path) -> None:
    with pytest.raises(UserError, match="this needs one network, but an ensemble has 2"):
        load(joined).module  # noqa: B018 - to look is to ask


def test_other_classes_are_an_error_that_says_which(colours: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("blue", "green", "yellow"))
    other = train(tmp_path / "other", data, "train.epochs=1")

    result = invoke("ensemble", colours / "a", other, "--out", tmp_path / "out")

    assert result.code == 2
    assert f"only in {colours / 'a'}: red; only in {other}: yellow" in result.err
    assert not (tmp_path / "out").exists()


def test_another_task_is_an_error(colours: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", "digits", "data.task=regression", "train.epochs=1", "train.batch_size=300")

    result = invoke("ensemble", colours / "a", other, "--out", tmp_path / "out")

    assert result.code == 2
    assert f"{colours / 'a'} is for classification, but {other} for regression" in result.err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1", "--weights has 1 weights for 2 runs"),
        ("1,2,3", "--weights has 3 weights for 2 runs"),
        ("1,-2", "a weight must be > 0, got -2"),
        ("0,1", "a weight must be > 0, got 0"),
        ("1,nan", "a weight must be > 0, got nan"),
        ("1;2", "expected comma-separated numbers"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(colours: Path, tmp_path: Path, weights: str, message: str) -> None:
    result = invoke("ensemble", colours / "a", colours / "b", "--out", tmp_path / "out", "--weights", weights)

    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_one_run_is_no_ensemble(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an ensemble needs at least two runs, not"):
        create_ensemble([colours / "a"], tmp_path / "out")


@pytest.mark.parametrize("command", ["ensemble", "soup"])
def test_a_folder_that_holds_something_is_not_written_to(colours: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "note").write_text("mine")

    result = invoke(command, colours / "a", colours / "b", "--out", tmp_path)

    assert result.code == 2
    assert f"--out {tmp_path} exists and is not empty" in result.err
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


def test_a_folder_that_is_no_run_is_named(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data is not a run folder with a model: it has no"):
        create_ensemble([colours / "a", colours / "data"], tmp_path / "out")


def test_a_run_without_its_weights_is_named(colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours / "b", tmp_path / "b")
    (tmp_path / "b" / "model" / "model.safetensors").unlink()

    with pytest.raises(UserError, match=r".*b/model/model\.safetensors is missing; the folder is incomplete"):
        create_ensemble([colours / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
