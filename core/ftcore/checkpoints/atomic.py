"""Files and folders that are written aside and renamed, so that a reader never sees half of one."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ftcore.errors import UserError
from ftcore.system.files import open_text

from .strict_json import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor


_ROOM = 1.1
"""Of what a checkpoint takes, for what the file system takes beside it."""


def write_dir_atomic(target: Path, write: Callable[[Path], None]) -> None:
    """Make `target` appear whole: write it aside, fsync every file, rename, fsync the parent.

    A folder that is already there is replaced; after a process was killed in between, `resolve_current` finds the old
    one.
    """
    aside, old = _beside(target, "new"), _beside(target, "old")
    makedirs_fsync(target.parent)
    aside.mkdir()
    try:
        write(aside)
        for file in aside.iterdir():
            file.chmod(aside.stat().st_mode & 0o666)  # safetensors makes files for the owner alone
            fsync(file)
        fsync(aside)
        _rename(aside, target, old)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_file(target: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Make a file appear whole, or stay as it was: write it aside, and rename it.

    Args:
        target: the file.
        write: writes it at the path that it is given.
        durable: whether to fsync it first, so that it is one or the other after a loss of power too.
    """
    aside = _beside(target, "new")
    try:
        write(aside)
        if durable:
            fsync(aside)
        aside.replace(target)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def _beside(target: Path, kind: str) -> Path:
    """Return a name that nobody else uses; what is left there goes with `recover_interrupted_writes`."""
    return target.with_name(f".{kind}-{target.name}-{uuid.uuid4().hex[:8]}")


def makedirs_fsync(path: Path) -> None:
    """Make a folder, with those above it, that stays after a loss of power."""
    if not path.is_dir():
        makedirs_fsync(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def _rename(aside: Path, target: Path, old: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    target.rename(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve_current(target: Path) -> Path:
    """Return the folder that `write_dir_atomic` last made whole.

    `target` itself; or the one before it, where a process was killed between the renames that replace it.
    """
    return target if target.exists() else next(target.parent.glob(f".old-{target.name}-*"), target)


def recover_interrupted_writes(folder: Path) -> None:
    """Finish or remove what a process that was killed has left in a folder."""
    for old in folder.glob(".old-*"):
        target = folder / old.name.removeprefix(".old-").rpartition("-")[0]
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for rest in [*folder.glob(".new-*"), *folder.glob(".gone-*")]:
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write plain data to a file."""
    with open_text(path, "w") as file:
        file.write(to_json(value, indent=2) + "\n")


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn what the system says to writing into an error that names the place and the room that is left.

    Raises:
        UserError: what was to be written is whole or not there, and what was there before stays.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save in {path}: {error}; {_free_space_message(path)}") from None


def check_room(target: Path, tensors: Iterable[Tensor]) -> None:
    """Raise a `UserError` where there is no room for tensors."""
    need = int(_ROOM * sum(tensor.numel() * tensor.element_size() for tensor in tensors)) + 100_000
    if need > shutil.disk_usage(_existing_parent(target)).free:
        raise UserError(f"cannot save {target}: it needs {need:,} bytes; {_free_space_message(target)}")


def _free_space_message(path: Path) -> str:
    return f"{shutil.disk_usage(_existing_parent(path)).free:,} bytes are free on its disk"


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
