"""Threads and processes are as many as this process has cores, which may be fewer than the machine's."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tests.faults.killing import run_python

from ftcore.system.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.machine

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


COMMAND = """
import sys
from ftcore.cli import main
main(sys.argv[1:])
"""


def words(run: Path, *sets: str) -> list[str]:
    more = [word for text in ("train.epochs=1", f"run.folder={run}", *sets) for word in ("--set", text)]
    return ["run", "--data", "digits:5-6", "--model", "digits/cnn", *more]


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return how many threads a run says that it takes."""
    assert done.returncode == 0, done.stderr
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
    few, told = words(tmp_path / "few"), words(tmp_path / "told", "train.threads=2")
    one = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"LOKY_MAX_CPU_COUNT": "1"}

    assert said(run_python(COMMAND, *few, folder=tmp_path, env=one)) == "1 thread"
    assert said(run_python(COMMAND, *told, folder=tmp_path, env=one)) == "2 threads"


@pytest.mark.slow
def test_a_run_takes_the_threads_that_torch_was_loaded_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftcore", *words(tmp_path / "environment")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    assert said(subprocess.run(command, capture_output=True, text=True, env=environment, check=False)) == "1 thread"


def test_a_run_after_one_that_took_one_thread_takes_as_many_as_usual() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "LOKY_MAX_CPU_COUNT": "2"}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout == "2\n"


def faults(words: Sequence[str]) -> str:
    """Return `FAULTS` of a command."""
    return FAULTS.format(words=", ".join(map(repr, words)))


@pytest.mark.skipif(sys.platform != "linux" or not find_library("c"), reason="glibc's")
@pytest.mark.slow
def test_commands_keep_what_they_freed_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    run, evaluate = words(tmp_path / "run"), ["evaluate", str(tmp_path / "run")]
    told = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"}  # read as a process starts

    for command in (run, evaluate, ["predict", str(tmp_path / "run"), str(tmp_path / "picture.png")]):
        done = run_python(faults(command), folder=tmp_path)
        assert done.stdout == "True False\n", done.stderr
    fresh = [sys.executable, "-c", faults(evaluate)]
    otherwise = subprocess.run(fresh, check=False, capture_output=True, text=True, env=told)

    assert otherwise.stdout == "True True\n", otherwise.stderr


@pytest.mark.skipif(sys.platform != "linux" or not find_library("c"), reason="glibc's")
def test_what_is_kept_is_given_back_before_memory_is_measured() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)

    assert done.stdout == "True True\n"
