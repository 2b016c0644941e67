"""A few steps with a batch of some size: how fast they are, and what memory they take."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen

from ftcore.data.files import CORRUPT_IMAGE_HINT
from ftcore.data.loader import Batch, epoch_order
from ftcore.errors import DataError, UserError
from ftcore.system.memory import DeviceMemory, Peak, is_oom
from ftcore.training.loop import train_step
from ftcore.training.state import Progress

from .rollback import rollback
from .trial import nonfinite_first_loss_error, start_first_epoch

if TYPE_CHECKING:
    from ftcore.training.state import TrainingParts


_SECONDS, _STEPS = 0.5, 5
"""How long steps of one size are timed, and how many of them at most, behind the first, which is not timed."""


@frozen
class BatchTrial:
    """Steps with one size of batch.

    Attributes:
        batch: images in a micro-batch.
        speed: images/s of a step without loading them; 0 where it did not fit.
        peak: bytes, measured, or where `note` says so expected.
        note: why it did not fit; empty if it did.
    """

    batch: int
    speed: float = 0.0
    peak: int = 0
    note: str = ""


@frozen(eq=False)
class TrialContext:
    """What trials are made with.

    Attributes:
        parts: of the run; each trial leaves them as they were.
        pool: images and targets on the CPU, before `finish`.
        memory: that steps take from.
        budget: bytes that may be taken.
        base: bytes that were taken before the first trial.
    """

    parts: TrainingParts
    pool: Batch
    memory: DeviceMemory
    budget: int
    base: int


def load_image_pool(parts: TrainingParts, number: int) -> Batch:
    """Return the first images of the first epoch, augmented, (N, C, H, W), with their targets.

    Raises:
        DataError: one of them cannot be read.
    """
    dataset, sampler = parts.data.train.dataset, parts.data.train.sampler
    places = epoch_order(parts.train_config.seed, 0, len(dataset), sampler.weights)[:number]
    batch = dataset.collate([dataset[0, place] for place in places])
    if isinstance(batch, UserError):
        raise DataError(f"{batch}\n{CORRUPT_IMAGE_HINT}")
    return batch


def run_trial(bench: TrialContext, size: int, most: int = 1 + _STEPS, seconds: float = _SECONDS) -> BatchTrial:
    """Take steps with batches of a size, and undo them."""
    full = ""
    times: list[float] = []
    peak = Peak()
    try:
        with rollback(bench.parts) as parts, bench.memory.peak() as peak:
            times = time_steps(evolve(bench, parts=parts), size, most, seconds)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        full = "out of memory"
    if full:
        gc.collect()  # only here, for the error held on to the tensors of the step
    bench.memory.empty()
    if not full and peak.bytes > bench.budget:
        full = f"needs more than {format_bytes(bench.budget)}"
    images = size * bench.parts.train_config.accumulate
    return BatchTrial(size, images / min(times[1:]) if times[1:] else 0.0, peak.bytes, full)


def time_steps(bench: TrialContext, size: int, most: int, seconds: float) -> list[float]:
    """Take steps, the first of which makes the optimizer's state; return what each took, in seconds."""
    parts, memory, progress = bench.parts, bench.memory, Progress()
    start_first_epoch(parts)
    times: list[float] = []
    while len(times) < 2 or (len(times) < most and sum(times[1:]) < seconds):
        window = [make_batch(bench, size) for _ in range(parts.train_config.accumulate)]
        memory.wait()
        started = time.perf_counter()
        terms, _ = train_step(parts, window, progress)
        memory.wait()
        times.append(time.perf_counter() - started)
        if not terms and not progress.step:
            raise nonfinite_first_loss_error(parts)
        progress.step += 1
    return times


def make_batch(bench: TrialContext, size: int) -> Batch:
    """Collate a micro-batch from the pool, on the device."""
    places = torch.arange(size) % len(bench.pool.indices)
    batch = Batch(*(part[places] for part in bench.pool)).to(bench.memory.device)
    return batch._replace(images=bench.parts.data.train.on_device_transform(batch.images))


def format_bytes(number: int) -> str:
    """Spell bytes."""
    return f"{number / 1e9:.2f} GB"
