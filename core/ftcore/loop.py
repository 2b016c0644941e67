"""The loop, in plain PyTorch: fit -> train_epoch -> train_step -> network. No hook is called here."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch.nn.functional import one_hot

from . import freezing
from .errors import UserError
from .events import EpochEnded, StepLogged
from .loading import decode, key, seed_step
from .shapes import as_tuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from .config import TrainConfig
    from .events import Event, Observer
    from .loading import Batch, Batches
    from .parts import BatchTransform, FreezePlan, Loss, Placement, Precision, Schedule, Task


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
        metrics: validation metrics by name.
        monitor: name of the metric, or ``loss``, that decides which epoch is best.
        observers: are told what happens.
        settings: the ``[train]`` section.
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
    batch_transforms: Sequence[BatchTransform]
    aux_weights: tuple[float, ...]
    metrics: Mapping[str, Any]
    monitor: str
    observers: Sequence[Observer]
    settings: TrainConfig

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
        return self.monitor != "loss" and bool(self.metrics[self.monitor].higher_is_better)

    def frozen(self, epoch: int) -> dict[str, Tensor]:
        """What must not change in an epoch (from 0), by name."""
        return freezing.frozen_tensors(self.network, self.plan, epoch)

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        for observe in self.observers:
            observe(event)


@define
class Progress:
    """Where a run is: the only object that changes while it goes.

    Attributes:
        epoch: epochs done.
        step: optimizer steps done.
        seconds: spent so far.
        samples: trained on so far, repeats counted.
        training_seconds: of `seconds`, in training.
        best: metrics of the best epoch, with its number as ``epoch``; empty before the first.
        last: metrics of the last epoch, likewise.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    training_seconds: float = 0.0
    best: dict[str, Any] = field(factory=dict)
    last: dict[str, Any] = field(factory=dict)


def fit(parts: Parts, progress: Progress, save: Callable[[EpochEnded], None]) -> None:
    """Train, evaluate and save, epoch by epoch; `save` is called once after each."""
    sealed = freezing.digests(parts.frozen(progress.epoch))
    while progress.epoch < parts.settings.epochs:
        started = time.monotonic()
        train_loss = train_epoch(parts, progress)
        trained = time.monotonic() - started
        val = evaluate(parts)
        freezing.check_unchanged(sealed, parts.frozen(progress.epoch), progress.epoch)

        progress.epoch += 1
        progress.samples += len(parts.train.samples)
        progress.training_seconds += trained
        progress.seconds += time.monotonic() - started
        event = EpochEnded(
            epoch=progress.epoch,
            step=progress.step,
            train={"loss": train_loss},
            val=val,
            best=note(parts, progress, {"epoch": progress.epoch, "train_loss": train_loss, **val}),
            monitor=parts.monitor,
            seconds=time.monotonic() - started,
            samples_per_second=len(parts.train.samples) / trained,
        )
        save(event)
        parts.tell(event)


def train_epoch(parts: Parts, progress: Progress) -> float:
    """Train for one epoch and return its mean loss."""
    epoch, device = progress.epoch, parts.placement.device
    freezing.apply(parts.network, parts.plan, epoch)
    parts.placement.model.train()
    freezing.hold(parts.network, parts.plan, epoch)
    total: Any = 0.0
    weight: Any = 0.0
    seen, started = 0, time.monotonic()
    for step, window in enumerate(windows(parts.train.epoch(epoch), parts.settings.accumulate), start=1):
        seed_step(device, key("step", parts.settings.seed, progress.step))
        rates = tuple(group["lr"] for group in parts.optimizer.param_groups)
        loss, divisor = train_step(parts, window, progress)
        progress.step += 1
        total, weight = total + loss * divisor, weight + divisor
        seen += sum(len(batch.targets) for batch in window)
        if step % parts.settings.log_every == 0:
            parts.tell(StepLogged(epoch + 1, step, float(loss), rates, seen / (time.monotonic() - started)))
    freezing.check_modes(parts.network, parts.plan, epoch)
    if parts.schedule.per == "epoch":
        parts.schedule.scheduler.step()
    return float(total / weight)


def windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Gather micro-batches into the windows of one optimizer step; the last may be shorter."""
    while window := list(islice(batches, size)):
        yield window


def train_step(parts: Parts, window: Sequence[Batch], progress: Progress) -> tuple[Tensor, Any]:
    """Take one optimizer step; return the loss of the window and what its mean was divided by.

    The gradient is that of the mean over the whole window and all ranks, whatever the batches weigh.
    """
    placement, precision = parts.placement, parts.precision
    window = [mixed(parts, batch) for batch in window]
    weights = [parts.loss.weight(batch.targets) for batch in window]
    divisor: Any = placement.reduce(sum(weights))
    window_loss: Any = 0.0
    for place, (batch, weight) in enumerate(zip(window, weights, strict=True), start=1):
        exchange = nullcontext() if place == len(window) else placement.no_sync()
        with exchange:
            with precision.autocast():
                outputs = placement.model(batch.images)
            loss = total_loss(parts, outputs, batch.targets) * (weight / divisor)
            window_loss = window_loss + loss.detach()
            precision.scaler.scale(loss * placement.world_size).backward()
    precision.scaler.unscale_(parts.optimizer)
    norm = clip(parts.optimizer, parts.settings.clip_norm)
    check_finite(parts, window, window_loss, norm, progress)
    if update(precision.scaler, parts.optimizer) and parts.schedule.per == "step":
        parts.schedule.scheduler.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return placement.reduce(window_loss), divisor


def mixed(parts: Parts, batch: Batch) -> Batch:
    """Let the batch transforms change a batch; classes become one-hot targets first."""
    if not parts.batch_transforms:
        return batch
    images, targets, indices = batch
    if parts.task.kind == "classification":
        targets = one_hot(targets, parts.task.outputs).float()
    for transform in parts.batch_transforms:
        images, targets = transform(images, targets)
    return type(batch)(images, targets, indices)


def total_loss(parts: Parts, outputs: Any, targets: Tensor) -> Tensor:
    """Add up the losses of all outputs, each (N, K), with the factors that the architecture's authors give them.

    The loss is taken in float32, whatever the precision of the network.
    """
    loss, *others = (parts.loss.function(output.float(), targets) for output in as_tuple(outputs))
    for factor, other in zip(parts.aux_weights, others, strict=True):
        loss = loss + factor * other
    return loss


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Return the norm of the whole gradient, and scale the gradient down to `max_norm` unless that is 0."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm


def check_finite(parts: Parts, window: Sequence[Batch], loss: Tensor, norm: Tensor, progress: Progress) -> None:
    """Stop before the update if the loss, or a gradient that nobody scales, is not finite.

    The one place in a step where the host waits for the device: an update with such a gradient cannot be undone.
    """
    watched = loss if parts.precision.scaler.is_enabled() else loss + norm
    if math.isfinite(watched):
        return
    names = [parts.train.samples.name(int(index)) for batch in window for index in batch.indices]
    raise UserError(
        f"the loss is {float(loss)} and the norm of the gradient {float(norm)} in step {progress.step + 1} "
        f"(epoch {progress.epoch + 1}); the update was not made\n"
        f"precision {parts.precision.name}, learning rates {[g['lr'] for g in parts.optimizer.param_groups]}, "
        f"samples {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}\n"
        "a lower learning rate, train.clip_norm, or bf16 or fp32 instead of fp16 usually helps"
    )


def update(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Let the optimizer step; return False if the scaler skipped it because the scaled gradient overflowed."""
    if not scaler.is_enabled():
        optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


@torch.inference_mode()
def evaluate(parts: Parts) -> dict[str, Any]:
    """Measure the network on the validation split: ``loss``, and every metric in the target's own unit."""
    model = parts.placement.model.eval()
    total: Any = 0.0
    weight: Any = 0.0
    for metric in parts.metrics.values():
        metric.reset()
    for batch in parts.val.epoch(0):
        with parts.precision.autocast():
            outputs = as_tuple(model(batch.images))[0].float()
        divisor = parts.loss.weight(batch.targets)
        total = total + parts.loss.function(outputs, batch.targets) * divisor
        weight = weight + divisor
        predicted, wanted = decode(outputs, parts.task), decode(batch.targets, parts.task)
        for metric in parts.metrics.values():
            metric.update(predicted, wanted)
    return {
        "loss": float(total / weight),
        **{name: metric.compute().tolist() for name, metric in parts.metrics.items()},
    }


def note(parts: Parts, progress: Progress, metrics: dict[str, Any]) -> bool:
    """Remember the metrics of an epoch, and return whether it is the best so far."""
    progress.last = metrics
    if not isinstance(metrics[parts.monitor], float):
        raise UserError(f"train.monitor = {parts.monitor!r} is no single number: {metrics[parts.monitor]!r:.80}")
    sign = 1 if parts.higher_is_better else -1
    better = not progress.best or sign * metrics[parts.monitor] > sign * progress.best[parts.monitor]
    if better:
        progress.best = metrics
    return better
