"""How much memory a step takes, and how much there is: of a CUDA device, or of this process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch
from attrs import define, frozen

from .cpu import trim_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


PROC = Path("/proc")

CGROUPS = Path("/sys/fs/cgroup")

_FULL = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED")
"""What torch's allocators and NVIDIA's libraries say when memory is short."""


@define
class Peak:
    """Most bytes that were taken at a time."""

    bytes: int = 0


@frozen
class DeviceMemory:
    """The memory that a step on a device takes from.

    Attributes:
        device: CUDA has its own; everything else is counted as this process's.
    """

    device: torch.device

    @property
    def oom_is_recoverable(self) -> bool:
        """Whether a step that needs too much fails by itself and harms nobody."""
        return self.device.type == "cuda"

    def total(self) -> int:
        """Bytes that this process could have: what it has, and what is free."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        return rss() + available()

    def used(self) -> int:
        """Bytes that it has."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else rss()

    def empty(self) -> None:
        """Give back what is kept for later use."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            trim_memory()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Yield what will hold, behind the block, the most bytes that were taken in it."""
        if self.device.type != "cuda":
            with _peak_of_process() as peak:
                yield peak
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        peak = Peak()
        yield peak
        peak.bytes = torch.cuda.max_memory_reserved(self.device)


def is_oom(error: RuntimeError) -> bool:
    """Whether an error says that memory is short."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


@contextmanager
def _peak_of_process() -> Iterator[Peak]:
    """Let Linux count, or, where its count cannot be reset, look every millisecond."""
    peak = Peak()
    try:
        (PROC / "self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    except OSError:
        with _poll_rss(peak):
            yield peak
        return
    yield peak
    status = (PROC / "self/status").read_text(encoding="utf-8")
    peak.bytes = 1024 * int(status.partition("VmHWM:")[2].split()[0])


@contextmanager
def _poll_rss(peak: Peak) -> Iterator[None]:
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            peak.bytes = max(peak.bytes, rss())

    peak.bytes = rss()
    thread = threading.Thread(target=look, name="ftcore-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def rss() -> int:
    """Bytes of main memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def available() -> int:
    """Bytes of main memory that this process can still have without swapping: the system's, and its control group's."""
    return min([int(psutil.virtual_memory().available), *cgroup_headroom(PROC / "self/cgroup", CGROUPS)])


@frozen
class _Names:
    """Files of a control group, see cgroups(7) and the kernel's admin-guide."""

    limit: str
    usage: str


_V2 = _Names("memory.max", "memory.current")

_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes")


def cgroup_headroom(membership: Path, root: Path) -> list[int]:
    """Return the bytes that each control group of this process, and each above it, leaves; none where it has no limit.

    Args:
        membership: lines ``number:controllers:path``, as in ``/proc/self/cgroup``; version 2 names no controllers.
        root: where the groups are mounted, version 1 by controller.
    """
    if not membership.exists():
        return []
    left = []
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, names = (root / "memory", _V1) if controllers else (root, _V2)
        inner = mount / path.lstrip("/")
        folders = [inner, *(above for above in inner.parents if above.is_relative_to(mount))]
        left += [room for folder in folders if (room := _cgroup_free(folder, names)) is not None]
    return left


def _cgroup_free(folder: Path, names: _Names) -> int | None:
    """Return what a control group leaves; pages of files that are not in use are given back when they are needed."""
    try:
        limit, usage = ((folder / name).read_text(encoding="utf-8").strip() for name in (names.limit, names.usage))
        stat = (folder / "memory.stat").read_text(encoding="utf-8").split()
    except OSError:
        return None
    if limit == "max":
        return None
    values = dict(zip(stat[::2], stat[1::2], strict=True))
    unused = int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return max(0, int(limit) - int(usage) + unused)
