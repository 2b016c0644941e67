"""What a run does where memory does not suffice: it says what to change, or goes on with smaller pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import structlog
import torch

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.system.memory import DeviceMemory, is_oom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ftcore.data.loader import Batch

    from .state import Backward, Progress, TrainingParts


_FEWEST = 2
"""Images in a piece at least: batch norm needs two."""

_BN_SINGLE_SAMPLE_ERROR = "Expected more than 1 value per channel when training"
"""What torch says where it has one."""


def split_micro_batches(window: Sequence[Batch], pieces: int) -> list[Batch]:
    """Cut each micro-batch into so many, or into as many as have two images."""
    if pieces == 1:
        return list(window)
    return [piece for batch in window for piece in _pieces(batch, min(pieces, len(batch.targets) // _FEWEST))]


def _pieces(batch: Batch, number: int) -> list[Batch]:
    return [
        type(batch)(*parts) for parts in zip(*(tensor.tensor_split(max(1, number)) for tensor in batch), strict=True)
    ]


def halve_on_oom(backward: Backward) -> Backward:
    """Compute gradients with `backward`, of ever smaller pieces of each micro-batch until they fit.

    Processes that share the window compute their gradients apart, agree on whether all of them could, and only then add
    them up: one that waited for the gradient of another that has none would wait for ever.

    Args:
        backward: adds a gradient to the parameters, where there is none yet; depends on nothing that it changes but
            buffers and what is drawn, which are put back before it is called again, and on how many pieces `Progress`
            wants.

    Raises:
        RuntimeError: it does not fit, and cannot be cut.
    """

    def halving(parts: TrainingParts, progress: Progress, window: Sequence[Batch], divisor: Any) -> dict[str, Tensor]:
        placement = parts.placement
        least = max(len(batch.indices) for batch in window) // placement.world_size
        buffers = [(buffer, buffer.clone()) for buffer in parts.network.buffers()]
        drawing = RngState(placement.device)
        while True:
            reason, found = "", None
            try:
                found = backward(parts, progress, window, divisor)
            except RuntimeError as error:
                if not is_oom(error) or least < 2 * _FEWEST * progress.micro_batch_splits:
                    raise
                reason = _first_line(error)
            if not _any_rank(parts, short=found is None):
                all_reduce_gradients(parts)
                return cast("dict[str, Tensor]", found)
            parts.optimization.optimizer.zero_grad(
                set_to_none=True
            )  # only here, for the error held on to the tensors of the step
            DeviceMemory(placement.device).empty()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            drawing.restore()
            progress.micro_batch_splits *= 2
            if reason:
                _warn(progress, reason)

    return halving


class RngState:
    """What torch's generators would draw next, on the processor and on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Let them draw that again."""
        here, there = self.states
        torch.set_rng_state(here)
        if there is not None:
            torch.cuda.set_rng_state(there, self.device)


def _any_rank(parts: TrainingParts, *, short: bool) -> bool:
    """Whether memory was short in any process."""
    if parts.placement.world_size == 1:
        return short
    return bool(parts.placement.reduce(torch.tensor(float(short), device=parts.placement.device)))


def all_reduce_gradients(parts: TrainingParts) -> None:
    """Let every process have the mean of the gradients of all, as their wrapper would have made it."""
    placement = parts.placement
    if placement.world_size == 1:
        return
    for parameter in parts.network.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(placement.reduce(parameter.grad) / placement.world_size)


def _warn(progress: Progress, reason: str) -> None:
    structlog.get_logger().warning(
        f"out of memory in step {progress.step + 1}: each micro-batch is split into "
        f"{progress.micro_batch_splits} pieces from now on; the gradient is that of the full batch, but batch norm "
        f"sees one piece at a time",
        reason=reason,
    )


def explain_resource_error(error: BaseException, parts: TrainingParts, progress: Progress) -> UserError | None:
    """Return what a user can do about an error, if it says that memory is short, or images are."""
    if isinstance(error, RuntimeError) and is_oom(error):
        return _out_of_memory(error, parts, progress)
    if isinstance(error, ValueError) and str(error).startswith(_BN_SINGLE_SAMPLE_ERROR):
        ranks = parts.placement.world_size
        among = f" among {ranks} processes" if ranks > 1 else ""
        return UserError(
            f"train.batch_size = {parts.train_config.batch_size}{among}: batch norm cannot be trained on a batch of "
            f"one "
            f"image ({error})\n"
            f"train.batch_size={2 * ranks}, {load_defaults().ADVICE['batch norm']} or a network without batch norm "
            "helps, train.accumulate not"
        )
    return None


def _out_of_memory(error: RuntimeError, parts: TrainingParts, progress: Progress) -> UserError:
    settings = parts.train_config
    if progress.current.trained:
        doing, images = "in validation", settings.effective_eval_batch_size
        ways = [f"train.eval_batch_size={max(1, images // 2)}"]
    else:
        doing, images = f"in step {progress.step + 1}", settings.batch_size
        ways = [
            f"train.batch_size={max(1, images // 2)} with train.accumulate={2 * settings.accumulate} (the same steps)"
        ]
        ways += ['train.on_oom="halve" (does that automatically)'] if settings.on_oom == "stop" else []
    return UserError(
        f"out of memory {doing} (epoch {progress.epoch + 1}), with {images} images per micro-batch"
        f"{f' in {progress.micro_batch_splits} pieces' if progress.micro_batch_splits > 1 else ''}: "
        f"{_first_line(error)}\n"
        f"{', '.join([*ways, load_defaults().ADVICE['memory']])} or a smaller model.image_size help; "
        "`ftcore find batch` measures what fits"
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:300]
