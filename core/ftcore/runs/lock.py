"""One process a run folder: a lock that dies with its process, however that ends, and with no child of it."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ftcore.errors import UserError
from ftcore.system.files import open_regular, open_text, read_text
from ftcore.system.logging import warn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LOCK = ".lock"

MARKER = ".lock.held"
"""Stands for the lock on a file system that has none, such as NFS without its lock service."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which exists.

    Where the file system has no locks, which is said, a file stands for one; who is killed leaves it behind.

    Raises:
        UserError: another process holds it; the message names that one.
    """
    file = folder / LOCK
    if file.is_symlink():  # `FileLock` refuses it only where it makes the file
        raise UserError(f"{file} is a symbolic link, and is not followed")
    lock = FileLock(file, timeout=0.1, poll_interval=0.05, fallback_to_soft=False)  # `is_locked` may look at it now
    held, marker = f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n", folder / MARKER
    try:
        if _has_locks(folder):
            lock.acquire()
            with open_text(file, "w") as opened:
                opened.write(held)
        else:
            _make_marker(marker, held)
    except Timeout:
        raise UserError(f"{folder} is in use by {_holder(file)}") from None
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()
        else:
            marker.unlink(missing_ok=True)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _holder(file: Path) -> str:
    return read_text(file, 1000).strip() or "another process"


def _has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks, by taking one of the folder itself, shared and for an instant."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def _make_marker(marker: Path, held: str) -> None:
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise UserError(
            f"{marker.parent} is in use by {_holder(marker)}; its file system does not support locks, so if that "
            f"process "
            f"has ended, remove {marker}"
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(held)
    warn(
        "the file system does not support locks; a lock file is used instead, which a killed process does not remove",
        file=str(marker),
    )


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder; writes nothing, and needs no more than to read, unlike `FileLock`."""
    import fcntl

    try:
        with os.fdopen(open_regular(folder / LOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in {errno.ENOENT, *_NO_LOCKS}:
            raise
    return (folder / MARKER).exists()
