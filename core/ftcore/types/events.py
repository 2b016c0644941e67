"""What observers are told. An observer is any callable that takes an event; it decides nothing.

    def observe(event: Event) -> None:
        match event:
            case EpochEnded(epoch=epoch, val=val): ...

New kinds of events may be added: an observer ignores what it does not know. What an observer raises is a warning, said
once, with its plugin and its traceback in the log, and the run goes on; with ``observers.on_error = "stop"`` it ends
the run, which is saved first. KeyboardInterrupt and SystemExit always do.
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
    """Everything is built and training begins.

    Attributes:
        folder: the run folder.
        summary: what was decided, one short text each, in the order to show them.
        tables: tables of the data and the loss.
        epochs: epochs to train.
        steps_per_epoch: optimizer steps in each.
        step: optimizer steps that were done before: 0, or where a run is resumed.
        epoch: epochs that were done before, with their evaluation.
        trainable_tables: tables of what learns and of the parameter groups.
        groups: names of the parameter groups, in the order of `StepLogged.lr`.
        task: what is learnt; not logged, nor is `val`.
        val: the samples that `BatchEvaluated.indices` are places in.
        trainable_parameters: how many numbers learn when training begins.
        total_parameters: how many the network has.
        heads: paths of the new heads.
        releases: epoch (from 1) -> names of modules and parameters that start to learn there, in order; "" is all.
        augmented: whether training samples are changed at random: by their transform, or in batches.
        rebalanced: whether rare classes or labels count for more in the loss, or are drawn more often.
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
        samples_per_second: since the epoch began.
        loss_terms: what was added to the loss, by name.
        gradient_norm: L2 norm of the whole gradient before it was clipped; None where it is not finite or not known.
        data_wait: share of the time since the epoch began in which steps waited for their images, from 0 to 1.
        skipped: of the steps in this epoch so far, those that made no update, for the gradient was not finite.
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
    """A batch of the validation split went through the network; not logged.

    Told for every batch, in the order of the split, before the `EpochEnded` whose metrics are computed from it. The
    tensors are those that the metrics are given, of all processes, and on the device: to read them is to wait for it.

    Attributes:
        indices: (N,) int64 on the CPU, places in the validation split.
        outputs: (N, K) float32, scores before softmax or sigmoid; or numbers in the targets' own unit.
        targets: (N,) int64 classes, (N, K) float32 in 0 and 1, or numbers in their own unit.
    """

    indices: Tensor
    outputs: Tensor
    targets: Tensor


@frozen
class CheckpointSaved:
    """The run can be gone on with from here, whatever happens.

    Attributes:
        path: the checkpoint.
        step: optimizer steps in the whole run so far.
        seconds: that the run waited for it.
    """

    path: Path
    step: int
    seconds: float


@frozen
class EpochEnded:
    """An epoch was trained and evaluated, and is written down; its checkpoint comes next.

    Attributes:
        epoch: from 1.
        step: optimizer steps in the whole run so far.
        train: ``loss``, the mean over the epoch, and each term that was added to it, the mean over its steps.
        val: ``loss`` and every metric.
        best: whether the monitored metric is the best so far; a value that is not finite never is.
        monitor: name of the monitored metric.
        seconds: training and evaluation of this epoch, with what was computed for it before its first step.
        samples_per_second: samples that were trained on, by `training_seconds`.
        data_wait: share of the training's time in which steps waited for their images, from 0 to 1.
        training_seconds: of `seconds`, all but those of the evaluation.
        initial_share: how much of the network that was evaluated is still that of an average's first update, from 0 to
            1; 0 where no average was evaluated.
        updates: optimizer steps of this epoch that changed the network.
        skipped: those that did not, for the gradient was not finite; in float16, also with its loss scaled up.
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


@frozen
class RunStopped:
    """Training was ended by a signal, and can be resumed.

    Attributes:
        message: which signal, and where.
    """

    message: str


Event = RunStarted | StepLogged | BatchEvaluated | EpochEnded | CheckpointSaved | RunEnded | RunFailed | RunStopped

Observer = Callable[[Event], None]
