"""The loop, in plain PyTorch: fit -> train_epoch -> train_step -> backward -> network. No hook is called here."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from ftcore.data.batch_sharding import gather_batch, local_part
from ftcore.distributed.dtensor import full_tensor
from ftcore.model import freezing
from ftcore.model.shape_inference import as_tuple
from ftcore.system.seeding import derive_seed, seed_step
from ftcore.types.abilities import Softened, require
from ftcore.types.data import BatchImageTransform
from ftcore.types.events import EpochEnded, StepLogged
from ftcore.types.training import ForwardPass, sample_count

from .evaluation import evaluate, forward
from .gradients import all_finite, check_updates, clip, optimizer_step, step_scheduler, sum_terms, warn_of_skipped
from .listeners import tell
from .monitoring import comparable, should_stop_early, update_best, warn_without_best
from .oom import split_micro_batches
from .state import EpochProgress
from .weight_averaging import initial_share, model_for_evaluation, update_average

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from ftcore.data.loader import Batch
    from ftcore.types.distributed import Placement

    from .state import Progress, TrainingParts


def fit(
    parts: TrainingParts,
    progress: Progress,
    save: Callable[[EpochEnded], None],
    on_boundary: Callable[[], None] = lambda: None,
    frozen_digests: Mapping[str, str] | None = None,
) -> None:
    """Train, evaluate and save, epoch by epoch, from where the run is.

    Args:
        parts: of the run.
        progress: where it is.
        save: called once after each epoch, before the observers are told; a checkpoint, which holds their state, comes
            behind that.
        on_boundary: called after each optimizer step, before each validation batch, and after each epoch: the moments
            at which a run can be left, by an exception, and gone on with.
        frozen_digests: digest of each tensor that was frozen when the run began; by default that of now.
    """
    frozen_digests = frozen_digests or freezing.tensor_digests(parts.frozen_at(progress.epoch))
    while progress.epoch < parts.train_config.epochs and not should_stop_early(parts, progress):
        began = time.monotonic()
        now = parts.for_epoch(progress.epoch, on_boundary)
        if not progress.current.trained:
            progress.current.seconds += time.monotonic() - began  # what is computed once is computed to train on it
            train_epoch(now, progress, on_boundary)
        started = time.monotonic()
        tell(now, progress)
        val = evaluate(now, model_for_evaluation(now, progress.epoch), on_boundary)
        freezing.check_unchanged(frozen_digests, parts.frozen_at(progress.epoch), progress.epoch)
        event = end_epoch(parts, progress, val, time.monotonic() - started)
        save(event)
        parts.notify(event)
        on_boundary()
    check_updates(progress)
    warn_without_best(parts, progress)


def end_epoch(parts: TrainingParts, progress: Progress, val: dict[str, Any], evaluated: float) -> EpochEnded:
    """Count an epoch that was trained, and evaluated in so many seconds, as done."""
    warn_of_skipped(progress)
    done, progress.current = progress.current, EpochProgress()
    losses, share = done.means(), initial_share(parts, progress)
    progress.epoch += 1
    progress.samples += done.samples
    progress.training_seconds += done.seconds
    progress.seconds += done.seconds + evaluated
    train = {f"train_{name}": value for name, value in losses.items()}
    best = update_best(parts, progress, {"epoch": progress.epoch, **train, **val})
    signed = comparable(val[parts.evaluation.monitor], higher_is_better=parts.higher_is_better)
    step_scheduler(parts, "metric", signed if parts.higher_is_better else -signed)
    return EpochEnded(
        epoch=progress.epoch,
        step=progress.step,
        train=losses,
        val=val,
        best=best,
        monitor=parts.evaluation.monitor,
        seconds=done.seconds + evaluated,
        samples_per_second=per_second(done.samples, done.seconds),
        data_wait=fraction(done.data_wait_s, done.seconds),
        training_seconds=done.seconds,
        initial_share=share,
        updates=done.step - done.skipped,
        skipped=done.skipped,
    )


def per_second(samples: int, seconds: float) -> float:
    """Return a rate; that of a nanosecond where a clock shows no time."""
    return samples / max(seconds, 1e-9)


def train_epoch(parts: TrainingParts, progress: Progress, on_boundary: Callable[[], None] = lambda: None) -> None:
    """Train for what is left of an epoch."""
    epoch, current, settings = progress.epoch, progress.current, parts.train_config
    freezing.apply_requires_grad(parts.network, parts.plan, epoch)
    parts.placement.model.train()
    freezing.set_frozen_eval(parts.network, parts.plan, epoch)
    seen, began = current.samples, time.monotonic()
    since = began
    batches = parts.data.train.epoch(epoch, current.step * settings.accumulate)
    for window in timed_windows(accumulation_windows(batches, settings.accumulate), current):
        rates = tuple(group["lr"] for group in parts.optimization.optimizer.param_groups)
        terms, divisor = train_step(parts, window, progress)
        progress.step += 1
        current.step += 1
        current.add(terms, divisor)
        current.samples += sum(len(batch.indices) for batch in window)
        if terms and (current.step % settings.log_every == 0 or current.step == parts.steps_per_epoch):
            values = {name: float(term) for name, term in terms.items()}
            passed, norm = time.monotonic() - began, finite_or_none(current.last_grad_norm)
            speed, wait = per_second(current.samples - seen, passed), fraction(current.data_wait_s, passed)
            numbers = values.pop("loss"), rates, speed, values, norm, wait, current.skipped
            parts.notify(StepLogged(epoch + 1, current.step, *numbers))
        current.seconds, since = current.seconds + time.monotonic() - since, time.monotonic()
        if current.step < parts.steps_per_epoch:
            on_boundary()
            since = time.monotonic()
    freezing.check_frozen_modules_in_eval(parts.network, parts.plan, epoch)
    step_scheduler(parts, "epoch")
    update_average(parts, progress, "epoch")
    current.trained = True
    on_boundary()


def finite_or_none(number: Any) -> float | None:
    """Return a number, or None for one that is not finite."""
    return float(number) if math.isfinite(number) else None


def fraction(part: float, total: float) -> float:
    """Return how much of a time another is, from 0 to 1; 0 where a clock shows no time."""
    return min(part / total, 1.0) if total > 0 else 0.0


def timed_windows(windows: Iterator[list[Batch]], current: EpochProgress) -> Iterator[list[Batch]]:
    """Yield windows, and note for how long each was waited for."""
    began = time.monotonic()
    for window in windows:
        current.data_wait_s += time.monotonic() - began
        yield window
        began = time.monotonic()


def accumulation_windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Gather micro-batches into the windows of one optimizer step; the last may be shorter."""
    while window := list(islice(batches, size)):
        yield window


def train_step(parts: TrainingParts, window: Sequence[Batch], progress: Progress) -> tuple[dict[str, Tensor], Any]:
    """Take one optimizer step; return loss and terms of the window, and what the mean of the loss was divided by.

    There are no terms where the step was not made, because the gradient was not finite.
    """
    scaler = parts.precision.scaler
    terms, divisor = compute_gradient(parts, window, progress)
    scaler.unscale_(parts.optimization.optimizer)
    norm = progress.current.last_grad_norm = clip(parts)
    if not all_finite(parts, window, terms, norm, progress):
        terms = {}
        scaler.update()
    elif optimizer_step(scaler, parts.optimization.optimizer, progress):
        step_scheduler(parts, "step")
        update_average(parts, progress, "step")
    parts.optimization.optimizer.zero_grad(set_to_none=True)
    return terms, divisor


def compute_gradient(
    parts: TrainingParts, window: Sequence[Batch], progress: Progress
) -> tuple[dict[str, Tensor], Any]:
    """Compute the gradient of a window, and return what `train_step` returns; a function of where the run is."""
    tell(parts, progress)
    placement, seed = parts.placement, parts.train_config.seed
    seed_step(placement.device, derive_seed("step", seed, progress.step))
    window = [apply_batch_transforms(parts, batch) for batch in window]
    if placement.rank:  # what mixes batches is the same in all processes, what drops activations is not
        seed_step(placement.device, derive_seed("step", seed, progress.step, placement.rank))
    divisor = loss_denominator(parts, window)
    run = partial(parts.objective.backward, parts, progress, window, divisor)
    terms = parts.objective.step.wrap_backward(run) if parts.objective.step.wrap_backward else run()
    return all_reduce_terms(placement, terms), divisor


def all_reduce_terms(placement: Placement, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up the terms, () each, of all processes, in one exchange."""
    if placement.world_size == 1:
        return dict(terms)
    return dict(zip(terms, placement.reduce(torch.stack(list(terms.values()))), strict=True))


def loss_denominator(parts: TrainingParts, window: Sequence[Batch]) -> Any:
    """Return what the mean of the loss over a window of all processes is divided by."""
    if parts.objective.loss.denominator is sample_count:  # which all know, without an exchange
        return float(sum(len(batch.indices) for batch in window))
    return parts.placement.reduce(sum(local_weight(parts, batch) for batch in window))


def local_weight(parts: TrainingParts, batch: Batch) -> Any:
    """Return how much this process's share of a micro-batch counts in the mean of the loss."""
    return parts.objective.loss.denominator(batch.targets) if parts.placement.rank < len(batch.indices) else 0.0


def backward(parts: TrainingParts, progress: Progress, window: Sequence[Batch], divisor: Any) -> dict[str, Tensor]:
    """Add the gradient of a window's mean loss and terms to the parameters; return this rank's share of each.

    The mean is that over the whole window and all ranks, whatever the batches weigh: it is divided by `divisor`. Loss
    and terms are taken in float32, whatever the precision of the network.
    """
    placement, sync_later = parts.placement, parts.train_config.on_oom == "halve"
    pieces = split_micro_batches(window, progress.micro_batch_splits)
    samples = sum(len(batch.indices) for batch in pieces)
    totals: dict[str, Tensor] = {}
    for place, batch in enumerate(pieces, start=1):
        with nullcontext() if place == len(pieces) and not sync_later else placement.no_sync():
            with parts.precision.autocast():
                outputs = as_tuple(placement.model(batch.images))
            outputs = tuple(output.float() for output in outputs)
            weight = local_weight(parts, batch) / divisor
            terms = {"loss": scale(total_loss(parts, outputs, batch.targets), weight)}
            terms |= step_terms(parts, batch, outputs[0], samples)
            if place == len(pieces):
                terms |= penalties(parts)
            scaled: Any = parts.precision.scaler.scale(scale(sum_terms(terms), placement.world_size))
            scaled.backward()
        for name, term in terms.items():
            totals[name] = totals[name] + term.detach() if name in totals else term.detach()
    return totals


def scale(term: Tensor, factor: Any) -> Tensor:
    """Multiply, but by what is known to be 1: in a small network each such operation shows."""
    return term if isinstance(factor, int | float) and factor == 1 else term * factor


def step_terms(parts: TrainingParts, batch: Batch, outputs: Tensor, samples: int) -> dict[str, Tensor]:
    """Return the share of a micro-batch in each term of the step, a mean over so many samples."""
    if not parts.objective.step.terms:
        return {}
    seen = ForwardPass(batch.images, batch.targets, outputs, partial(forward, parts, parts.placement.model))
    proportion = len(batch.targets) / samples if parts.placement.rank < len(batch.indices) else 0.0
    return {name: term(seen) * proportion for name, term in parts.objective.step.terms.items()}


def penalties(parts: TrainingParts) -> dict[str, Tensor]:
    """Return this process's share of each penalty on the parameters."""
    return {r.name: full_tensor(r.penalty()) / parts.placement.world_size for r in parts.objective.regularizers}


def apply_batch_transforms(parts: TrainingParts, batch: Batch) -> Batch:
    """Let the batch transforms change a whole micro-batch, and return this process's share.

    Whole, because they mix images that different processes have; classes become one-hot where they are mixed.
    """
    if not parts.data.batch_transforms:
        return batch
    size, placement = len(batch.indices), parts.placement
    images, targets = (gather_batch(rows, size, placement) for rows in (batch.images, batch.targets))
    mixes = not all(isinstance(transform, BatchImageTransform) for transform in parts.data.batch_transforms)
    if mixes:
        targets = require(parts.data.task, Softened, "mixing").soften(targets)
    for transform in parts.data.batch_transforms:
        if isinstance(transform, BatchImageTransform):
            images = transform.function(images)
        else:
            images, targets = transform(images, targets)
    images, targets = (local_part(rows, placement.rank, placement.world_size) for rows in (images, targets))
    return batch._replace(images=images, targets=targets)


def total_loss(parts: TrainingParts, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Add up the losses of all outputs, each (N, K), with the factors that the architecture's authors give them."""
    loss, *others = (parts.objective.loss.function(output, targets) for output in outputs)
    for factor, other in zip(parts.objective.aux_loss_weights, others, strict=True):
        loss = loss + factor * other
    return loss
