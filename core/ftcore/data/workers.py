"""Loader processes that die, are stopped or do not answer: said within seconds, with the samples in flight."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

import structlog
import torch
from attrs import define, field

from ftcore.errors import DataError
from ftcore.system.signals import block_signals, ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader


PATIENCE = 6
"""Seconds without a batch after which the workers are looked at."""

_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) .*", re.DOTALL)

_SHOWN = 16


@define(eq=False)
class WorkerPids:
    """Notes the process numbers of workers; what a loader calls in each as it starts.

    Attributes:
        numbers: (workers,) int64, in shared memory; 0 before a worker has started.
    """

    numbers: torch.Tensor

    @classmethod
    def of(cls, workers: int) -> WorkerPids:
        """Make room for so many."""
        shared: Any = torch.zeros(workers, dtype=torch.int64)
        pids = cls(shared.share_memory_())
        _made.add(pids)
        finalize(pids, lambda: _orphaned_pids.update(shared.tolist())).atexit = False
        return pids

    def __call__(self, worker: int) -> None:
        """Note the number of this process, which only ends with the run."""
        self.numbers[worker] = os.getpid()
        ignore()
        _die_with_parent()


_made: WeakSet[WorkerPids] = WeakSet()

_orphaned_pids: set[int] = set()
"""Numbers of workers whose loader is gone; torch asks them to end, and forgets those that are too slow to do so."""


@atexit.register
def _end_workers() -> None:
    """End the workers that still wait for work: multiprocessing would ask them, which they ignore, and wait."""
    numbers = _orphaned_pids.union(*(pids.numbers.tolist() for pids in _made))
    children = [child for child in multiprocessing.active_children() if child.pid in numbers]
    if children:
        _remove_sigchld_handler()
    for child in children:
        child.kill()


def _die_with_parent() -> None:
    """Let Linux kill this process when its parent is gone; elsewhere torch looks for it every five seconds."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


@define(eq=False)
class WorkerWatchdog:
    """A thread that looks at the workers while the loop waits for them.

    One that is stopped would never answer, and may hold half of a message, for which the loop would wait for ever: it
    is killed, and torch's own handler then interrupts the loop. One that works is only slow, and that is said.

    Attributes:
        pids: of the workers.
        pending_samples: gives the names of the samples that they have.
        since: when the loop began to wait, on the monotonic clock; None while it does not.
        cause: why a worker was killed; empty if none was.
        over: ends the thread.
    """

    pids: WorkerPids
    pending_samples: Callable[[], list[str]]
    since: float | None = None
    cause: str = ""
    over: threading.Event = field(factory=threading.Event)

    def look(self) -> None:
        """Look every second until it is over."""
        before: set[int] = set()
        said = 0
        while not self.over.wait(1.0):
            waited = 0.0 if self.since is None else time.monotonic() - self.since
            late = waited > PATIENCE
            stopped = {pid for pid in self.pids.numbers.tolist() if late and pid and _state(pid) in {"T", "t"}}
            if stopped & before:  # seen twice, for a moment it may be only a job that is being put in the foreground
                self.cause = f"loader process {min(stopped)} is stopped (by SIGSTOP or a debugger?)"
                os.kill(min(stopped), signal.SIGKILL)
                return
            before = stopped
            said = said if late else 0
            if not stopped and waited > PATIENCE * (said + 1):
                said += 1
                structlog.get_logger().warning(
                    "no batch from the loader processes",
                    seconds=round(waited),
                    waiting_for=self.pending_samples()[:_SHOWN],
                )


def iterate_with_watchdog(
    loader: DataLoader[Any], pids: WorkerPids, pending_samples: Callable[[], list[str]]
) -> Iterator[Any]:
    """Yield the batches of a loader that has worker processes.

    Raises:
        DataError: a worker died or is stopped.
    """
    watch = WorkerWatchdog(pids, pending_samples)
    thread = threading.Thread(target=watch.look, name="ftcore-workers", daemon=True)
    thread.start()
    try:
        with name_lost_samples(pending_samples, watch):
            with block_signals():
                batches = iter(loader)
            while True:
                watch.since = time.monotonic()
                batch = next(batches, None)
                watch.since = None
                if batch is None:
                    return
                yield batch
    finally:
        watch.over.set()
        thread.join()  # at once; it holds the loader, whose workers would end later than they should


def end_workers(loader: DataLoader[Any]) -> None:
    """End the processes of a loader, if it keeps any: they would live as long as anything that knows the loader."""
    kept: Any = vars(loader)
    batches, kept["_iterator"] = kept.get("_iterator"), None
    if batches is not None:
        batches._shutdown_workers()  # noqa: SLF001 - torch has no other way but to forget them


@contextmanager
def name_lost_samples(pending_samples: Callable[[], list[str]], watch: WorkerWatchdog | None = None) -> Iterator[None]:
    """Turn errors that the death of a worker causes into one that names the samples.

    torch's own comes from a signal handler, at any moment; a broken connection where the worker had something to send.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        lost = watch is not None and not isinstance(error, RuntimeError) and not text.startswith("Caught ")
        if not (_DIED.match(text) or lost):
            raise
        _remove_sigchld_handler()
        died = text.split(". It is possible", maxsplit=1)[0].rstrip(".")
        cause = (watch.cause if watch else "") or f"{died}; out of memory, or a crash of the decoder?"
        raise DataError(_message(cause, pending_samples())) from None


def _remove_sigchld_handler() -> None:
    """Take torch's handler away, which would raise again, in the middle of whatever, as the other workers end.

    A later loader finds a dead worker without it too, by looking every five seconds.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _state(pid: int) -> str:
    """Return the letter that Linux gives to the state of a process; empty elsewhere, and if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _message(cause: str, samples: list[str]) -> str:
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    return f"{cause}\nsamples in flight: {', '.join(samples[:_SHOWN])}{more}"
