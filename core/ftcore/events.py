"""What observers are told. An observer is any callable that takes an event; it decides nothing.

    def observe(event: Event) -> None:
        match event:
            case EpochEnded(epoch=epoch, val=val): ...

New kinds of events may be added: an observer ignores what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from pathlib import Path

    from .parts import Metrics, Table


@frozen
class RunStarted:
    """Everything is built and training begins.

    Attributes:
        folder: the run folder.
        facts: what was decided, one short text each, in the order to show them.
        tables: tables of the data and the loss.
        epochs: epochs to train.
        steps_per_epoch: optimizer steps in each.
    """

    folder: Path
    facts: Mapping[str, str]
    tables: tuple[Table, ...]
    epochs: int
    steps_per_epoch: int


@frozen
class StepLogged:
    """Every `train.log_every` steps: the only time that the host waits for the device.

    Attributes:
        epoch: from 1.
        step: optimizer steps in this epoch so far.
        loss: of this step, in the loss's own unit.
        lr: learning rate of each parameter group, as used in this step.
        samples_per_second: since the epoch began.
    """

    epoch: int
    step: int
    loss: float
    lr: tuple[float, ...]
    samples_per_second: float


@frozen
class EpochEnded:
    """An epoch was trained, evaluated and saved.

    Attributes:
        epoch: from 1.
        step: optimizer steps in the whole run so far.
        train: ``loss``, the mean over the epoch.
        val: ``loss`` and every metric.
        best: whether the monitored metric is the best so far.
        monitor: name of the monitored metric.
        seconds: training and evaluation of this epoch.
        samples_per_second: of training.
    """

    epoch: int
    step: int
    train: Metrics
    val: Metrics
    best: bool
    monitor: str
    seconds: float
    samples_per_second: float


@frozen
class RunEnded:
    """Training is over.

    Attributes:
        report: the object that ``ftcore run --json`` prints.
    """

    report: Mapping[str, Any]


@frozen
class RunFailed:
    """Training stopped with an error.

    Attributes:
        error: its text.
    """

    error: str


Event = RunStarted | StepLogged | EpochEnded | RunEnded | RunFailed
Observer = Callable[[Event], None]
