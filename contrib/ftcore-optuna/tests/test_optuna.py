from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from click.testing import CliRunner
from ftcore import UserError
from ftcore.testing import invoke
from optuna.trial import TrialState

from ftcore_optuna import Space, main
from ftcore_optuna.searching import Search, monitored

if TYPE_CHECKING:
    from pathlib import Path

DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn", "--set", "train.threads=1")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def searched(folder: Path, *words: str, run: tuple[str, ...] = (*DIGITS, "--set", "train.epochs=2")) -> Any:
    return CliRunner().invoke(main, [str(folder), *words, "--", *run], catch_exceptions=False)


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="ftcore", storage=f"sqlite:///{folder / 'study.db'}")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("search") / "first"
    words = ("--trials", "3", "--search", "adamw.lr=1e-6..1e-2:log", "--search", "train.batch_size=16,64", "--json")
    return folder, searched(folder, *words)


def test_the_best_trial_is_found_and_its_flags_repeat_it(done: tuple[Path, Any], tmp_path: Path) -> None:
    folder, said = done

    assert said.exit_code == 0, said.stderr
    best = json.loads(said.stdout)
    values = {trial.number: trial.value for trial in study(folder).trials}
    assert len(values) == 3
    assert best["value"] == max(value for value in values.values() if value is not None)
    again = invoke(
        "run", *DIGITS, "--set", "train.epochs=2", *best["flags"], "--set", f"run.folder={tmp_path}/run", "--json"
    )
    assert again.report["best"]["accuracy"] == best["value"]


def test_each_trial_is_an_ordinary_run_folder(done: tuple[Path, Any]) -> None:
    folder, _ = done

    listed = json.loads(invoke("runs", folder, "--json").out)

    assert sorted(run["folder"].rpartition("/")[2] for run in listed) == ["trial-0000", "trial-0001", "trial-0002"]
    for trial in study(folder).trials:
        manifest = json.loads((folder / f"trial-{trial.number:04d}" / "manifest.json").read_text())
        assert manifest["config"]["train.batch_size"] == int(trial.params["train.batch_size"])
        assert (folder / f"trial-{trial.number:04d}" / "report.html").is_file()


def test_the_same_command_again_goes_on_and_another_is_refused(done: tuple[Path, Any]) -> None:
    folder, _ = done
    spaces = ("--search", "adamw.lr=1e-6..1e-2:log", "--search", "train.batch_size=16,64")

    more = searched(folder, "--trials", "4", *spaces)
    none = searched(folder, "--trials", "4", *spaces)
    other = searched(folder, "--trials", "5", "--search", "adamw.lr=1e-6..1e-2:log")

    assert [line.split()[1] for line in more.stderr.splitlines() if line.startswith("trial")] == ["3"]
    assert "trial" not in none.stderr
    assert "--set adamw.lr=" in none.stdout
    assert other.exit_code == 2
    assert "is a search for something else" in other.stderr


def test_a_trial_that_is_worse_than_the_others_is_pruned_and_can_be_gone_on_with(tmp_path: Path) -> None:
    spaces, run = (
        [Space.parse("adamw.lr=1e-9,3e-3")],
        (*DIGITS, "--set", "train.epochs=12", "--set", "train.batch_size=16"),
    )
    search = Search(tmp_path, run, spaces)
    search.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    search.study.enqueue_trial({"adamw.lr": "3e-3"})
    search.study.enqueue_trial({"adamw.lr": "1e-9"})

    good, poor = search.trials(2)

    assert (good.state, poor.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert len(poor.intermediate_values) < 12
    (state,) = [r for r in json.loads(invoke("runs", tmp_path, "--json").out) if r["folder"].endswith("trial-0001")]
    assert state["state"] == "stopped"
    assert search.best.number == 0
    resumed = invoke("resume", tmp_path / "trial-0001")
    assert resumed.code == 0, resumed.err


def test_a_search_that_is_killed_goes_on(tmp_path: Path) -> None:
    run = ("--search", "adamw.lr=1e-4..1e-2:log", "--", *DIGITS, "--set", "train.epochs=200")
    command = [sys.executable, "-c", "from ftcore_optuna import main; main()", str(tmp_path), "--trials", "2", *run]
    process = subprocess.Popen(command, start_new_session=True)
    while not (tmp_path / "trial-0000" / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    search = Search(tmp_path, run[3:], [Space.parse("adamw.lr=1e-4..1e-2:log")])

    assert [trial.state for trial in search.study.trials] == [TrialState.FAIL]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (DIGITS, ("accuracy", True)),
        ((*DIGITS, "--set", "train.monitor=loss"), ("loss", False)),
        ((*DIGITS, "--set", "data.task=regression"), ("rmse", False)),
    ],
)
def test_the_metric_that_decides_knows_which_way_is_up(
    arguments: tuple[str, ...], expected: tuple[str, bool], tmp_path: Path
) -> None:
    assert monitored(arguments, tmp_path / "run") == expected
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1..8", optuna.distributions.IntDistribution(1, 8)),
        ("a.b=1..64:log", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("a.b=0.0..0.5", optuna.distributions.FloatDistribution(0, 0.5)),
        ("a.b=1e-5..1e-2:log", optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)),
        ("a.b=x,y", optuna.distributions.CategoricalDistribution(["x", "y"])),
    ],
)
def test_a_space_is_read(text: str, expected: Any) -> None:
    assert Space.parse(text) == Space("a.b", expected)


@pytest.mark.parametrize(
    "text", ["adamw.lr", "=1..2", "a.b=", "a.b=1", "a.b=x..y", "a.b=1..2:exp", "a.b=5..1", "a.b=-1..1:log"]
)
def test_what_is_no_space_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--search {text}"):
        Space.parse(text)


def test_a_key_that_there_is_not_is_said_at_the_first_trial(tmp_path: Path) -> None:
    said = searched(tmp_path / "s", "--search", "adamw.rate=0.1..0.2", "--trials", "3")

    assert said.exit_code == 2
    assert "the first trial failed, with exit code 2: ftcore: " in said.stderr
    assert "rate" in said.stderr
    assert len(study(tmp_path / "s").trials) == 1


def test_a_run_that_is_none_is_said_before_anything_is_written(tmp_path: Path) -> None:
    said = searched(tmp_path / "s", "--search", "adamw.lr=0.1..0.2", run=("--data", "nowhere/"))

    assert said.exit_code == 2
    assert said.stderr.startswith("ftcore-search: ")
    assert not (tmp_path / "s").exists()
