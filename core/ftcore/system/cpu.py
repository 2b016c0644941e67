"""What arithmetic on the processor takes: how many cores there are for this process, and memory that it keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

MALLOPT_OPTIONS = {"MMAP_THRESHOLD": (-3, 2**30), "TRIM_THRESHOLD": (-1, 2**31 - 1)}
"""What glibc is told, see mallopt(3): name -> (number, bytes)."""


def available_cpus() -> int:
    """Return how many cores this process may use: those of its affinity, and its container's share of time (cgroup)."""
    from joblib import cpu_count

    return int(cpu_count())


@cache
def default_num_threads() -> int:
    """Return how many threads torch takes where nobody says: its choice, but no more than there are cores.

    In a container that has two of a machine's 64 cores, torch's choice is 64 threads, which wait for each other. To be
    called before anybody has said, for torch does not remember.
    """
    import torch

    return min(torch.get_num_threads(), available_cpus())


def set_threads(wanted: int | None) -> None:
    """Let the network's arithmetic take so many threads of the processor; None for `default_num_threads`."""
    import torch

    usual = default_num_threads()
    torch.set_num_threads(wanted or usual)


def retain_freed_memory() -> bool:
    """Let glibc keep memory that is freed, for the next step needs it again; return whether it does.

    By itself it gives blocks of megabytes, as activations are, back to the system each time, which fills the next ones
    with zeros, page by page: a third of a step of MobileNetV2 at 128 px. Who has told glibc something else in the
    environment (``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES`` ...) is heeded.
    """
    configured, mallopt = {"GLIBC_TUNABLES", *(f"MALLOC_{name}_" for name in MALLOPT_OPTIONS)}, _of_glibc("mallopt")
    if mallopt is None or configured & os.environ.keys():
        return False
    return all(mallopt(number, size) for number, size in MALLOPT_OPTIONS.values())


def trim_memory() -> None:
    """Give memory that was freed, and kept, back to the system."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library, or None where that has none of the name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
