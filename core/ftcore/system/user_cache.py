"""What is kept between runs, in folders of the user alone: believed only with the user's seal, and never needed.

Every cache of ftcore goes through this module. Whatever is wrong with one (a disk that is full or may only be read, a
home that is none, a folder of somebody else) is one warning, and the command goes on without it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import platformdirs

from .logging import warn

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32

SEAL_BYTES = 16

_warned: set[str] = set()


def cache_folder(*names: str) -> Path | None:
    """Return a folder below the user's cache, mode 0700, or None, after one warning, where none can be had.

    Args:
        names: of the folders below that of ftcore, the outer first.
    """
    folder = platformdirs.user_cache_path("ftcore")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_private_folder(folder)
        for name in names:
            folder /= name
            make_private_folder(folder)
    except OSError as error:
        warn_unusable(folder, error)
        return None
    return folder


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user may enter, or make one that is there so.

    Raises:
        OSError: it cannot be made, is none, or is another user's.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _check_owner(folder, folder.lstat())  # of a link, perhaps: to a larger disk
    status = folder.stat()
    _check_owner(folder, status)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def open_private(file: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file that only this user may read and write, make it so if it is there, and return its descriptor.

    Args:
        file: in a folder of `cache_folder`.
        flags: of `os.open`.

    Raises:
        OSError: it cannot be opened, is a link, a pipe or a device, or is another user's.
    """
    descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(descriptor)
        _check_regular(file, status)
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}; it is not used")


def _check_regular(file: Path, status: os.stat_result) -> None:
    _check_owner(file, status)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{file} is not a regular file")


def warn_unusable(what: Path, error: Exception) -> None:
    """Say once what is not used as a cache, and why."""
    if str(what) not in _warned:
        _warned.add(str(what))
        warn(
            "this cache is not used; the command is slower, but its result is the same",
            cache=str(what),
            reason=str(error),
        )


def write_all(file: Path, content: bytes) -> None:
    """Write a file of the user alone, in one instant.

    Raises:
        OSError: it cannot be written.
    """
    aside = file.with_name(f".new-{file.name}-{secrets.token_hex(4)}")
    try:
        with open(open_private(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as opened:
            opened.write(content)
        aside.replace(file)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def reserve(descriptor: int, size: int) -> None:
    """Take room on the disk for a file that will be mapped into memory, where a full disk kills who writes.

    Raises:
        OSError: there is none.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def read_all(file: Path, limit: int) -> bytes:
    """Read a file of the user alone.

    Raises:
        OSError: it cannot be read, is not the user's, or has more than `limit` bytes.
    """
    with open(open_private(file), "rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"{file} has more than {limit:,} bytes")
    return content


def seal(*parts: Any, key: bytes | None = None) -> bytes:
    """Return 16 bytes that only who has the user's key can make of these parts: HMAC-SHA-256, cut.

    Args:
        parts: bytes-like objects; where one ends and the next begins counts.
        key: 32 bytes; by default the user's.
    """
    digest = hmac.new(user_key() if key is None else key, digestmod="sha256")
    for part in parts:
        view = memoryview(part).cast("B")
        digest.update(len(view).to_bytes(8, "big"))
        digest.update(view)
    return digest.digest()[:SEAL_BYTES]


def user_key() -> bytes:
    """Return the key of this user's caches, 32 bytes, made at its first use; not where the caches are.

    Where none can be kept, it is one of this process, after one warning: what is in a cache is then made anew.
    """
    return _key(platformdirs.user_config_path("ftcore") / "cache.key")


@cache
def _key(file: Path) -> bytes:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists() or file.stat().st_size != KEY_BYTES:
            write_all(file, secrets.token_bytes(KEY_BYTES))
        return read_all(file, KEY_BYTES)
    except OSError as error:
        warn("cached entries are not used because their key is missing", key=str(file), reason=str(error))
        return secrets.token_bytes(KEY_BYTES)
