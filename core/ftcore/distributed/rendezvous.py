"""Several processes that train one network: which of them this is, and how they tell each other what happens.

Whoever starts them says so in the environment: torchrun, ``ftcore run --nproc``, Kubernetes' PyTorchJob by ``RANK``,
``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``; Slurm's srun by its own variables. Gradients go through the process
group that a `wrap_devices` plugin makes; what is here goes through a key-value store beside it, which works before
there is a group, and when it hangs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ftcore.errors import UserError
from ftcore.system.signals import StoppedBySignal

from .ranks import (
    _FAILED,
    EXIT_GRACE_S,
    HEARTBEAT_S,
    MAX_MISSED_HEARTBEATS,
    PeerFailed,
    ProcessInfo,
    rank_and_world_size,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rank_logging import RankWarningForwarder


@contextmanager
def process_session() -> Iterator[ProcessInfo]:
    """Be one of the processes that were started together, if any were, from here to the end of a run.

    Raises:
        PeerFailed: another process has failed and says why; whatever this one did then.
        UserError: what is raised within, with the rank before its text; or the connection to the others is lost.
    """
    place = rank_and_world_size()
    if place is None:
        yield ProcessInfo()
        return
    from .rank_logging import forward_warnings_to_rank_zero

    ranks = _rendezvous(*place)
    with forward_warnings_to_rank_zero(ranks) as heard:
        session = ranks.with_store(_connect(*place))
        watch = threading.Thread(target=_watch, args=(session, heard), name="ftcore-ranks", daemon=True)
        watch.start()
        try:
            yield ranks
            _leave_group()
            ranks.mark_done(60)
            ranks.stopping.set()
            watch.join()
            heard.listen(ranks.store)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others are told
            said = _publish_failure(error, ranks)
            ranks.stopping.set()
            ranks.mark_done(HEARTBEAT_S + EXIT_GRACE_S + 1)
            raise said from None
        finally:
            ranks.stopping.set()


def _publish_failure(error: BaseException, ranks: ProcessInfo) -> BaseException:
    """Tell the others that this process fails; return what it is to raise."""
    if isinstance(error, StoppedBySignal | PeerFailed):
        return error if ranks.is_main or isinstance(error, PeerFailed) else PeerFailed(error.code)
    if lost := is_connection_error(error):
        first = str(error).partition("\n")[0][:300]
        error = UserError(f"lost the connection to another process, which has died or cannot be reached\n{first}")
    mendable = isinstance(error, UserError)
    # A mistake that all make is the first one's to tell; who only lost the connection leaves time to whoever broke it.
    if not ranks.claim_error_report(2 if mendable else 1, wait=EXIT_GRACE_S if lost else 0.5 * (not ranks.is_main)):
        return PeerFailed(ranks.peer_exit_code())
    if isinstance(error, UserError) and not ranks.is_main:
        return UserError(f"rank {ranks.rank}: {error}", faulty_plugins=error.faulty_plugins)
    return error


def is_connection_error(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    )


def _leave_group() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _connect(rank: int, world_size: int) -> Any:
    """Return a connection to the store that the environment names; a new one each time, for two threads need two."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://", rank, world_size)))[0]


def _rendezvous(rank: int, world_size: int) -> ProcessInfo:
    """Find the other processes of this attempt: the store may still hold what those of an earlier one have said.

    The first proposes a new name for the attempt, the others answer with a word of their own, and what the first then
    repeats was heard by it, and so is no answer of an earlier attempt.
    """
    base, word = _connect(rank, world_size), os.urandom(16).hex()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if rank == 0:
        base.set("ftcore/attempt", word)
        words = [_answer(base, other, word) for other in range(1, world_size)]
        base.set(f"ftcore/{word}", json.dumps(words, allow_nan=False))
        return ProcessInfo(rank, world_size, local, word, base)
    while True:
        attempt = base.get("ftcore/attempt").decode()
        base.set(f"ftcore/answer/{rank}", f"{attempt} {word}")
        if base.check([f"ftcore/{attempt}"]) and word in json.loads(base.get(f"ftcore/{attempt}")):
            return ProcessInfo(rank, world_size, local, attempt, base)
        time.sleep(0.05)


def _answer(base: Any, other: int, attempt: str) -> str:
    """Wait for what another process says to an attempt."""
    while True:
        heard, _, word = base.get(f"ftcore/answer/{other}").decode().partition(" ")
        if heard == attempt:
            return str(word)
        time.sleep(0.05)


def _watch(ranks: ProcessInfo, heard: RankWarningForwarder) -> None:
    """Give signs of life, look for those of the next process, and end this one if another fails and it hangs.

    By a connection of its own: the main thread's may wait for an answer for as long as it likes.
    """
    store, neighbour, seen, missed = ranks.store, (ranks.rank + 1) % ranks.world_size, b"", 0
    try:
        store.set(f"process/{ranks.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        while not ranks.stopping.wait(HEARTBEAT_S):
            store.add(f"alive/{ranks.rank}", 1)
            heard.listen(store)
            if store.check([_FAILED]):
                _end(ranks, ranks.peer_exit_code())
            key, done = f"alive/{neighbour}", f"done/{neighbour}"
            found = store.get(key) if store.check([key]) else b""
            missed = missed + 1 if found == seen and not store.check([done]) else 0
            seen = found
            if missed > MAX_MISSED_HEARTBEATS and ranks.claim_error_report(2, why="silent"):
                _report_unresponsive(neighbour, store.get(f"process/{neighbour}").decode())
                os._exit(2)
    except RuntimeError as error:  # the store is gone, and with it the process that holds it
        if not ranks.stopping.wait(EXIT_GRACE_S) and ranks.rank == 1:
            _print_error(f"rank {ranks.rank}: rank 0 is gone: {error}")
        _end(ranks, 2)


def _report_unresponsive(rank: int, process: str) -> None:
    """Say that another process is silent; let it go on, if it is near, to find that it has failed: launchers wait."""
    _print_error(f"rank {rank} ({process}) does not respond: it is stopped or cannot be reached")
    pid, _, host = process.partition(" on ")
    if host == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(int(pid.removeprefix("process ")), signal.SIGCONT)


def _end(ranks: ProcessInfo, code: int) -> None:
    """End this process, unless it comes to its end by itself."""
    if not ranks.stopping.wait(EXIT_GRACE_S):
        ranks.mark_done(0.01)
        os._exit(code)


def _print_error(text: str) -> None:
    print(f"ftcore: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the main thread hangs
