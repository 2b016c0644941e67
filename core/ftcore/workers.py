"""Loader processes that die, are stopped or do not answer: said within seconds, with the samples in flight."""

from __future__ import annotations

import multiprocessing
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader

PATIENCE = 8
"""Seconds without a batch after which the workers are looked at."""

_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) .*", re.DOTALL)
_LATE = "DataLoader timed out"
_SHOWN = 16


def patient(loader: DataLoader[Any], in_flight: Callable[[], list[str]]) -> Iterator[Any]:
    """Yield the batches of a loader; wait for workers that are slow, and say so, but not for those that are stopped.

    Raises:
        DataError: a worker died or is stopped.
    """
    with named(in_flight):
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(_LATE):
                    raise
                _look(in_flight)
                continue
            yield batch


@contextmanager
def named(in_flight: Callable[[], list[str]]) -> Iterator[None]:
    """Turn torch's error at the death of a worker, which can come at any moment, into one that names the samples."""
    try:
        yield
    except RuntimeError as error:
        if not _DIED.match(str(error)):
            raise
        cause = str(error).split(". It is possible")[0].rstrip(".")
        raise DataError(_message(f"{cause}; out of memory, or a crash of the decoder?", in_flight())) from None


def _look(in_flight: Callable[[], list[str]]) -> None:
    """Raise if a worker is stopped; else it is slow, which is said."""
    stopped = [process.pid for process in multiprocessing.active_children() if _state(process.pid) in {"T", "t"}]
    if stopped:
        raise DataError(_message(f"loader process {stopped[0]} is stopped (SIGSTOP, a debugger?)", in_flight()))
    structlog.get_logger().warning("no batch from the loader processes", seconds=PATIENCE, waiting_for=in_flight())


def _state(pid: int | None) -> str:
    """Return the letter that Linux gives to the state of a process; empty elsewhere, and if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _message(cause: str, samples: list[str]) -> str:
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    return f"{cause}\nsamples in flight: {', '.join(samples[:_SHOWN])}{more}"
