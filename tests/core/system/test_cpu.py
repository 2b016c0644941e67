"""Threads and processes are as many as this process has cores, which may be fewer than the machine's."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from ftcore.system.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SAID = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ftcore.system.cpu import available_cpus
print(available_cpus())
"""


THREADS = """
import torch
from ftcore.system.cpu import set_threads
set_threads(1)
set_threads(None)
print(torch.get_num_threads())
"""


FAULTS = """
import resource, torch
from ftcore.system.cpu import retain_freed_memory
from ftcore.testing import invoke

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
result = invoke({words})
assert result.code == 0, result.err
warm = [faults() for _ in range(3)]
print(first > 16, faults() > 16)  # of 16,384 pages of 4 KB, or 32 of 2 MB
"""
"""Whether a block that was freed before is filled page by page again, before a command and after it."""


GIVEN_BACK = """
import torch
from ftcore.system.cpu import retain_freed_memory
from ftcore.system.memory import DeviceMemory, rss
memory, before = DeviceMemory(torch.device("cpu")), rss()
assert retain_freed_memory()
blocks = [torch.ones(2**23) for _ in range(4)]  # 32 MB each
del blocks
kept = rss() - before
memory.empty()
print(kept > 1.2e8, rss() - before < 2e7)
"""
"""Whether what was freed is kept, and whether it is given back to the system when it is to be measured."""


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

    assert available_cpus() == 1


def test_a_run_takes_no_more_threads_than_it_has_cores_unless_it_is_told_to(tmp_path: Path) -> None:
    assert said(tmp_path / "few", LOKY_MAX_CPU_COUNT="1") == "1 thread"
    assert said(tmp_path / "told", "train.threads=2", LOKY_MAX_CPU_COUNT="1") == "2 threads"
    assert said(tmp_path / "environment", OMP_NUM_THREADS="1") == "1 thread"


def test_a_run_after_one_that_took_one_thread_takes_as_many_as_usual() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "LOKY_MAX_CPU_COUNT": "2"}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout == "2\n"


def faults(words: Sequence[str | Path], **variables: str) -> str:
    """Return what `FAULTS` prints of a command."""
    script = FAULTS.format(words=", ".join(repr(str(word)) for word in words))
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux" or not find_library("c"), reason="glibc's")
def test_commands_keep_what_they_freed_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    sets = ("train.epochs=1", f"run.folder={tmp_path / 'run'}")
    run = ["run", "--data", "digits:5-6", "--model", "digits/cnn", *(word for text in sets for word in ("--set", text))]
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")

    assert faults(run) == "True False\n"
    assert faults(["evaluate", tmp_path / "run"]) == "True False\n"
    assert faults(["predict", tmp_path / "run", tmp_path / "picture.png"]) == "True False\n"
    assert faults(["evaluate", tmp_path / "run"], MALLOC_TRIM_THRESHOLD_="131072") == "True True\n"


@pytest.mark.skipif(sys.platform != "linux" or not find_library("c"), reason="glibc's")
def test_what_is_kept_is_given_back_before_memory_is_measured() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)

    assert done.stdout == "True True\n"
