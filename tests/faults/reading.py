"""Reading a file in a process of its own, watched: what does it execute, and how much memory does it take?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import safetensors.torch
import torch
from attrs import frozen
from torch import nn

from ftcore import UserError
from ftcore.inference import load
from ftcore.model import safe_unpickle
from ftcore.model.weights import load_state_dict, load_weights
from ftcore.runs.run import resume

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

FORBIDDEN = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "webbrowser.open", "urllib.Request", "ctypes.dlopen",
}  # fmt: skip
ITSELF = ("ctypes.dlopen", (None,))
"""How a process asks for functions that it has already, such as glibc's mallopt; it loads nothing."""


@frozen
class Outcome:
    """What reading a file did.

    Attributes:
        said: the error; empty where the file was read.
        forbidden: what Python's audit saw that reading has no need of.
        peak: bytes of memory that it took beyond what was there.
    """

    said: str
    forbidden: list[str]
    peak: int


def read_pickled(file: Path) -> None:
    target = file.with_name("converted.safetensors")
    with target.open("w+b") as written:  # opened now: once it has read the file, this process can open none
        reason = safe_unpickle.convert(file, target)
        if reason:
            raise UserError(f"weights {file} {reason}")
        state = safetensors.torch.load(written.read())
    try:
        load_state_dict(net(), state)
    except RuntimeError as error:
        raise UserError(f"weights {file} do not fit: {error}") from None


def read_safetensors(file: Path) -> None:
    load_weights(net(), file)


def read_run(folder: Path) -> None:
    load.load(folder)
    resume(folder)


def net() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(4))
    return module


def attempt(read: Callable[[Path], None], file: Path, sender: Connection) -> None:
    """Read a file in this process, which ends with it, and send what that did."""
    forbidden: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        asks_git = event == "subprocess.Popen" and str(arguments[0]).endswith("/git")  # which commit is it?
        needed = asks_git or (event, arguments) == ITSELF
        if (event in FORBIDDEN and not needed) or (event == "open" and _is_outside(arguments, file.parent)):
            forbidden.append(f"{event} {arguments}")

    Path("/proc/self/clear_refs").write_text("5")
    with Path("/proc/self/status").open() as status:  # now, for what is read may open no more files
        before, said = memory(status), ""
        sys.addaudithook(watch)
        try:
            read(file)
        except UserError as error:
            said = str(error)
        sender.send(Outcome(said, forbidden, memory(status) - before))


def _is_outside(arguments: tuple[Any, ...], folder: Path) -> bool:
    path, _, flags = arguments
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writes) and isinstance(path, str) and not Path(path).absolute().is_relative_to(folder)


def memory(status: IO[str]) -> int:
    """Return the most memory that this process has had, in bytes, since that was set back."""
    status.seek(0)
    lines = status.read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
