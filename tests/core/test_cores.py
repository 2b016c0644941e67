"""Threads and processes are as many as this process has cores, which may be fewer than the machine's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ftcore.cores import cores

if TYPE_CHECKING:
    from pathlib import Path

SAID = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ftcore.cores import cores
print(cores())
"""


THREADS = """
import torch
from ftcore.cores import set_threads
set_threads(1)
set_threads(None)
print(torch.get_num_threads())
"""


def said(run: Path, *sets: str, **variables: str) -> str:
    """Return how many threads a run says that it takes."""
    words = [word for text in ("train.epochs=1", f"run.folder={run}", *sets) for word in ("--set", text)]
    command = [sys.executable, "-m", "ftcore", "run", "--data", "digits:5-6", "--model", "digits/cnn", *words]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("precision")]
    return line.rpartition(", ")[2]


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_cores_are_those_of_the_affinity() -> None:
    done = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, check=True)

    assert done.stdout == "1\n"


def test_the_share_that_a_container_has_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib reads cgroup v1 and v2, and the limit of its own variable, which is the one that a test can set."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")

    assert cores() == 1


def test_a_run_takes_no_more_threads_than_it_has_cores_unless_it_is_told_to(tmp_path: Path) -> None:
    assert said(tmp_path / "few", LOKY_MAX_CPU_COUNT="1") == "1 thread"
    assert said(tmp_path / "told", "train.threads=2", LOKY_MAX_CPU_COUNT="1") == "2 threads"
    assert said(tmp_path / "environment", OMP_NUM_THREADS="1") == "1 thread"


def test_a_run_after_one_that_took_one_thread_takes_as_many_as_usual() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "LOKY_MAX_CPU_COUNT": "2"}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout == "2\n"
