"""The processes of a run: which this is, how many there are, and what they tell each other."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable


HEARTBEAT_S = 1.0
"""Seconds between two signs of life."""

MAX_MISSED_HEARTBEATS = 8
"""Signs of life that another process may miss."""

EXIT_GRACE_S = 3.0
"""Seconds that a process has to leave by itself when another has failed."""

_FAILED = "failed"

_FOLDER = "ftcore/folder"

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PeerFailed(Exception):  # noqa: N818 - no error of this process
    """Another process has failed, and says why.

    Attributes:
        code: exit code of that one.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"another process has failed, with exit code {code}")
        self.code = code


@define(eq=False)
class ProcessInfo:
    """The processes of a run.

    Attributes:
        rank: number of this one, from 0.
        world_size: how many there are.
        local_rank: number of this one on its machine, from 0.
        stopping: whether this process has left the others.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _attempt: str = ""
    _base: Any = None
    stopping: threading.Event = field(factory=threading.Event, repr=False)

    @property
    def started(self) -> bool:
        """Whether somebody started this process as one of several, or of one."""
        return self._base is not None

    @property
    def store(self) -> Any:
        """The `torch.distributed.Store` of this attempt, for a plugin that makes a process group of the `started`."""
        from torch.distributed.distributed_c10d import PrefixStore

        return PrefixStore(f"ftcore/{self._attempt}", self._base)

    def with_store(self, base: Any) -> ProcessInfo:
        """Return the same by another connection to the store."""
        return evolve(self, base=base)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def broadcast(self, name: str, make: Callable[[], str]) -> str:
        """Return what the first process makes, in all; the others wait for it."""
        if self.world_size == 1:
            return make()
        if self.is_main:
            value = make()
            self.store.set(name, value)
            return value
        return str(self.store.get(name).decode())

    def gather(self, name: str, value: str) -> list[str]:
        """Return the values of all processes, in the first; nothing in the others, which do not wait."""
        if self.world_size == 1:
            return [value]
        self.store.set(f"{name}/{self.rank}", value)
        return [str(self.store.get(f"{name}/{r}").decode()) for r in range(self.world_size)] if self.is_main else []

    def publish_run_folder(self, folder: str) -> None:
        """Note the run folder where processes that are started again find it."""
        if self.started and self.is_main:
            self._base.set(_FOLDER, folder)

    def previous_run_folder(self) -> str:
        """Return the run folder of an attempt before this one, in all processes; empty if there was none."""

        def look() -> str:
            return str(self._base.get(_FOLDER).decode()) if self._base.check([_FOLDER]) else ""

        return self.broadcast("begun", look) if self.started else ""

    def claim_error_report(self, code: int, wait: float = 0.0, why: str = "") -> bool:
        """Whether this process may say why it failed: the others then stay silent, whatever it does to them.

        Args:
            code: its exit code.
            wait: seconds to leave another one the first word.
            why: what it will say, for a process that may fail in two ways.
        """
        if not self.started:
            return True
        mine, deadline = json.dumps([self.rank, code, why], allow_nan=False), time.monotonic() + wait
        try:
            while time.monotonic() < deadline and not self.store.check([_FAILED]):
                time.sleep(0.05)
            return bool(self.store.compare_set(_FAILED, "", mine).decode() == mine)
        except RuntimeError:  # the first process held the store, and is gone
            return self.rank == 1

    def peer_exit_code(self) -> int:
        """Return the exit code of the process that failed first."""
        try:
            return int(json.loads(self.store.get(_FAILED))[1])
        except RuntimeError:
            return 1

    def mark_done(self, patience: float) -> None:
        """Say that this process is done; the first waits so many seconds for the others if it holds their store."""
        with suppress(RuntimeError):
            self.store.set(f"done/{self.rank}", "")
            deadline, done = time.monotonic() + patience, [f"done/{rank}" for rank in range(self.world_size)]
            hosts = self.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            while hosts and time.monotonic() < deadline and not self.store.check(done):
                time.sleep(0.02)


def rank_and_world_size() -> tuple[int, int] | None:
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
            f"RANK = {os.environ['RANK']!r} is set, but {', '.join(missing)} is not; start with torchrun or ftcore "
            "run --nproc, or unset RANK"
        )
    try:
        rank, world_size = (int(os.environ[name]) for name in _NEEDED[:2])
    except ValueError as error:
        raise UserError(f"RANK and WORLD_SIZE of the environment must be integers: {error}") from None
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
