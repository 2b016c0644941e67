from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import settings


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


settings.register_profile("ftcore", deadline=None)  # a test counts; how long it takes is the machine's business
settings.load_profile("ftcore")
