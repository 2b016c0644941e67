"""What a run holds while it goes: `Parts`, made once, and `Progress`, the only object that changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from . import freezing
from .parts import as_is

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from .config import TrainConfig
    from .events import Event, Observer
    from .loading import Batches
    from .parts import (
        Average,
        BatchTransform,
        FreezePlan,
        ImageTransform,
        Loss,
        Placement,
        Precision,
        Regularizer,
        Schedule,
        Step,
        Task,
    )
    from .precompute import Precomputed


@frozen(eq=False)
class Parts:
    """Everything that the loop needs; made once, by `assemble`.

    Attributes:
        train: batches to learn from.
        val: batches to measure on.
        task: what is learnt.
        plan: what is frozen, and when it is released.
        placement: device and wrapped network.
        precision: autocast and gradient scaler.
        optimizer: over all parameters that ever learn.
        schedule: of the learning rate.
        loss: a weighted mean over a batch.
        batch_transforms: change each training batch on the device, in turn.
        aux_weights: factor on the loss of each output but the first, where the network gives several in train mode.
        step: what is done beside the loss, or in another way.
        regularizers: penalties on the parameters.
        average: a second network that is evaluated and saved instead, or None.
        heads: paths of the new heads.
        metrics: validation metrics by name.
        monitor: name of the metric, or ``loss``, that decides which epoch is best.
        stateful: name -> plugin, observer or loss that has a `state_dict` of its own, which checkpoints hold.
        observers: are told what happens.
        settings: the ``[train]`` section.
        precomputed: what of the network is computed once, or None.
        through: network -> what batches go through: itself, or its head where `train` and `val` give what that sees.
    """

    train: Batches
    val: Batches
    task: Task
    plan: FreezePlan
    placement: Placement
    precision: Precision
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: Loss
    batch_transforms: Sequence[BatchTransform | ImageTransform]
    aux_weights: tuple[float, ...]
    step: Step
    regularizers: Sequence[Regularizer]
    average: Average | None
    heads: tuple[str, ...]
    metrics: Mapping[str, Any]
    monitor: str
    stateful: Mapping[str, Any]
    observers: Sequence[Observer]
    settings: TrainConfig
    precomputed: Precomputed | None = None
    through: Callable[[nn.Module], nn.Module] = as_is

    @property
    def network(self) -> nn.Module:
        """The network without its wrapper."""
        return self.placement.unwrap(self.placement.model)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self.train) / self.settings.accumulate)

    @property
    def higher_is_better(self) -> bool:
        """Which way the monitored metric should go."""
        return goes_up(self.monitor, self.metrics)

    def averaged(self, epoch: int) -> Average | None:
        """Return the average that stands for the network after an epoch (from 0), if one does by then."""
        return self.average if self.average and epoch >= self.average.start else None

    def evaluated(self, epoch: int) -> nn.Module:
        """Return the network, without its wrapper, that is evaluated and saved after an epoch (from 0)."""
        average = self.averaged(epoch)
        return average.network if average else self.network

    def frozen(self, epoch: int) -> dict[str, Tensor]:
        """What must not change in an epoch (from 0), by name."""
        return freezing.frozen_tensors(self.network, self.plan, epoch)

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        for observe in self.observers:
            observe(event)


def goes_up(monitor: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a higher value of a metric, or of ``loss``, is better."""
    return monitor != "loss" and bool(metrics[monitor].higher_is_better)


@define
class Ongoing:
    """What has been done of the epoch that goes.

    Attributes:
        step: optimizer steps.
        samples: trained on, repeats counted.
        seconds: in training.
        trained: whether the training of this epoch is over; its evaluation may be not.
        totals: name -> (sum, what it is divided by), of the loss and of what was added to it, on the device.
        norm: () float32 on the device, of the last step's gradient before it was clipped; not saved with a run.
        waited: seconds in which steps waited for data, since the run began or went on; likewise.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    trained: bool = False
    totals: dict[str, tuple[Any, Any]] = field(factory=dict)
    norm: Any = field(default=None, init=False)
    waited: float = field(default=0.0, init=False)

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
        skipped: optimizer steps that were not made, for their gradient was not finite.
        averages: updates of the average so far.
        scales: (step, scale of the loss behind it), of the last steps that changed it.
        pieces: that each micro-batch is cut into, for memory was short.
        stale: epochs since the monitored metric was better by `train.min_delta`, of `mark`.
        mark: its value then.
        best: metrics of the best epoch, with its number as ``epoch``; empty before the first.
        last: metrics of the last epoch, likewise.
    """

    epoch: int = 0
    current: Ongoing = field(factory=Ongoing)
    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    training_seconds: float = 0.0
    skipped: int = 0
    averages: int = 0
    scales: list[tuple[int, float]] = field(factory=list)
    pieces: int = 1
    stale: int = 0
    mark: float | None = None
    best: dict[str, Any] = field(factory=dict)
    last: dict[str, Any] = field(factory=dict)
