"""Real steps of a run that are tried and taken back."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from attrs import evolve

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults

if TYPE_CHECKING:
    from collections.abc import Generator

    from ftcore.config.schema import RunConfig
    from ftcore.data.loader import Batch
    from ftcore.runs.prepared import PreparedRun
    from ftcore.training.state import TrainingParts


def prepare(config: RunConfig) -> PreparedRun:
    """Assemble a run for a trial: as `ftcore.runs.prepared.prepare`, but without its folder and its cache."""
    from ftcore.runs.prepared import prepare as prepare_run

    return prepare_run(
        evolve(config, run=evolve(config.run, folder=None), data=evolve(config.data, cache=None, cache_gb=None))
    )


def check_split(parts: TrainingParts) -> None:
    """Refuse a training split that does not fill one batch.

    Raises:
        UserError: it has fewer images than ``train.batch_size``.
    """
    images, batch = len(parts.data.train.samples), parts.train_config.batch_size
    if images < batch:
        raise UserError(
            f"train.batch_size = {batch} is more than the {images} images of the training split; a range "
            f"test needs full batches: --set train.batch_size={images} or less"
        )


def batches(parts: TrainingParts) -> Generator[list[Batch]]:
    """Yield the micro-batches of one step after the other, of one epoch after the other."""
    from ftcore.training.loop import accumulation_windows

    for epoch in count():
        yield from accumulation_windows(parts.data.train.epoch(epoch), parts.train_config.accumulate)


def start_first_epoch(parts: TrainingParts) -> None:
    """Freeze and hold what the first epoch does, and put the rest in train mode."""
    from ftcore.model import freezing

    freezing.apply_requires_grad(parts.network, parts.plan, epoch=0)
    parts.placement.model.train()
    freezing.set_frozen_eval(parts.network, parts.plan, epoch=0)


def nonfinite_first_loss_error(parts: TrainingParts) -> UserError:
    """Return the error for a network whose first loss is not finite."""
    precision = f"; {load_defaults().ADVICE['float16']} may help" if parts.precision.scaler.is_enabled() else ""
    return UserError(
        f"the loss or its gradient is not finite in the first step at any learning rate; precision "
        f"{parts.precision.name}, {parts.data.task.name}: check the data with ftcore check, and the weights"
        f"{precision}"
    )
