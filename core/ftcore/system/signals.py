"""Signals set flags, which a run looks at between two steps: there it can be saved."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Iterator


STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
"""End a run once it is saved; a second one ends it at once."""

SAVE_SIGNAL = "SIGUSR1"
"""Has a run saved, and it goes on."""


class StoppedBySignal(Exception):  # noqa: N818 - no error: somebody wanted it
    """A run was ended by a signal, and saved before.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code: 128 and the signal's number, as of a process that the signal killed."""
        return 128 + self.number


@define
class SignalFlags:
    """What signals have asked for.

    Attributes:
        ending: number of the signal that ends the run; 0 for none.
        saving: whether the run is to be saved.
        second_kills: whether a second one ends the process at once.
    """

    ending: int = 0
    saving: bool = False
    second_kills: bool = True

    def end(self, number: int, _frame: Any) -> None:
        """Ask for the end; the second time do not ask."""
        if self.ending and self.second_kills:
            os._exit(128 + number)  # whatever is being written is either whole or not there
        self.ending = number

    def save(self, _number: int, _frame: Any) -> None:
        """Ask for a checkpoint."""
        self.saving = True


@contextmanager
def handle_signals(*, second_kills: bool = True) -> Iterator[SignalFlags]:
    """Let signals set flags; only in the main thread, for Python has no handlers elsewhere.

    Args:
        second_kills: whether a second one ends the process at once; not where a launcher passes on what the group has
            had.
    """
    flags = SignalFlags(second_kills=second_kills)
    handlers = dict.fromkeys(STOP_SIGNALS, flags.end) | {SAVE_SIGNAL: flags.save}
    numbers = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is threading.main_thread():
        for number, handler in numbers.items():
            if before[number] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, handler)
    try:
        yield flags
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, old in before.items():
                signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold signals back while processes are made: they begin so, and `ignore` ends it; a signal would end them before.

    By the handlers of the run, which a fork has, or by torch's own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore what the group of a run is sent: for its loader processes, which it needs until it is saved."""
    for number in _numbers():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in (*STOP_SIGNALS, SAVE_SIGNAL) if hasattr(signal, name)]
