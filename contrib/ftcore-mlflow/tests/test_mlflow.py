from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from ftcore.testing import Result, invoke
from mlflow import MlflowClient

import ftcore_mlflow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Run

STEPS = 4
"""In an epoch."""

ENDING = """
import os
from ftcore import EpochEnded, RunStarted, StepLogged, hookimpl
from mlflow import MlflowClient
from torch.nn.modules.module import register_module_forward_pre_hook

def fail(hook):
    hook.remove()
    raise RuntimeError("no more")

at, how, save, lose = (os.environ.get(name) for name in ("AT", "HOW", "SAVE", "LOSE"))
told = 0

def observe(event):
    global told, run
    if isinstance(event, RunStarted):
        run = (event.folder / "mlflow_run_id").read_text().strip()
    if isinstance(event, StepLogged | EpochEnded):
        told += 1
        if str(told) == save:
            os.kill(os.getpid(), 10)
        if str(told) == at:
            if lose:
                MlflowClient().delete_run(run)
            if how == "lose":
                os.killpg(int(os.environ["SERVER"]), 19)
            if how == "fail":
                hook = register_module_forward_pre_hook(lambda *_: fail(hook))
            if how and how.isdecimal():
                os.kill(os.getpid(), int(how))
        if str(told) == os.environ.get("BACK"):
            os.killpg(int(os.environ["SERVER"]), 18)

@hookimpl
def make_observers():
    return [observe]
"""
"""Behind a number of events, steps and epochs counted together: saves the run, ends it (by a signal, or an error in the
next forward pass), or loses it on the server."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server with its database and its artifacts in a temporary folder."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    where = ["--backend-store-uri", f"sqlite:///{folder / 'db'}", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        for name, value in quiet.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        process = subprocess.Popen(
            [*command, "--workers", "1"], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            await_answer(f"http://127.0.0.1:{port}/health", process)
            patch.setenv("SERVER", str(process.pid))
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its group: itself and its one worker
            process.wait()


def await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None
        try:
            urlopen(url).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


def arguments(folder: Path, *settings: str, plugins: tuple[str, ...] = ()) -> list[str]:
    of_run = ("train.epochs=2", "train.batch_size=96", "train.log_every=1", f"run.folder={folder}", *settings)
    named = [word for plugin in ("mlflow", *plugins) for word in ("--plugin", plugin)]
    sets = [word for setting in of_run for word in ("--set", setting)]
    return ["run", "--model", "digits/cnn", "--data", "digits:5-6", "--json", *named, *sets]


def ending(folder: Path) -> str:
    file = folder / "ending.py"
    file.write_text(ENDING)
    return str(file)


def recorded(folder: Path) -> Run:
    return MlflowClient().get_run((folder / "mlflow_run_id").read_text().strip())


def history(run: Run, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(run.info.run_id, key)]


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What must be the same in a run that was interrupted."""
    run = recorded(folder)
    return {key: history(run, key) for key in ("step/loss", "lr/group 0", "train/loss", "val/loss", "val/accuracy")}


def artifacts(run: Run, folder: str | None = None) -> dict[str, bytes]:
    """Path -> content, downloaded."""
    client, identity = MlflowClient(), run.info.run_id
    found = client.list_artifacts(identity, folder)
    files = {entry.path: client.download_artifacts(identity, entry.path) for entry in found if not entry.is_dir}
    return {path: Path(file).read_bytes() for path, file in files.items()}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = invoke(*arguments(folder))
    assert result.code == 0, result.err
    assert result.report["epochs"] == 2
    return folder


def test_metrics_are_what_the_run_says_of_itself(whole: Path) -> None:
    steps = [line for line in lines(whole / "log.jsonl") if line["event"] == "StepLogged"]
    epochs = lines(whole / "metrics.jsonl")
    found = losses(whole)

    assert found["step/loss"] == list(enumerate((line["loss"] for line in steps), start=1))
    assert found["lr/group 0"] == list(enumerate((line["lr"][0] for line in steps), start=1))
    for split, name in (("val", "loss"), ("val", "accuracy"), ("train", "loss")):
        assert found[f"{split}/{name}"] == [(line["step"], line[split][name]) for line in epochs]
    assert [line["step"] for line in epochs] == [STEPS, 2 * STEPS]


def test_every_key_is_in_the_table_of_the_readme(whole: Path) -> None:
    keys = {key for key in recorded(whole).data.metrics if not key.startswith("lr/group ")}

    assert keys == {
        *("step/loss", "speed/images per second"),
        *("train/loss", "val/loss", "val/accuracy", "val/f1", "speed/seconds an epoch"),
    }


def test_params_are_the_config_and_artifacts_the_files_of_the_folder(whole: Path) -> None:
    run = recorded(whole)
    config = tomllib.loads((whole / "config.toml").read_text())

    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["plugins"] == "['mlflow']"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["plugin.adamw.betas"] == "[0.9, 0.999]"
    assert run.data.params["plugin.mlflow.uri"] == ""
    settings = [f"{table}.{key}" for table in ("train", "run", "data", "model", "observers") for key in config[table]]
    assert {key for key in run.data.params if not key.startswith("plugin")} == {*settings}
    assert artifacts(run) == {name: (whole / name).read_bytes() for name in ("config.toml", "manifest.json")}


def test_terms_beside_the_loss_and_options_with_odd_names_are_recorded(tmp_path: Path) -> None:
    odd = ("groups.lr={'head.*'=0.1}", "l1.strength=0.001")
    result = invoke(*arguments(tmp_path / "run", "train.epochs=1", *odd, plugins=("l1", "groups")))
    assert result.code == 0, result.err
    run = recorded(tmp_path / "run")

    assert len(history(run, "step/l1")) == STEPS
    assert len(history(run, "train/l1")) == 1
    assert run.data.params["plugin.groups.lr.head._"] == "0.1"


def test_the_model_is_uploaded_where_that_is_wanted(tmp_path: Path) -> None:
    invoke(*arguments(tmp_path / "run", "train.epochs=1", "mlflow.model=true"))
    files = [path for path in (tmp_path / "run" / "model").iterdir() if path.is_file()]

    found = artifacts(recorded(tmp_path / "run"), "model")
    assert files
    assert found == {f"model/{path.name}": path.read_bytes() for path in files}


@pytest.mark.parametrize(("save", "at"), [(3, 4), (3, 6), (STEPS, STEPS + 1), (3, 2 * STEPS + 1)])
def test_a_run_that_failed_is_the_same_run_and_has_no_step_twice_when_it_is_resumed(
    save: int, at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for name, value in {"SAVE": str(save), "AT": str(at), "HOW": "fail"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="no more"):
        invoke(*arguments(run, plugins=(ending(tmp_path),)))
    monkeypatch.delenv("SAVE")
    monkeypatch.delenv("AT")
    failed = recorded(run)
    assert failed.info.status == "FAILED"
    assert sum(len(history(failed, key)) for key in ("step/loss", "val/loss")) == at

    assert invoke("resume", run).code == 0
    assert recorded(run).info.run_id == failed.info.run_id
    assert recorded(run).info.status == "FINISHED"
    assert losses(run) == losses(whole)


def test_a_run_that_was_stopped_is_killed_there_and_runs_again_when_it_is_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("HOW", str(int(signal.SIGTERM)))
    for at in ("3", "2"):
        monkeypatch.setenv("AT", at)
        words = ("resume", run) if run.exists() else arguments(run, plugins=(ending(tmp_path),))
        assert invoke(*words).code == 128 + signal.SIGTERM
        assert recorded(run).info.status == "KILLED"
    monkeypatch.delenv("AT")

    assert invoke("resume", run).code == 0
    assert recorded(run).info.status == "FINISHED"
    assert losses(run) == losses(whole)


def test_a_run_that_is_over_records_nothing_more(tmp_path: Path) -> None:
    invoke(*arguments(tmp_path / "run", "train.epochs=1"))
    before = losses(tmp_path / "run")

    assert invoke("resume", tmp_path / "run").code == 0
    assert losses(tmp_path / "run") == before
    assert recorded(tmp_path / "run").info.status == "FINISHED"


def refused(result: Result, folder: Path, *words: str) -> None:
    """Check for one message, and for no folder."""
    assert result.code == 2
    assert result.err.count("MLflow at ") == 1
    for word in words:
        assert word in result.err
    assert not folder.exists()


def test_a_server_that_cannot_be_reached_stops_a_run_at_its_start_that_is_to_stop(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    words = arguments(tmp_path / "run", f"mlflow.uri={uri}", "observers.on_error=stop")
    refused(invoke(*words), tmp_path / "run", uri, "Connection refused")


def test_a_server_that_cannot_be_reached_costs_a_warning_where_the_run_is_worth_more(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path / "run", f"mlflow.uri=http://127.0.0.1:{free_port()}", "train.epochs=1"))

    assert result.code == 0, result.err
    assert result.err.count("an observer failed at RunStarted: MLflow at ") == 1
    assert "times in total" not in result.err


def test_a_server_that_is_none_of_mlflow_stops_a_run_at_its_start_that_is_to_stop(tmp_path: Path) -> None:
    uri = "localhost:5000"
    words = arguments(tmp_path / "run", f"mlflow.uri='{uri}'", "observers.on_error=stop")
    refused(invoke(*words), tmp_path / "run", uri)


def test_a_run_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    result = invoke(*arguments(tmp_path / "run"))

    assert result.code == 2
    assert "mlflow.uri is not set, nor is MLFLOW_TRACKING_URI" in result.err
    assert not (tmp_path / "run").exists()


def test_a_server_that_refuses_a_step_stops_the_run_which_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("AT", "5")
    monkeypatch.setenv("LOSE", "yes")
    result = invoke(*arguments(run, "observers.on_error=stop", plugins=(ending(tmp_path),)))

    assert result.code == 2
    assert "must be in the 'active' state" in result.err
    assert len(history(recorded(run), "step/loss")) == STEPS


@pytest.mark.parametrize("back", [6, 99])
def test_numbers_wait_for_a_server_that_is_lost(
    back: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AT": "3", "HOW": "lose", "BACK": str(back), "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ftcore_mlflow, "PAUSE", 0.0 if back < 99 else 60.0)
    try:
        result = invoke(*arguments(tmp_path / "run", plugins=(ending(tmp_path),)))
    finally:
        os.killpg(int(os.environ["SERVER"]), signal.SIGCONT)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")

    assert result.code == 0, result.err
    assert result.err.count(" is lost, its numbers wait: ") == 1
    assert ("was not told the last " in result.err) == (back == 99)
    if back < 99:
        assert losses(tmp_path / "run") == losses(whole)
        assert recorded(tmp_path / "run").info.status == "FINISHED"


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AT": "5", "LOSE": "yes", "HOW": "fail"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(RuntimeError, match="no more"):
        invoke(*arguments(tmp_path / "run", plugins=(ending(tmp_path),)))


def test_a_run_that_the_server_does_not_know_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    invoke(*arguments(run, "train.epochs=1"))
    (run / "mlflow_run_id").write_text("0" * 32 + "\n")

    result = invoke("resume", run, "--set", "observers.on_error=stop")
    assert result.code == 2
    assert "0" * 32 in result.err


def test_runs_are_in_the_experiment_of_the_option_else_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the variable")
    for name, settings in (("a", ["mlflow.experiment=chosen"]), ("b", ["mlflow.experiment=chosen"]), ("c", [])):
        invoke(*arguments(tmp_path / name, "train.epochs=1", *settings))

    of_runs = [MlflowClient().get_experiment(recorded(tmp_path / name).info.experiment_id).name for name in "abc"]
    assert of_runs == ["chosen", "chosen", "of the variable"]


def test_explain_asks_no_server(tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", f"mlflow.uri=http://127.0.0.1:{free_port()}")

    assert invoke("explain", *words[1:]).code == 0
    assert not (tmp_path / "run").exists()


def test_it_is_listed_where_it_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").out)

    (row,) = [row for row in rows if row["name"] == "mlflow"]
    assert (row["distribution"], row["hooks"], row["active"]) == ("ftcore-mlflow", "make_observers", "no")
