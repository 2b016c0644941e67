"""ftcore commands on a disk of their own: a tmpfs in a mount namespace that ends with its process. Needs root."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftcore.cli.group

from .killing import forked, result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NEW_NAMESPACE, _READ_ONLY, _AGAIN, _PRIVATE = 0x20000, 1, 32, 1 << 18 | 1 << 14  # sched.h, sys/mount.h
ROOMY = 64_000_000
"""Bytes on which everything fits."""


def may_mount() -> bool:
    """Whether this process may have disks of its own."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and Path("/proc/self/ns/mnt").exists()


def on_disk(
    size: int,
    at: Path,
    commands: Sequence[Sequence[str]],
    report: Path,
    *,
    read_only: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Run the first command on a disk of so many bytes, the others with room; return code and output of each.

    `environment` holds variables of theirs. The last answer has, as `result`, what the run folder ``run`` on the disk
    then holds, if it is one.
    """
    at.mkdir(exist_ok=True)
    asked = [list(words) for words in commands]
    process = forked(_on_disk, size, str(at), asked, read_only, str(report), dict(environment or {}))
    process.join(120)
    assert process.exitcode == 0, process.exitcode
    answers: list[dict[str, Any]] = json.loads(report.read_text())
    return answers


def _on_disk(
    size: int,
    at: str,
    commands: list[list[str]],
    read_only: bool,  # noqa: FBT001
    report: str,
    environment: dict[str, str],
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of a process of its own, not of one from a fork server
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_NEW_NAMESPACE))
    _checked(libc.mount(b"none", b"/", None, _PRIVATE, None))
    _checked(libc.mount(b"tmpfs", at.encode(), b"tmpfs", _READ_ONLY * read_only, f"size={size}".encode()))
    answers = []
    for words in commands:
        answers.append(called(words))
        _checked(libc.mount(b"tmpfs", at.encode(), b"tmpfs", _AGAIN, f"size={ROOMY}".encode()))
    run = Path(at) / "run"
    if any(run.glob("checkpoints/step-*")):
        answers[-1]["result"] = {key: repr(value) for key, value in result(run).items()}
    Path(report).write_text(json.dumps(answers))


def _checked(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def called(words: list[str]) -> dict[str, Any]:
    """Call a command that may not be there for want of a run folder."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            ftcore.cli.main(words)
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
    return {"code": code, "err": err.getvalue()}
