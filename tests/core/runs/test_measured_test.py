"""The test split is measured once, by the best network, at the end of a run; and how often since is counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


def splits(folder: Path, **numbers: int) -> Path:
    """Fill a folder with splits of so many images of each class."""
    for name, number in numbers.items():
        image_folder(folder / name, per_class=number)
    return folder


def train(data: Path, run: Path, *options: str | Path) -> dict[str, Any]:
    done = invoke("run", data, "--model", "digits/cnn", "--epochs", "3", "--out", run, "--json", *options)
    assert done.code == 0, done.err
    report: dict[str, Any] = done.report
    report["err"] = done.err
    return report


def evaluate(run: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke("evaluate", run, "--json", *options).out)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return splits(tmp_path_factory.mktemp("data") / "photos", train=8, val=4, test=5)


def test_the_best_network_is_measured_on_test_as_evaluate_measures_it(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = train(data, run, "--lr", "0.05")  # so high that the last epoch is not the best

    test, measured = report["test"], evaluate(run, "--split", "test")
    assert (test["epoch"], test["images"]) == (report["best"]["epoch"], 15)
    assert {name: test[name] for name in measured["metrics"]} == measured["metrics"]
    assert test["intervals"] == measured["intervals"]
    low, high = test["intervals"]["metrics"]["accuracy"]
    assert low <= test["accuracy"] <= high
    assert f"test accuracy {test['accuracy']:.4f} [{low:.4f}, {high:.4f}], f1 " in report["err"]
    assert "of 15 images; validation chose the epoch, test did not" in report["err"]


def test_a_finished_run_that_is_resumed_reports_what_was_measured_and_measures_nothing(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    report = train(data, run)
    kept = json.loads((run / "test.json").read_text())
    kept["run"]["accuracy"] = 0.125
    (run / "test.json").write_text(json.dumps(kept))

    again = json.loads(invoke("resume", run, "--json").out)

    assert again["test"] == report["test"] | {"accuracy": 0.125}


def test_the_report_says_how_often_test_was_looked_at(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run)
    assert "; measured once" in (run / "report.html").read_text()

    evaluate(run)
    evaluate(run, "--split", "test")
    evaluate(run, "--split", "all")
    invoke("report", run)

    assert json.loads((run / "test.json").read_text())["evaluations"] == 2
    assert "; measured 2 more times since" in (run / "report.html").read_text()


def test_without_a_test_split_nothing_is_measured(tmp_path: Path) -> None:
    report = train(splits(tmp_path / "photos", train=8, val=4), tmp_path / "run")

    assert report["test"] is None
    assert not (tmp_path / "run" / "test.json").exists()


def test_an_average_that_was_the_best_is_what_is_measured(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = train(data, run, "--plugin", "ema")

    assert report["test"]["loss"] == evaluate(run, "--split", "test")["metrics"]["loss"]


def test_images_that_belong_together_are_drawn_together(tmp_path: Path) -> None:
    splits(tmp_path, train=8, val=4, test=21)
    lines = ["image,label,split,patient"]
    for file in sorted(tmp_path.rglob("*.jpg")):
        split, label, name = file.relative_to(tmp_path).parts
        lines.append(f"{split}/{label}/{name},{label},{split},{split}{name}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    options = ("--set", "table.path=image", "--set", "table.target=label", "--set", "table.group=patient")

    report = train(tmp_path / "photos.csv", tmp_path / "run", *options)

    assert report["test"]["intervals"]["over"] == "groups"
    assert evaluate(tmp_path / "run", "--split", "test")["intervals"] == report["test"]["intervals"]
