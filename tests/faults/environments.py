"""What a process may find around it: each changes the process that calls it, which ends soon after."""

from __future__ import annotations

import ctypes
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disks import called
from .killing import end, forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DAY, YEAR = 86_400.0, 365 * 86_400.0
REPEATED_HOUR = 1_792_889_999.0
"""2026-10-25 02:59:59 in Berlin, a second before it is two o'clock again."""


def wall_clock(times: Iterator[float]) -> None:
    """Let the clock on the wall show other times, one each time that somebody looks."""
    local, form = time.localtime, time.strftime
    now: Callable[[], float] = lambda: max(next(times), 0.0)  # noqa: E731
    time.time = now
    time.time_ns = lambda: int(now() * 1e9)
    time.localtime = lambda seconds=None: local(now() if seconds is None else seconds)
    time.strftime = lambda text, at=(): form(text, at or time.localtime())


def clock_set_by(seconds: float) -> None:
    """Let somebody set the clock while the process runs."""
    start = time.time()
    wall_clock(start + (seconds if number > 2 else 0.0) for number in itertools.count())


def clock_that_runs_backwards() -> None:
    start = time.time()
    wall_clock(start - 60.0 * number for number in itertools.count())


def clock_off_by(years: float) -> None:
    start = time.time()
    wall_clock(start + years * YEAR + number for number in itertools.count())


def clock_at_1970() -> None:
    wall_clock(itertools.repeat(0.0))


def clocks_that_stand_still() -> None:
    wall_clock(itertools.repeat(time.time()))
    now = time.monotonic()
    time.monotonic = lambda: now
    time.perf_counter = lambda: now


def clock_that_skips_days() -> None:
    """As after a machine has slept, where its clock goes on meanwhile."""
    start, days = time.monotonic(), itertools.count()
    time.monotonic = lambda: start + DAY * next(days)


def hour_that_comes_twice() -> None:
    zone("Europe/Berlin")
    wall_clock(REPEATED_HOUR + number for number in itertools.count())


def zone(name: str) -> None:
    os.environ["TZ"] = name
    time.tzset()


def limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def little_memory(more: int) -> None:
    """Allow so many bytes beside those that are taken."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit(resource.RLIMIT_AS, taken + more)


def variables(**values: str | None) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def without_a_network() -> None:
    """Leave all networks behind, the machine's own to itself too."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000):  # CLONE_NEWNET, sched.h
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_a_folder_that_is_gone() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    Path(folder).rmdir()


def within(
    change: Callable[..., None], arguments: Sequence[object], words: Sequence[object], report: Path
) -> dict[str, Any]:
    """Run a command in a process that is changed before; return its code and what it said on standard error."""
    process = forked(_within, change, list(arguments), [str(word) for word in words], str(report))
    assert end(process) == 0, process.exitcode
    answer: dict[str, Any] = json.loads(report.read_text())
    return answer


def _within(change: Callable[..., None], arguments: list[Any], words: list[str], report: str) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of a process of its own, not of one from a fork server
    with Path(report).open("w", encoding="utf-8") as file:  # before there are limits
        change(*arguments)
        json.dump(called(words), file)
