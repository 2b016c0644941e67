"""The main job from end to end, as a user starts it."""

from __future__ import annotations

import json
import math
import tomllib
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from attrs import frozen
from PIL import Image
from sklearn.datasets import load_digits

from ftcore.testing import Result, invoke

if TYPE_CHECKING:
    from pathlib import Path


@frozen
class MainJob:
    """The main job, done once for all tests of this file, in a working folder that was empty."""

    result: Result
    working_folder: Path

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.working_folder / str(self.result.report["folder"])


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> MainJob:
    working_folder = tmp_path_factory.mktemp("elsewhere")
    with chdir(working_folder):
        return MainJob(invoke("run", "--plugin", "weighted_ce", "--json"), working_folder)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_main_job_learns_five_new_digits(main_job: MainJob) -> None:
    report = main_job.result.report

    assert main_job.result.code == 0
    assert report["best"]["accuracy"] >= 0.95
    assert report["hooks"]["make_loss"] == "weighted_ce"


def test_standard_output_is_the_json_line_alone(main_job: MainJob) -> None:
    (line,) = main_job.result.out.splitlines()

    assert set(json.loads(line)) >= {"folder", "epochs", "monitor", "best", "last", "seconds", "hooks"}
    assert "best accuracy" in main_job.result.err


def test_everything_that_a_run_leaves_is_in_its_folder(main_job: MainJob) -> None:
    checkpoints = {
        path / name
        for path in (main_job.folder / "checkpoints").iterdir()
        for name in ("model.safetensors", "state.safetensors", "state.json", "manifest.json")
    }
    written = ("config.toml", "manifest.json", "log.jsonl", "metrics.jsonl", "report.html", "report.json")
    top = {main_job.folder / name for name in (".lock", *written)}
    model = {main_job.folder / "model" / name for name in ("model.json", "model.safetensors")}

    assert {path for path in main_job.working_folder.rglob("*") if path.is_file()} == {*top, *model, *checkpoints}
    assert main_job.folder.parent == main_job.working_folder / "runs"
    assert len(checkpoints) in {8, 12}  # the two newest, and the best where it is another


def test_there_is_a_line_of_metrics_for_each_epoch(main_job: MainJob) -> None:
    report, epochs = main_job.result.report, lines(main_job.folder / "metrics.jsonl")

    assert [line["epoch"] for line in epochs] == list(range(1, report["epochs"] + 1))
    assert max(line["val"]["accuracy"] for line in epochs) == report["best"]["accuracy"]
    assert epochs[-1]["val"] == {name: report["last"][name] for name in epochs[-1]["val"]}
    assert [event["event"] for event in lines(main_job.folder / "log.jsonl")][-1] == "RunEnded"


def test_the_log_has_what_is_told_of_steps_and_epochs_and_neither_batches_nor_samples(main_job: MainJob) -> None:
    events = lines(main_job.folder / "log.jsonl")

    assert {"RunStarted", "StepLogged", "EpochEnded"} <= {event["event"] for event in events}
    assert not any(event["event"] == "BatchEvaluated" for event in events)
    assert all(event["gradient_norm"] > 0 for event in events if event["event"] == "StepLogged")
    started = next(event for event in events if event["event"] == "RunStarted")
    assert started["groups"] == ["decay", "no_decay"]
    assert not {"val", "task"} & set(started)


def test_the_saved_model_recognises_a_digit_from_another_folder(main_job: MainJob, tmp_path: Path) -> None:
    digits = load_digits()
    picture = tmp_path / "seven.png"
    Image.fromarray((digits.images[digits.target == 7][0] * (255 / 16)).astype("uint8")).save(picture)

    with chdir(tmp_path):
        answer = json.loads(invoke("predict", main_job.folder, "seven.png", "--json").out)

    assert next(iter(answer["values"])) == "7"
    assert math.isclose(sum(answer["values"].values()), 1, rel_tol=1e-5)


def test_flags_win_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "given.toml"
    config.write_text(
        """
        plugins = ["sgd", "constant"]
        run.folder = "not/here"
        train = {epochs = 3, batch_size = 16, log_every = 1}
        plugin.sgd = {lr = 0.5, momentum = 0.0}
        """,
        encoding="utf-8",
    )
    flags = ("--set", "train.epochs=1", "--set", "sgd.lr=0.02", "--set", f"run.folder={tmp_path / 'run'}")
    result = invoke("run", config, "--plugin", "weighted_ce", *flags, "--json")

    assert result.code == 0, result.err
    steps = [event for event in lines(tmp_path / "run" / "log.jsonl") if event["event"] == "StepLogged"]
    images = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["data"]["train"]
    assert {rate for step in steps for rate in step["lr"]} == {0.02}
    assert [step["step"] for step in steps] == list(range(1, math.ceil(images / 16) + 1))
    assert result.report["epochs"] == 1
    hooks = result.report["hooks"]
    assert (hooks["make_optimizer"], hooks["make_schedule"], hooks["make_loss"]) == ("sgd", "constant", "weighted_ce")
    assert not (tmp_path / "not").exists()


def test_what_is_logged_after_a_run_is_not_of_the_run(tmp_path: Path) -> None:
    with chdir(tmp_path):
        invoke("run", "--set", "train.epochs=1", "--set", "run.folder=run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()

    structlog.get_logger().warning("later")

    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    assert json.loads(log.splitlines()[-1])["event"] == "RunEnded"


def test_the_run_folder_says_where_each_value_was_set(tmp_path: Path) -> None:
    config = tmp_path / "given.toml"
    config.write_text('run.folder = "run"\ntrain = {epochs = 9, batch_size = 64}\n', encoding="utf-8")
    with chdir(tmp_path):
        invoke("run", "given.toml", "--set", "train.epochs=1")

    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["train"]["epochs"] == 1
    assert {"epochs = 1 # --set train.epochs=1", "batch_size = 64 # given.toml", "seed = 0 # default"} <= set(
        text.splitlines()
    )


def test_the_config_of_a_run_folder_gives_the_same_run_again(tmp_path: Path) -> None:
    settings = ("--set", "train.epochs=1", "--set", "one_device.device=cpu", "--set", "weighted_ce.divide_by=samples")
    with chdir(tmp_path):
        first = invoke("run", "--plugin", "weighted_ce", *settings, "--json")
        again = invoke("run", f"{first.report['folder']}/config.toml", "--set", "run.folder=again", "--json")

    assert again.code == 0, again.err
    assert again.report["last"] == first.report["last"]
    assert again.report["hooks"] == first.report["hooks"]
