"""How much memory there is, and how much was taken."""

from __future__ import annotations

import mmap
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ftcore.system import memory as measuring
from ftcore.system.memory import DeviceMemory, available, cgroup_headroom, rss

if TYPE_CHECKING:
    from pathlib import Path


def allocate(megabytes: int) -> None:
    """Take memory from the system and give it back, past an allocator that may keep it from earlier tests."""
    with mmap.mmap(-1, megabytes * 1_000_000) as block:
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        time.sleep(0.02)


@pytest.mark.parametrize("counted", [measuring._peak_of_process, None], ids=["count of Linux", "looking"])
def test_the_peak_is_what_was_taken_at_most_in_the_block(counted: Any) -> None:
    allocate(300)  # an earlier peak does not count
    before, peak = rss(), measuring.Peak()

    if counted:
        with counted() as peak:
            allocate(100)
    else:
        with measuring._poll_rss(peak):
            allocate(100)
            time.sleep(0.05)  # a later look does not count

    assert peak.bytes - before == pytest.approx(100_000_000, rel=0.1)
    assert rss() - before < 20_000_000


def group(folder: Path, *, limit: str, usage: int, inactive: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    for name, value in zip((*names, "memory.stat"), (limit, usage, f"anon 5\n{stat} {inactive}\n"), strict=True):
        (folder / name).write_text(f"{value}\n", encoding="utf-8")


def test_a_control_group_and_each_above_it_limits_memory(tmp_path: Path) -> None:
    group(tmp_path / "outer", limit="1000", usage=700, inactive=100)
    group(tmp_path / "outer" / "inner", limit="900", usage=100)
    group(tmp_path / "outer" / "inner" / "free", limit="max", usage=50)
    (tmp_path / "of").write_text("0::/outer/inner/free\n", encoding="utf-8")

    assert sorted(cgroup_headroom(tmp_path / "of", tmp_path)) == [400, 800]


def test_control_groups_of_version_1_are_read_too(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "job", limit="500", usage=600, inactive=20, version=1)
    (tmp_path / "of").write_text("3:cpuset:/job\n4:cpu,memory:/job\n0::/\n", encoding="utf-8")

    assert cgroup_headroom(tmp_path / "of", tmp_path) == [0]
    assert cgroup_headroom(tmp_path / "none", tmp_path) == []


@pytest.mark.skipif(not (measuring.PROC / "meminfo").exists(), reason="Linux")
def test_what_is_free_is_no_more_than_the_machine_has() -> None:
    lines = (measuring.PROC / "meminfo").read_text(encoding="utf-8").splitlines()
    total = 1024 * int(next(line for line in lines if line.startswith("MemTotal")).split()[1])

    assert 0 < available() < total
    assert 0 < rss() < total
    assert DeviceMemory(torch.device("cpu")).total() <= total


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_full_memory_is_told_from_other_errors(error: RuntimeError, *, full: bool) -> None:
    assert measuring.is_oom(error) is full
