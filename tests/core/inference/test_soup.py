"""The weights of checkpoints are averaged: greedily, as in the paper, or all of them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ftcore.inference.evaluate import compute_metrics, prepare
from ftcore.inference.load import load
from ftcore.inference.soup import RunningMean, checkpoints
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftcore.testing import Result


def train(folder: Path, *sets: str, data: str | Path = "digits:5-9", plugins: Sequence[str] = ()) -> Path:
    options = [word for text in (f"run.folder={folder}", "run.keep=9", *sets) for word in ("--set", text)]
    options += [word for text in plugins for word in ("--plugin", text)]
    result = invoke("run", "--data", data, "--model", "digits/cnn", *options)
    assert result.code == 0, result.err
    return folder


def soup(*runs: Path, out: Path, flags: Sequence[str] = ()) -> list[list[str]]:
    """Write a soup, and return the rows of its table: checkpoint, metric, metric of the soup, kept."""
    result = invoke("soup", *runs, "--out", out, *flags)
    assert result.code == 0, result.err
    return [line.split() for line in result.out.splitlines()[2:] if line]


def refused(*arguments: str | Path) -> str:
    result: Result = invoke("soup", *arguments)
    assert result.code == 2
    return result.err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    alike = {name: a.dtype == theirs[name].dtype and torch.equal(a, theirs[name]) for name, a in ours.items()}
    return ours.keys() == theirs.keys() and all(alike.values())


def step(run: Path, epoch: int) -> Path:
    """Return the weights after an epoch, from 1."""
    return checkpoints(run)[epoch - 1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of three epochs, all checkpoints kept, that are good enough to be mixed and not perfect."""
    folder = tmp_path_factory.mktemp("soup")
    return [train(folder / f"{seed}", "train.epochs=3", f"train.seed={seed}") for seed in range(2)]


def values(run: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Measure weights on a run's validation split."""
    evaluation = prepare(run)
    evaluation.model.module.load_state_dict({name: torch.as_tensor(tensor) for name, tensor in tensors.items()})
    return compute_metrics(evaluation)


def averaged(files: Sequence[Path]) -> dict[str, Any]:
    """Average with numpy in float64; whole numbers are those of the first."""
    every = [{name: tensor.numpy() for name, tensor in load_file(file).items()} for file in files]
    return {
        name: np.mean([one[name].astype("float64") for one in every], axis=0).astype("float32")
        if tensor.dtype.kind == "f"
        else tensor
        for name, tensor in every[0].items()
    }


def test_the_uniform_soup_is_the_mean_in_float64(runs: list[Path], tmp_path: Path) -> None:
    files = [file for run in runs for file in checkpoints(run)]

    rows = soup(*runs, out=tmp_path / "out", flags=["--uniform"])

    wanted, found = averaged(files), weights(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), wanted[name], rtol=2e-7, atol=0, err_msg=name)
    assert [row[-1] for row in rows] == ["yes"] * 6
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_the_greedy_soup_is_recipe_1_of_the_paper(runs: list[Path], tmp_path: Path) -> None:
    files = [file for run in runs for file in checkpoints(run)]
    alone = {file: values(runs[0], load_file(file))["accuracy"] for file in files}
    ranked = sorted(files, key=lambda file: alone[file], reverse=True)
    kept: list[Path] = []
    best, wanted = -1.0, []
    for file in ranked:
        accuracy = values(runs[0], averaged([*kept, file]))["accuracy"]
        if accuracy >= best:
            kept.append(file)
            best = accuracy
        wanted.append([str(file.parent), f"{alone[file]:.6g}", f"{accuracy:.6g}", "yes" if file in kept else "no"])

    rows = soup(*runs, out=tmp_path / "out")

    assert rows == wanted
    assert 1 < len(kept) < 6
    for name, tensor in weights(tmp_path / "out").items():
        np.testing.assert_allclose(tensor.numpy(), averaged(kept)[name], rtol=2e-7, atol=0, err_msg=name)


def test_a_soup_is_used_like_a_run(runs: list[Path], tmp_path: Path) -> None:
    rows = soup(*runs, out=tmp_path / "out")

    description = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    metrics = invoke("evaluate", tmp_path / "out", "--json").report["metrics"]
    kept = [row[0] for row in rows if row[-1] == "yes"]
    assert metrics == description["metrics"]
    assert f"{metrics['accuracy']:.6g}" == next(row[2] for row in reversed(rows) if row[-1] == "yes")
    assert description["soup"] == {"uniform": False, "checkpoints": kept}
    pictures = image_folder(tmp_path / "pictures", ("x",), per_class=2)
    assert len(invoke("predict", tmp_path / "out", pictures).out.splitlines()) == 2
    assert same_bits(load(tmp_path / "out").module.state_dict(), weights(tmp_path / "out"))


@pytest.mark.parametrize("flags", [[], ["--uniform"]])
def test_a_soup_of_one_checkpoint_is_that_checkpoint_bit_for_bit(
    runs: list[Path], tmp_path: Path, flags: list[str]
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    for file in checkpoints(run)[1:]:
        shutil.rmtree(file.parent)

    rows = soup(run, out=tmp_path / "out", flags=flags)

    assert same_bits(weights(tmp_path / "out"), load_file(step(run, 1)))
    assert rows[0][1] == rows[0][2]


@pytest.mark.parametrize("flags", [[], ["--uniform"]])
def test_a_soup_of_identical_checkpoints_is_each_of_them(runs: list[Path], tmp_path: Path, flags: list[str]) -> None:
    copies = [shutil.copytree(runs[0], tmp_path / f"{number}") for number in range(3)]
    for copy in copies:
        for file in checkpoints(copy)[:2]:
            shutil.rmtree(file.parent)

    rows = soup(*copies, out=tmp_path / "out", flags=flags)

    assert same_bits(weights(tmp_path / "out"), load_file(step(runs[0], 3)))
    assert [row[-1] for row in rows] == ["yes"] * 3


def test_what_was_frozen_stays_bit_for_bit(tmp_path: Path) -> None:
    frozen = [train(tmp_path / f"{n}", "train.epochs=3", f"train.seed={n}", plugins=["freeze_backbone"]) for n in "01"]

    soup(*frozen, out=tmp_path / "out", flags=["--uniform"])

    ours, theirs = weights(tmp_path / "out"), load_file(step(frozen[0], 1))
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"head.weight", "head.bias"}


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_a_mean_is_numpys_in_float64(numbers: list[float]) -> None:
    mean = RunningMean()
    for number in numbers:
        mean = mean.add({"x": torch.tensor([number])})

    assert mean.count == len(numbers)
    within = 1e-12 * max(map(abs, numbers))
    np.testing.assert_allclose(mean.weights["x"].numpy(), [np.mean(numbers)], rtol=1e-12, atol=within)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.bool]
)
def test_equal_tensors_stay_whatever_their_type(dtype: torch.dtype) -> None:
    tensor = (torch.rand(1000, dtype=torch.float64) * 3).to(dtype)
    special = {"x": tensor, "inf": torch.tensor([float("inf"), -float("inf"), -0.0])}
    mean = RunningMean()
    for _ in range(7):
        mean = mean.add(special)

    assert torch.equal(mean.weights["x"].to(dtype), tensor)
    assert torch.equal(mean.weights["inf"].float(), special["inf"])


def test_whole_numbers_are_those_of_the_first_and_batch_norm_is_averaged() -> None:
    norms = [torch.nn.BatchNorm2d(3) for _ in range(2)]
    for place, norm in enumerate(norms, start=1):
        for _ in range(place):
            norm(torch.randn(4, 3, 5, 5) * place)
    mean = RunningMean()
    for norm in norms:
        mean = mean.add(norm.state_dict())

    assert mean.weights["num_batches_tracked"] == 1
    for name in ("running_mean", "running_var"):
        wanted = np.mean([norm.state_dict()[name].numpy().astype("float64") for norm in norms], axis=0)
        np.testing.assert_allclose(mean.weights[name].numpy(), wanted, rtol=1e-12)


def spoiled(run: Path, out: Path, *epochs: int) -> Path:
    """Copy a run, the weights of some epochs being no numbers."""
    shutil.copytree(run, out)
    for epoch in epochs:
        tensors = load_file(step(out, epoch))
        save_file({**tensors, "head.bias": tensors["head.bias"] * np.nan}, step(out, epoch))
    return out


def test_lower_is_better_for_the_loss_and_no_number_is_worst(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "train.epochs=3", "train.monitor=loss")
    bad = spoiled(run, tmp_path / "bad", 2)

    rows = soup(bad, out=tmp_path / "out")

    losses = [float(row[1]) for row in rows]
    assert losses[0] < losses[1]
    assert [row[-1] for row in rows][2] == "no"
    assert rows[2][:2] == [str(step(bad, 2).parent), "nan"]
    assert invoke("evaluate", tmp_path / "out", "--json").report["metrics"]["loss"] <= losses[0] + 1e-6


def test_no_number_at_all_compares_nothing(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "train.epochs=2", "train.monitor=loss")
    bad = spoiled(run, tmp_path / "bad", 1, 2)

    assert "checkpoints cannot be compared: loss is not a number for any of them" in refused(
        bad, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_runs_that_watch_other_metrics_compare_nothing(runs: list[Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", "train.epochs=1", "train.monitor=f1")

    message = refused(runs[0], other, "--out", tmp_path / "out")

    assert f"{runs[0]} monitors accuracy, but {other} monitors f1; --uniform needs no metric" in message
    assert len(soup(runs[0], other, out=tmp_path / "out", flags=["--uniform"])) == 4


def test_a_run_that_evaluates_an_average_gives_its_average(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "train.epochs=2", "ema.decay=0.9", "ema.start=1", plugins=["ema"])
    shutil.rmtree(step(run, 1).parent)

    rows = soup(run, out=tmp_path / "out")

    assert step(run, 1).name == "average.safetensors"
    assert same_bits(weights(tmp_path / "out"), load_file(step(run, 1)))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[0][1] == f"{last['val']['accuracy']:.6g}"


def test_other_classes_are_an_error(runs: list[Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", "train.epochs=1", data="digits:4-8")

    message = refused(runs[0], other, "--out", tmp_path / "out")

    names = "names 5, 6, 7, 8, 9 in the first, 4, 5, 6, 7, 8 in the second"
    assert f"cannot average {runs[0]} and {other}: {names}" in message


def test_another_network_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(runs[1], tmp_path / "other")
    file = other / "model" / "model.json"
    file.write_text(file.read_text().replace("digits/cnn", "timm/resnet18"))

    message = refused(runs[0], other, "--out", tmp_path / "out")

    assert (
        f"cannot average {runs[0]} and {other}: network digits/cnn in the first, timm/resnet18 in the second" in message
    )


def test_another_normalisation_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", "train.epochs=1", "model.mean=0.5")

    assert f"cannot average {runs[0]} and {other}: input InputSpec(" in refused(
        runs[0], other, "--out", tmp_path / "out"
    )


def test_numbers_that_were_standardised_otherwise_are_an_error(tmp_path: Path) -> None:
    sets = ("train.epochs=1", "data.task=regression", "train.batch_size=300")
    mine, other = (train(tmp_path / f"{n}", f"data.split_seed={n}", *sets) for n in range(2))

    assert f"cannot average {mine} and {other}: mean of the targets" in refused(mine, other, "--out", tmp_path / "out")


def test_another_head_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", "train.epochs=1", plugins=["mlp_head"])

    message = refused(runs[0], other, "--out", tmp_path / "out")

    assert f"cannot load {step(other, 1)} into the network of the first run" in message
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_no_run(runs: list[Path], tmp_path: Path) -> None:
    assert invoke("ensemble", *runs, "--out", tmp_path / "joined").code == 0

    message = refused(tmp_path / "joined", "--out", tmp_path / "out")

    assert f"{tmp_path / 'joined'} is an ensemble; a soup needs the checkpoints of runs" in message


def test_a_run_without_checkpoints_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    soup(runs[0], out=tmp_path / "soup")

    assert f"{tmp_path / 'soup'} has no checkpoints" in refused(tmp_path / "soup", "--out", tmp_path / "out")


def test_runs_on_another_split_are_reported_and_measured_on_that_of_the_first(runs: list[Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", "train.epochs=2", "data.split_seed=3", "train.seed=5")

    result = invoke("soup", other, runs[0], "--out", tmp_path / "out")

    assert "used another split: metrics on the validation images of the first" in result.err
    assert f"others={runs[0]}" in result.err
    assert "another split" not in invoke("soup", *runs, "--out", tmp_path / "second").err
    alone = {row.split()[0]: row.split()[1] for row in result.out.splitlines()[2:] if row}
    wanted = {str(file.parent): values(other, load_file(file)) for run in (other, runs[0]) for file in checkpoints(run)}
    assert alone == {name: f"{metrics['accuracy']:.6g}" for name, metrics in wanted.items()}
    last = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert alone[str(step(runs[0], 3).parent)] != f"{last['val']['accuracy']:.6g}"
