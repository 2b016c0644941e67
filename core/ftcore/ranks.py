"""Several processes that train one network: which of them this is, and how they tell each other what happens.

Whoever starts them says so in the environment: torchrun, ``ftcore run --nproc``, Kubernetes' PyTorchJob by ``RANK``,
``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``; Slurm's srun by its own variables. Gradients go through the process
group that a `wrap_devices` plugin makes; what is here goes through a key-value store beside it, which works before
there is a group, and when it hangs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from .errors import UserError
from .signals import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .log import Heard

BEAT = 1.0
"""Seconds between two signs of life."""

PATIENCE = 8
"""Signs of life that another process may miss."""

GRACE = 3.0
"""Seconds that a process has to leave by itself when another has failed."""

_FAILED = "failed"
_FOLDER = "ftcore/folder"
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Elsewhere(Exception):  # noqa: N818 - no error of this process
    """Another process has failed, and says why.

    Attributes:
        code: exit code of that one.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"another process has failed, with exit code {code}")
        self.code = code


@define(eq=False)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: number of this one, from 0.
        world_size: how many there are.
        local_rank: number of this one on its machine, from 0.
        over: whether this process has left the others.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _attempt: str = ""
    _base: Any = None
    over: threading.Event = field(factory=threading.Event, repr=False)

    @property
    def started(self) -> bool:
        """Whether somebody started this process as one of several, or of one."""
        return self._base is not None

    @property
    def store(self) -> Any:
        """The `torch.distributed.Store` of this attempt, for a plugin that makes a process group of the `started`."""
        from torch.distributed.distributed_c10d import PrefixStore

        return PrefixStore(f"ftcore/{self._attempt}", self._base)

    def through(self, base: Any) -> Ranks:
        """Return the same by another connection to the store."""
        return evolve(self, base=base)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def told(self, name: str, make: Callable[[], str]) -> str:
        """Return what the first process makes, in all; the others wait for it."""
        if self.world_size == 1:
            return make()
        if self.leads:
            value = make()
            self.store.set(name, value)
            return value
        return str(self.store.get(name).decode())

    def all_told(self, name: str, value: str) -> list[str]:
        """Return the values of all processes, in the first; nothing in the others, which do not wait."""
        if self.world_size == 1:
            return [value]
        self.store.set(f"{name}/{self.rank}", value)
        return [str(self.store.get(f"{name}/{r}").decode()) for r in range(self.world_size)] if self.leads else []

    def remember(self, folder: str) -> None:
        """Note the run folder where processes that are started again find it."""
        if self.started and self.leads:
            self._base.set(_FOLDER, folder)

    def remembered(self) -> str:
        """Return the run folder of an attempt before this one, in all processes; empty if there was none."""

        def look() -> str:
            return str(self._base.get(_FOLDER).decode()) if self._base.check([_FOLDER]) else ""

        return self.told("begun", look) if self.started else ""

    def claim(self, code: int, wait: float = 0.0, why: str = "") -> bool:
        """Whether this process may say why it failed: the others then stay silent, whatever it does to them.

        Args:
            code: its exit code.
            wait: seconds to leave another one the first word.
            why: what it will say, for a process that may fail in two ways.
        """
        if not self.started:
            return True
        mine, deadline = json.dumps([self.rank, code, why]), time.monotonic() + wait
        try:
            while time.monotonic() < deadline and not self.store.check([_FAILED]):
                time.sleep(0.05)
            return bool(self.store.compare_set(_FAILED, "", mine).decode() == mine)
        except RuntimeError:  # the first process held the store, and is gone
            return self.rank == 1

    def failure(self) -> int:
        """Return the exit code of the process that failed first."""
        try:
            return int(json.loads(self.store.get(_FAILED))[1])
        except RuntimeError:
            return 1

    def leave(self, patience: float) -> None:
        """Say that this process is done; the first waits so many seconds for the others if it holds their store."""
        with suppress(RuntimeError):
            self.store.set(f"done/{self.rank}", "")
            deadline, done = time.monotonic() + patience, [f"done/{rank}" for rank in range(self.world_size)]
            hosts = self.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            while hosts and time.monotonic() < deadline and not self.store.check(done):
                time.sleep(0.02)


def environment() -> tuple[int, int] | None:
    """Return rank and number of processes, as the environment says; None if it says nothing.

    Raises:
        UserError: a part is missing, or no number.
    """
    _from_slurm()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"RANK = {os.environ['RANK']!r} is set, and {', '.join(missing)} is not; start with torchrun or "
            "ftcore run --nproc, or take RANK out of the environment"
        )
    try:
        rank, world_size = (int(os.environ[name]) for name in _NEEDED[:2])
    except ValueError as error:
        raise UserError(f"RANK and WORLD_SIZE of the environment must be whole numbers: {error}") from None
    return rank, world_size


def _from_slurm() -> None:
    """Say in torch's words what srun says: the batch script itself has no such step."""
    slurm = os.environ
    if "RANK" in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    nodes = slurm.get("SLURM_STEP_NODELIST", "localhost")
    job = int(re.sub(r"\D", "", slurm.get("SLURM_JOB_ID", "")) or 0)
    slurm["RANK"], slurm["WORLD_SIZE"] = slurm["SLURM_PROCID"], slurm["SLURM_STEP_NUM_TASKS"]
    slurm["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
    slurm.setdefault("MASTER_ADDR", first_node(nodes))
    slurm.setdefault("MASTER_PORT", str(20000 + job % 20000))


def first_node(nodes: str) -> str:
    """Return the first of Slurm's list of hosts: ``gpu[007-009,12],login`` -> ``gpu007``."""
    matched = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in matched.groups()) if matched else nodes


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one of the processes that were started together, if any were, from here to the end of a run.

    Raises:
        Elsewhere: another process has failed and says why; whatever this one did then.
        UserError: what is raised within, with the rank before its text; or the connection to the others is lost.
    """
    place = environment()
    if place is None:
        yield Ranks()
        return
    from .log import shared

    ranks = _meet(*place)
    with shared(ranks) as heard:
        beside = ranks.through(_connect(*place))
        watch = threading.Thread(target=_watch, args=(beside, heard), name="ftcore-ranks", daemon=True)
        watch.start()
        try:
            yield ranks
            _leave_group()
            ranks.leave(60)
            ranks.over.set()
            watch.join()
            heard.listen(ranks.store)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others are told
            said = _said(error, ranks)
            ranks.over.set()
            ranks.leave(BEAT + GRACE + 1)
            raise said from None
        finally:
            ranks.over.set()


def _said(error: BaseException, ranks: Ranks) -> BaseException:
    """Tell the others that this process fails; return what it is to raise."""
    if isinstance(error, Stopped | Elsewhere):
        return error if ranks.leads or isinstance(error, Elsewhere) else Elsewhere(error.code)
    if lost := is_lost(error):
        first = str(error).partition("\n")[0][:300]
        error = UserError(f"the connection to another process is lost: it has died, or cannot be reached\n{first}")
    mendable = isinstance(error, UserError)
    # A mistake that all make is the first one's to tell; who only lost the connection leaves time to whoever broke it.
    if not ranks.claim(2 if mendable else 1, wait=GRACE if lost else 0.5 * (not ranks.leads)):
        return Elsewhere(ranks.failure())
    return UserError(f"rank {ranks.rank}: {error}") if mendable and not ranks.leads else error


def is_lost(error: BaseException) -> bool:
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


def _meet(rank: int, world_size: int) -> Ranks:
    """Find the other processes of this attempt: the store may still hold what those of an earlier one have said.

    The first proposes a new name for the attempt, the others answer with a word of their own, and what the first then
    repeats was heard by it, and so is no answer of an earlier attempt.
    """
    base, word = _connect(rank, world_size), os.urandom(16).hex()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if rank == 0:
        base.set("ftcore/attempt", word)
        words = [_answer(base, other, word) for other in range(1, world_size)]
        base.set(f"ftcore/{word}", json.dumps(words))
        return Ranks(rank, world_size, local, word, base)
    while True:
        attempt = base.get("ftcore/attempt").decode()
        base.set(f"ftcore/answer/{rank}", f"{attempt} {word}")
        if base.check([f"ftcore/{attempt}"]) and word in json.loads(base.get(f"ftcore/{attempt}")):
            return Ranks(rank, world_size, local, attempt, base)
        time.sleep(0.05)


def _answer(base: Any, other: int, attempt: str) -> str:
    """Wait for what another process says to an attempt."""
    while True:
        heard, _, word = base.get(f"ftcore/answer/{other}").decode().partition(" ")
        if heard == attempt:
            return str(word)
        time.sleep(0.05)


def _watch(ranks: Ranks, heard: Heard) -> None:
    """Give signs of life, look for those of the next process, and end this one if another fails and it hangs.

    By a connection of its own: the main thread's may wait for an answer for as long as it likes.
    """
    store, neighbour, seen, missed = ranks.store, (ranks.rank + 1) % ranks.world_size, b"", 0
    try:
        store.set(f"process/{ranks.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        while not ranks.over.wait(BEAT):
            store.add(f"alive/{ranks.rank}", 1)
            heard.listen(store)
            if store.check([_FAILED]):
                _end(ranks, ranks.failure())
            key, done = f"alive/{neighbour}", f"done/{neighbour}"
            found = store.get(key) if store.check([key]) else b""
            missed = missed + 1 if found == seen and not store.check([done]) else 0
            seen = found
            if missed > PATIENCE and ranks.claim(2, why="silent"):
                _give_up(neighbour, store.get(f"process/{neighbour}").decode())
                os._exit(2)
    except RuntimeError as error:  # the store is gone, and with it the process that holds it
        if not ranks.over.wait(GRACE) and ranks.rank == 1:
            _speak(f"rank {ranks.rank}: the first process is gone: {error}")
        _end(ranks, 2)


def _give_up(rank: int, process: str) -> None:
    """Say that another process is silent; let it go on, if it is near, to find that it has failed: launchers wait."""
    _speak(f"rank {rank} ({process}) gives no sign of life: it was stopped, or cannot be reached")
    pid, _, host = process.partition(" on ")
    if host == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(int(pid.removeprefix("process ")), signal.SIGCONT)


def _end(ranks: Ranks, code: int) -> None:
    """End this process, unless it comes to its end by itself."""
    if not ranks.over.wait(GRACE):
        ranks.leave(0.01)
        os._exit(code)


def _speak(text: str) -> None:
    print(f"ftcore: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the main thread hangs
