"""ftcore commands in several processes of this machine, as a launcher would start them; real gloo between them."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from tests.faults.killing import _command, end, forked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path


def start(*arguments: object, ranks: int, log: Path, last: Sequence[object] = ()) -> list[ForkServerProcess]:
    """Start an ftcore command in so many processes; what each prints is appended to a file of its own.

    Args:
        arguments: of the command.
        ranks: processes.
        log: what the names of those files begin with.
        last: more arguments of the last process alone.
    """
    port, given = free_port(), [str(argument) for argument in arguments]
    more = [str(argument) for argument in last]
    return [
        forked(_one, given + more * (rank == ranks - 1), rank, ranks, port, str(log_of(log, rank)))
        for rank in range(ranks)
    ]


def run(
    *arguments: object, ranks: int, log: Path, last: Sequence[object] = (), seconds: float = 120
) -> list[int | None]:
    """Run an ftcore command in so many processes, and return their exit codes."""
    return [end(process, seconds) for process in start(*arguments, ranks=ranks, log=log, last=last)]


def said(log: Path, ranks: int) -> list[str]:
    """Return what each process printed."""
    return [log_of(log, rank).read_text() for rank in range(ranks)]


def messages(log: Path, ranks: int) -> list[str]:
    """Return the lines of all processes that say what went wrong."""
    return [line for text in said(log, ranks) for line in text.splitlines() if line.startswith("ftcore: ")]


def call(function: Callable[..., Any], *arguments: object, ranks: int, folder: Path) -> list[Any]:
    """Call a function in so many processes that can meet, and return what each returned, through JSON."""
    port = free_port()
    files = [folder / f"answer-{rank}" for rank in range(ranks)]
    processes = [forked(_called, function, arguments, (rank, ranks, port), files[rank]) for rank in range(ranks)]
    assert [end(process) for process in processes] == [0] * ranks
    return [json.loads(file.read_text()) for file in files]


def log_of(log: Path, rank: int) -> Path:
    """Return where a process prints."""
    return log.with_name(f"{log.name}-{rank}")


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens to."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _be(rank: int, ranks: int, port: int) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})


def _one(arguments: list[str], rank: int, ranks: int, port: int, log: str) -> None:
    _be(rank, ranks, port)
    _command(arguments, log)


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], place: tuple[int, int, int], to: Path) -> None:
    import torch

    torch.set_num_threads(1)
    _be(*place)
    to.write_text(json.dumps(function(*arguments)))
