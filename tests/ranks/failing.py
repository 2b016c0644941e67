"""A plugin with which one process of several fails in a step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from attrs import evolve, frozen

from ftcore import DataError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor

    from ftcore import Context, Loss


@frozen
class FailingConfig:
    """Which process, in which step, and what."""

    rank: int = 1
    step: int = 5
    how: str = "raise"
    once: str = ""


class Failing:
    """Goes round the loss of a run."""

    Config = FailingConfig

    def __init__(self, config: FailingConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_loss(self, ctx: Context) -> Generator[None, Loss, Loss]:
        """Fail when it is time."""
        loss = yield
        config, calls = self.config, iter(range(1, 10**6))
        rank, step, once, fault = config.rank, config.step, config.once, FAULTS[config.how]

        def function(outputs: Tensor, targets: Tensor) -> Tensor:
            due = outputs.requires_grad and ctx.ranks.rank == rank and next(calls) == step
            if due and not (once and Path(once).exists()):
                Path(once or os.devnull).touch()
                return fault(loss.function(outputs, targets))
            return loss.function(outputs, targets)

        return evolve(loss, function=function)


def signalled(how: signal.Signals) -> Callable[[Tensor], Tensor]:
    def fault(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), how)
        return loss

    return fault


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def fault(_loss: Tensor) -> Tensor:
        raise error

    return fault


def hanging(loss: Tensor) -> Tensor:
    time.sleep(10**6)
    return loss


def warning(loss: Tensor) -> Tensor:
    structlog.get_logger().warning("the disk is slow")
    return loss


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "raise": raising(ZeroDivisionError("a mistake in a plugin")),
    "data": raising(DataError("picture.jpg cannot be read")),
    "memory": raising(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
    "nan": lambda loss: loss * float("nan"),
    "kill": signalled(signal.SIGKILL),
    "stop": signalled(signal.SIGSTOP),
    "term": signalled(signal.SIGTERM),
    "hang": hanging,
    "warn": warning,
}
