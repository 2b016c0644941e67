"""Events that observers receive. An observer is any callable that takes an event; it cannot change the run.

    def observe(event: Event) -> None:
        match event:
            case EpochEnded(epoch=epoch, val=val): ...

New kinds of events may be added: an observer must ignore unknown ones. If an observer raises an exception, one warning
names its plugin, the traceback is in the log, and the run continues; with ``observers.on_error = "stop"``, a
checkpoint is saved and the run stops. KeyboardInterrupt and SystemExit always stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .data import SampleDataset
    from .table import Table
    from .task import Task


Metrics = Mapping[str, Any]
"""Metric name -> a float, or nested lists of numbers (a confusion matrix)."""


@frozen
class RunStarted:
    """Everything is built and training starts.

    Attributes:
        folder: the run folder.
        summary: settings of the run, one short text each, in display order.
        tables: tables of the data and the loss.
        epochs: epochs to train.
        steps_per_epoch: optimizer steps in each.
        step: optimizer steps already done: 0 unless the run is resumed.
        epoch: epochs already done, including their evaluation.
        trainable_tables: tables of the trainable parameters and the parameter groups.
        groups: names of the parameter groups, in the order of `StepLogged.lr`.
        task: the task; not logged, nor is `val`.
        val: the samples that `BatchEvaluated.indices` refer to.
        trainable_parameters: number of trainable parameters when training starts.
        total_parameters: number of parameters of the network.
        heads: paths of the new heads.
        releases: epoch (from 1) -> names of modules and parameters that are unfrozen there, in order; "" is all.
        augmented: whether training samples are changed at random: by their transform, or in batches.
        rebalanced: whether rare classes or labels are weighted more in the loss or sampled more often.
        chance_level: see `ftcore.Loss`.
        reads_text: whether the samples are texts.
    """

    folder: Path
    summary: Mapping[str, str]
    tables: tuple[Table, ...]
    epochs: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    trainable_tables: tuple[Table, ...] = ()
    groups: tuple[str, ...] = ()
    task: Task | None = field(default=None, repr=False)
    val: SampleDataset | None = field(default=None, repr=False)
    trainable_parameters: int = 0
    total_parameters: int = 0
    heads: tuple[str, ...] = ()
    releases: Mapping[int, tuple[str, ...]] = field(factory=dict)
    augmented: bool = False
    rebalanced: bool = False
    chance_level: float | None = None
    reads_text: bool = False


@frozen
class StepLogged:
    """Every `train.log_every` steps, and after the last step of an epoch.

    Attributes:
        epoch: from 1.
        step: optimizer steps in this epoch so far.
        loss: of this step, in the loss's own unit.
        lr: learning rate of each parameter group, as used in this step.
        samples_per_second: since the start of the epoch.
        loss_terms: what was added to the loss, by name.
        gradient_norm: L2 norm of the gradient before clipping; None if not finite or unknown.
        data_wait: fraction of the time since the start of the epoch in which steps waited for their images, from 0
            to 1.
        skipped: number of steps in this epoch so far without an update, because the gradient was not finite.
    """

    epoch: int
    step: int
    loss: float
    lr: tuple[float, ...]
    samples_per_second: float
    loss_terms: Mapping[str, float] = field(factory=dict)
    gradient_norm: float | None = None
    data_wait: float = 0.0
    skipped: int = 0


@frozen(eq=False)
class BatchEvaluated:
    """A batch of the validation split was evaluated; not logged.

    Sent for every batch, in the order of the split, before the `EpochEnded` with their metrics. The tensors are those
    passed to the metrics, of all processes, on the device: reading them synchronises with it.

    Attributes:
        indices: (N,) int64 on the CPU, indices in the validation split.
        outputs: (N, K) float32, scores before softmax or sigmoid; or numbers in the unit of the targets.
        targets: (N,) int64 classes, (N, K) float32 in 0 and 1, or numbers in their own unit.
    """

    indices: Tensor
    outputs: Tensor
    targets: Tensor


@frozen
class CheckpointSaved:
    """A complete checkpoint was written; the run can be resumed from it.

    Attributes:
        path: the checkpoint.
        step: optimizer steps in the run so far.
        seconds: time that the run waited for it.
    """

    path: Path
    step: int
    seconds: float


@frozen
class EpochEnded:
    """An epoch was trained, evaluated and recorded; its checkpoint is written next.

    Attributes:
        epoch: from 1.
        step: optimizer steps in the run so far.
        train: ``loss``, the mean over the epoch, and each term that was added to it, the mean over its steps.
        val: ``loss`` and every metric.
        best: whether the monitored metric is the best so far; a value that is not finite never is.
        monitor: name of the monitored metric.
        seconds: training and evaluation of this epoch, including feature caching before its first step.
        samples_per_second: training samples per `training_seconds`.
        data_wait: fraction of the training time in which steps waited for their images, from 0 to 1.
        training_seconds: `seconds` without the evaluation.
        initial_share: fraction of the evaluated average that is still from its first update, from 0 to 1; 0 if no
            average was evaluated.
        updates: optimizer steps of this epoch that changed the network.
        skipped: skipped steps, because the gradient was not finite or, in float16, the scaled gradient overflowed.
    """

    epoch: int
    step: int
    train: Metrics
    val: Metrics
    best: bool
    monitor: str
    seconds: float
    samples_per_second: float
    data_wait: float = 0.0
    training_seconds: float = 0.0
    initial_share: float = 0.0
    updates: int = 0
    skipped: int = 0


@frozen
class RunEnded:
    """Training finished.

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


@frozen
class RunStopped:
    """Training was ended by a signal, and can be resumed.

    Attributes:
        message: the signal, and the step at which it stopped.
    """

    message: str


Event = RunStarted | StepLogged | BatchEvaluated | EpochEnded | CheckpointSaved | RunEnded | RunFailed | RunStopped

Observer = Callable[[Event], None]
