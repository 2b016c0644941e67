"""Processes started by ftcore itself, by torchrun, and as Slurm and Kubernetes do; real launchers, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.faults.killing import differences, result

from ftcore import UserError
from ftcore.distributed.ranks import first_node, rank_and_world_size
from ftcore.testing import invoke

from .starting import run
from .test_failures import FAILING
from .test_same_results import STILL, arguments

FTCORE = (sys.executable, "-m", "ftcore")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ftcore")
OURS = {key: value for key, value in os.environ.items() if key not in {"OMP_NUM_THREADS"}}
ROOT = Path(__file__).parents[2]


def launched(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that is not the project's."""
    where = {**OURS, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=where, timeout=200)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--nproc", "torchrun"])
def test_a_launcher_starts_processes_that_report_once(tmp_path: Path, launcher: str) -> None:
    args = [*arguments(Path("run"), *STILL, "--plugin", "ddp"), "--json"]
    command = (*TORCHRUN, *args) if launcher == "torchrun" else (*FTCORE, *args, "--nproc", "2")

    ended = launched(*command, folder=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["folder"] == "run"
    assert ended.stderr.count("DDP over 2 processes (gloo), each batch split between them") == 1
    assert ended.stderr.count("epoch   3 ") == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["machine"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_processes_that_are_started_again_end_in_the_same_bits(tmp_path: Path, how: str) -> None:
    failing = ("--plugin", FAILING, "--set", f"failing.how={how}", "--set", f"failing.once={tmp_path / 'once'}")
    args = (*STILL, "--plugin", "ddp", *failing, "--set", "failing.step=20")

    ended = launched(
        *FTCORE, *arguments(tmp_path / "run", *args), "--nproc", "2", "--max-restarts", "1", folder=tmp_path
    )

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "once").exists()
    assert ended.stderr.count("a process failed; all processes were restarted") == 1
    assert run(*arguments(tmp_path / "whole", *args), ranks=2, log=tmp_path / "log") == [0, 0]
    assert differences(result(tmp_path / "run"), result(tmp_path / "whole")) == []


@pytest.mark.slow
def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    failing = ("--plugin", "ddp", "--plugin", FAILING, "--set", "failing.how=kill")

    ended = launched(*FTCORE, *arguments(Path("run"), *failing), "--nproc", "2", folder=tmp_path)

    said = [line for line in ended.stderr.splitlines() if line.startswith("ftcore: ")]
    assert (ended.returncode, len(said)) == (2, 1), ended.stderr
    assert said[0].startswith("ftcore: rank 1 (process ")
    assert said[0].endswith("was killed by SIGKILL")


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_the_run_and_resume_goes_on(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", *STILL, "--plugin", "ddp", "--set", "train.epochs=4000")
    command = (*FTCORE, *args, "--nproc", "2")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=OURS)
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        time.sleep(0.1)

    process.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 143, said
    assert said.count("ftcore: stopped by SIGTERM after step ") == 1
    sets = ("--set", "train.epochs=1", "--allow-drift")  # it has done more
    resumed = launched(*FTCORE, "resume", str(tmp_path / "run"), *sets, "--nproc", "2", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"^resumed +after step", resumed.stderr, re.MULTILINE)


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *SLURM):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_bare")
def test_what_srun_says_is_said_in_torchs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)

    assert rank_and_world_size() == (3, 4)
    found = [os.environ[name] for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert found == ["1", "gpu07", "24711"]


@pytest.mark.usefixtures("_bare")
def test_a_batch_script_of_slurm_is_no_process_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has SLURM_PROCID and SLURM_NTASKS, but no step of several tasks."""
    for name, value in {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)

    assert rank_and_world_size() is None


@pytest.mark.usefixtures("_bare")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK = '0' is set, but MASTER_ADDR, MASTER_PORT is not"),
        (
            {"RANK": "zero", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "must be integers: .* 'zero'",
        ),
    ],
)
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match=expected):
        rank_and_world_size()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu[007,012-014],login", "gpu007"),
        ("node1", "node1"),
        ("a-1,b-2", "a-1"),
        ("rack[1-2].example.org", "rack1.example.org"),
    ],
)
def test_the_first_of_slurms_hosts(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--max-restarts", "1"], "--max-restarts needs --nproc"),
        (["--nproc", "0"], "0 is not in the range x>=1"),
    ],
)
def test_options_of_the_launcher_that_mean_nothing_are_refused(tmp_path: Path, given: list[str], expected: str) -> None:
    ended = invoke(*arguments(tmp_path / "run"), *given)

    assert ended.code == 2
    assert expected in ended.err
