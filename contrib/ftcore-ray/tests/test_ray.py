from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from ftcore import UserError
from ftcore.testing import invoke
from safetensors.torch import load_file

from ftcore_ray.working import folder_of

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = ("--plugin", "ddp", "--data", "digits:5-7", "--model", "digits/cnn", "--set", "train.threads=1")
SETS = ("--set", "train.epochs=3", "--set", "run.save_every=2 steps", "--set", "train.batch_size=32")


def start(folder: Path, *words: str, run: Sequence[str] = (*RUN, *SETS)) -> subprocess.Popen[str]:
    code = "from ftcore_ray import main; main()"
    given = ("--workers", "2", *words, "--", *run, "--set", f"run.folder={folder}")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, "-c", code, *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def end(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=580)
    assert process.returncode == 0, said
    return said


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by ftcore's own launcher."""
    folder = tmp_path_factory.mktemp("two") / "run"
    command = [sys.executable, "-m", "ftcore", "run", *RUN, *SETS, "--nproc", "2", "--set", f"run.folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(600)
def test_two_workers_of_ray_end_in_the_bits_of_two_processes(two: Path, tmp_path: Path) -> None:
    end(start(tmp_path / "run"))

    found, expected = weights(tmp_path / "run"), weights(two)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads(invoke("runs", tmp_path, "--json").out)[0]["state"] == "finished"


@pytest.mark.timeout(600)
def test_a_rank_that_is_killed_is_started_again_by_ray_and_the_bits_stay(two: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--max-failures", "2")
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(ranks_of(tmp_path / "run")[-1], signal.SIGKILL)

    end(process)

    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(two).items())
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert log.count('"event": "RunStarted"') >= 2


def ranks_of(folder: Path) -> list[int]:
    """Processes of a run, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"ftcore" in words and f"run.folder={folder}".encode() in words and b"run" in words:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.timeout(600)
def test_a_run_that_cannot_be_is_said_and_nothing_is_restarted_for_ever(tmp_path: Path) -> None:
    process = start(tmp_path / "run", run=(*RUN, "--set", "train.epoch=3"))

    said, _ = process.communicate(timeout=580)

    assert process.returncode == 2
    assert "train.epoch" in said
    assert "ended with exit code 2" in said
    assert not (tmp_path / "run").exists()


def test_the_run_folder_is_absolute_and_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()

    assert folder_of(["--set", "run.folder=new"], tmp_path) == tmp_path / "new"
    assert folder_of([], tmp_path).parent == tmp_path / "runs"
    with pytest.raises(UserError, match="is not empty"):
        folder_of(["--set", "run.folder=old"], tmp_path)
    with pytest.raises(UserError, match="are for ftcore alone"):
        folder_of(["--resume", "old"], tmp_path)
