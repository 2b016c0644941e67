"""Runs of other seeds and folds: each is the run that it would be alone, and a stopped series goes on."""

from __future__ import annotations

import csv
import json
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from ftcore.model.freezing import tensor_digests
from ftcore.reports.series import summarise
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ("--data", "digits:5-6", "--model", "digits/cnn", "--epochs", "1", "--batch-size", "64")


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return tensor_digests(load_file(run / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("folds") / "all"
    done = invoke("folds", *SMALL, "--k", "3", "--out", folder, "--json")
    assert done.code == 0, done.err
    return folder, done.report


def test_each_fold_is_the_run_that_holds_it_out(folds: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = folds
    assert sorted(path.name for path in folder.iterdir()) == ["ensemble", "fold-0", "fold-1", "fold-2", "series.json"]

    alone = invoke(
        "run", *SMALL, "--set", "data.folds=3", "--set", "data.fold=1", "--out", tmp_path / "run", "--json"
    ).report
    assert weights(folder / "fold-1") == weights(tmp_path / "run")
    assert report["runs"]["fold-1"]["best"] == alone["best"]


def test_the_summary_is_of_the_best_epochs(folds: tuple[Path, dict[str, Any]]) -> None:
    folder, report = folds
    found = [report["runs"][f"fold-{fold}"]["best"]["accuracy"] for fold in range(3)]

    assert report["summary"]["val"]["accuracy"] == pytest.approx(
        {"mean": statistics.mean(found), "std": statistics.stdev(found), "min": min(found), "max": max(found)}
    )
    assert json.loads((folder / "series.json").read_text())["summary"] == report["summary"]


def test_the_ensemble_of_all_folds_predicts(folds: tuple[Path, dict[str, Any]]) -> None:
    found = json.loads(invoke("evaluate", folds[0] / "ensemble", "--json", "--split", "all").out)

    assert found["metrics"]["accuracy"] > 0.9


def test_a_series_that_was_stopped_goes_on_and_another_configuration_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    assert invoke("folds", *SMALL, "--k", "2", "--out", folder, "--set", "train.monitor=nothing").code == 2
    first = invoke("folds", *SMALL, "--k", "2", "--out", folder, "--json")
    log = (folder / "fold-0" / "log.jsonl").read_text()

    again = invoke("folds", *SMALL, "--k", "2", "--out", folder, "--json")

    assert again.report["summary"] == first.report["summary"]
    assert (folder / "fold-0" / "log.jsonl").read_text().startswith(log)
    other = invoke("folds", *SMALL, "--k", "2", "--out", folder, "--seed", "3")
    assert other.code == 2
    assert "holds runs of another configuration (train differ)" in other.err


def test_seeds_count_up_from_the_configurations_own(tmp_path: Path) -> None:
    done = invoke("run", *SMALL, "--seed", "7", "--seeds", "2", "--out", tmp_path / "all")

    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["seed-7", "seed-8", "series.json"]
    alone = invoke("run", *SMALL, "--seed", "8", "--out", tmp_path / "run", "--json")
    assert weights(tmp_path / "all" / "seed-8") == weights(tmp_path / "run")
    best = alone.report["best"]["accuracy"]
    assert [row for row in csv.reader(done.out.splitlines(), delimiter=" ", skipinitialspace=True) if row][3][:3] == [
        "seed-8",
        "1",
        f"{best:.6g}",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("folds", *SMALL, "--set", "data.fold=1"), "each fold is held out in turn; remove data.fold"),
        (("run", "--seeds", "2", "--from", "x"), "--seeds 2 trains new runs, but --from x repeats one"),
        (("run", "--seeds", "2", "--resume", "x"), "remove seeds"),
    ],
)
def test_what_does_not_go_together_is_refused(options: tuple[str, ...], message: str) -> None:
    done = invoke(*options)

    assert done.code == 2
    assert message in done.err


def test_what_is_no_number_in_every_run_is_left_out_of_the_summary() -> None:
    reports: dict[str, Any] = {
        "a": {"best": {"epoch": 1, "f1": 0.5}, "test": None},
        "b": {"best": {"epoch": 2, "f1": None}},
    }

    assert summarise(reports) == {"val": {"f1": {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5}}}
