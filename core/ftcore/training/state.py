"""What a run holds while it goes: `TrainingParts`, made once, and `Progress`, the only object that changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field, frozen

from ftcore.data.workers import end_workers
from ftcore.model import freezing
from ftcore.types.data import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from ftcore.config.schema import TrainConfig
    from ftcore.data.loader import Batch, EpochLoader
    from ftcore.types.data import BatchImageTransform, BatchTransform
    from ftcore.types.distributed import Placement
    from ftcore.types.events import Event, Observer
    from ftcore.types.model import FreezePlan
    from ftcore.types.task import Task
    from ftcore.types.training import Loss, Moment, Precision, Regularizer, Schedule, Step, WeightAverage


class Backward(Protocol):
    """Adds the gradient of a window's mean loss, divided by `divisor`, to the parameters; returns its terms."""

    def __call__(
        self, parts: TrainingParts, progress: Progress, window: Sequence[Batch], divisor: Any, /
    ) -> dict[str, Tensor]:
        """Return name -> this process's share of the loss and of each term, () each."""
        ...


class PartsByEpoch(Protocol):
    """Trains some epochs with other parts, such as a head alone on what a frozen network computed once."""

    @property
    def note(self) -> str:
        """What is done, for the user."""
        ...

    def parts_for_epoch(self, parts: TrainingParts, epoch: int, on_boundary: Callable[[], None]) -> TrainingParts:
        """Return the parts of an epoch, from 0; calls `on_boundary` where a run can be left meanwhile."""
        ...


@frozen(eq=False)
class TrainingData:
    """What is learnt from what.

    Attributes:
        train: batches to learn from.
        val: batches to measure on.
        test: batches to measure on at the end, if there are any.
        task: what is learnt.
        batch_transforms: change each training batch on the device, in turn.
    """

    train: EpochLoader
    val: EpochLoader
    task: Task
    batch_transforms: Sequence[BatchTransform | BatchImageTransform]
    test: EpochLoader | None = None

    def close(self) -> None:
        """End the loader processes."""
        for split in filter(None, (self.train, self.val, self.test)):
            end_workers(split.loader)


@frozen(eq=False)
class Objective:
    """What the gradient is of, and how it is computed.

    Attributes:
        loss: a weighted mean over a batch.
        aux_loss_weights: factor on the loss of each output but the first, where the network gives several in train
            mode.
        step: what is done beside the loss, or in another way.
        regularizers: penalties on the parameters.
        backward: adds the gradient of a window to the parameters.
    """

    loss: Loss
    aux_loss_weights: tuple[float, ...]
    step: Step
    regularizers: Sequence[Regularizer]
    backward: Backward


@frozen(eq=False)
class Optimization:
    """What is done with the gradient.

    Attributes:
        optimizer: over all parameters that ever learn.
        schedule: of the learning rate.
        average: a second network that is evaluated and saved instead, or None.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: WeightAverage | None


@frozen(eq=False)
class EvaluationParts:
    """What is measured after an epoch.

    Attributes:
        metrics: by name.
        monitor: name of the metric, or ``loss``, that decides which epoch is best.
    """

    metrics: Mapping[str, Any]
    monitor: str


@frozen(eq=False)
class TrainingParts:
    """Everything that the loop needs; made once, by `assemble`.

    Attributes:
        data: what is learnt from what.
        placement: device and wrapped network.
        precision: autocast and gradient scaler.
        plan: what is frozen, and when it is released.
        heads: paths of the new heads.
        objective: what the gradient is of.
        optimization: what is done with it.
        evaluation: what is measured.
        stateful: name -> plugin, observer or loss that has a `state_dict` of its own, which checkpoints hold.
        observers: are told what happens.
        train_config: the ``[train]`` section.
        listeners: are told where the run is; see `ftcore.Moment`.
        frozen_features: what of the network is computed once, or None.
        to_trained_module: network -> what batches go through: itself, or its head where the loaders give what that
            sees.
    """

    data: TrainingData
    placement: Placement
    precision: Precision
    plan: FreezePlan
    heads: tuple[str, ...]
    objective: Objective
    optimization: Optimization
    evaluation: EvaluationParts
    stateful: Mapping[str, Any]
    observers: Sequence[Observer]
    train_config: TrainConfig
    listeners: tuple[Callable[[Moment], None], ...] = ()
    frozen_features: PartsByEpoch | None = None
    to_trained_module: Callable[[nn.Module], nn.Module] = identity

    @property
    def network(self) -> nn.Module:
        """The network without its wrapper."""
        return self.placement.unwrap(self.placement.model)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self.data.train) / self.train_config.accumulate)

    @property
    def higher_is_better(self) -> bool:
        """Which way the monitored metric should go."""
        return higher_is_better(self.evaluation.monitor, self.evaluation.metrics)

    def for_epoch(self, epoch: int, on_boundary: Callable[[], None] = lambda: None) -> TrainingParts:
        """Return the parts with which an epoch (from 0) is trained and evaluated."""
        return self.frozen_features.parts_for_epoch(self, epoch, on_boundary) if self.frozen_features else self

    def average_at(self, epoch: int) -> WeightAverage | None:
        """Return the average that stands for the network after an epoch (from 0), if one does by then."""
        return (
            self.optimization.average
            if self.optimization.average and epoch >= self.optimization.average.start
            else None
        )

    def model_at(self, epoch: int) -> nn.Module:
        """Return the network, without its wrapper, that is evaluated and saved after an epoch (from 0)."""
        average = self.average_at(epoch)
        return average.network if average else self.network

    def frozen_at(self, epoch: int) -> dict[str, Tensor]:
        """What must not change in an epoch (from 0), by name."""
        return freezing.frozen_tensors(self.network, self.plan, epoch)

    def notify(self, event: Event) -> None:
        """Tell every observer."""
        for observe in self.observers:
            observe(event)


def higher_is_better(monitor: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a higher value of a metric, or of ``loss``, is better."""
    return monitor != "loss" and bool(metrics[monitor].higher_is_better)


@define
class EpochProgress:
    """What has been done of the epoch that goes.

    Attributes:
        step: optimizer steps.
        skipped: of those, the ones that made no update; see `Progress.updates`.
        samples: trained on, repeats counted.
        seconds: in training, and in what was computed for it before the first step.
        trained: whether the training of this epoch is over; its evaluation may be not.
        totals: name -> (sum, what it is divided by), of the loss and of what was added to it, on the device.
        last_grad_norm: () float32 on the device, of the last step's gradient before it was clipped; not saved with a
            run.
        data_wait_s: seconds in which steps waited for data, since the run began or went on; likewise.
    """

    step: int = 0
    skipped: int = 0
    samples: int = 0
    seconds: float = 0.0
    trained: bool = False
    totals: dict[str, tuple[Any, Any]] = field(factory=dict)
    last_grad_norm: Any = field(default=None, init=False)
    data_wait_s: float = field(default=0.0, init=False)

    def add(self, terms: Mapping[str, Tensor], divisor: Any) -> None:
        """Add the terms of a step, () each; none for a step that was not made."""
        for name, term in terms.items():
            weight = divisor if name == "loss" else 1
            if name not in self.totals:
                self.totals[name] = term * weight, weight
                continue
            total, weights = self.totals[name]
            # in one operation, where the weight is no tensor
            added = total.add(term, alpha=weight) if isinstance(weight, int | float) else total + term * weight
            self.totals[name] = added, weights + weight

    def means(self) -> dict[str, float]:
        """Return the means: of the loss by what its own was divided by, of each other term by steps.

        The loss is nan if no step was made.
        """
        means = {name: float(total / weight) for name, (total, weight) in self.totals.items()}
        return {"loss": math.nan, **means}


@define
class Progress:
    """Where a run is: the only object that changes while it goes.

    Attributes:
        epoch: epochs done.
        current: what has been done of the next.
        step: optimizer steps done.
        seconds: spent so far.
        samples: trained on so far, repeats counted.
        training_seconds: of `seconds`, in training.
        skipped: optimizer steps that made no update, for their loss or gradient was not finite.
        overflows: optimizer steps that made no update, for the gradient of the scaled loss overflowed float16.
        averages: updates of the average so far.
        scale_history: (step, scale of the loss behind it), of the last steps that changed it.
        micro_batch_splits: that each micro-batch is cut into, for memory was short.
        epochs_since_best: epochs since the monitored metric was better by `train.min_delta`, of `best_value`.
        best_value: its value then.
        unmeasured_epochs: epochs in which the monitored value was no finite number.
        best: metrics of the best epoch, with its number as ``epoch``; empty while its value was a finite number in
            none.
        last: metrics of the last epoch, likewise.
    """

    epoch: int = 0
    current: EpochProgress = field(factory=EpochProgress)
    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    training_seconds: float = 0.0
    skipped: int = 0
    overflows: int = 0
    averages: int = 0
    scale_history: list[tuple[int, float]] = field(factory=list)
    micro_batch_splits: int = 1
    epochs_since_best: int = 0
    best_value: float | None = None
    unmeasured_epochs: int = 0
    best: dict[str, Any] = field(factory=dict)
    last: dict[str, Any] = field(factory=dict)

    @property
    def updates(self) -> int:
        """Optimizer steps that changed the network."""
        return self.step - self.skipped - self.overflows
