"""One process a run folder: a lock that dies with its process, however that ends, and with no child of it."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LOCK = ".lock"


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which exists.

    Raises:
        UserError: another process holds it; the message names that one.
    """
    file = folder / LOCK
    lock = FileLock(file, timeout=0.1, poll_interval=0.05, fallback_to_soft=False)  # `is_locked` may look at it now
    try:
        lock.acquire()
    except Timeout:
        holder = file.read_text(encoding="utf-8", errors="replace").strip() or "another process"
        raise UserError(f"{folder} is in use by {holder}") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder; writes nothing, and needs no more than to read, unlike `FileLock`."""
    import fcntl

    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
