from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session", autouse=True)
def _trusts_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The list of the code that the user of this machine trusts is his."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks as small as these are slower on two threads, and much slower where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """The jobs that a script runs beside it ignore SIGINT, those of nohup SIGHUP; a process inherits that."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for disks, sockets and pauses, and a core should not."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that run one at a time first, behind each other: so one worker has them all, and none waits."""
    items.sort(key=lambda item: item.get_closest_marker("machine") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let no two tests measure the machine at a time; the limit of time of a test begins when it does."""
    if item.get_closest_marker("machine") is None:
        return (yield)
    workers: pytest.TempPathFactory = item.config._tmp_path_factory  # type: ignore[attr-defined]
    with (workers.getbasetemp().parent / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that the test left behind has the file open, too


settings.register_profile("ftcore", deadline=None)  # a test counts; how long it takes is the machine's business
settings.load_profile("ftcore")
