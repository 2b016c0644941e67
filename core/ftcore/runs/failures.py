"""Errors of a run, explained."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftcore
from ftcore.distributed.rendezvous import is_connection_error
from ftcore.errors import UserError, blame_plugin
from ftcore.plugins.discovery import load_defaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.plugins.host import Host
    from ftcore.training.state import Progress, TrainingParts

    from .folder import RunFolder
    from .prepared import PreparedRun


def explain_failure(
    error: BaseException, folder: RunFolder, ready: PreparedRun, parts: TrainingParts, progress: Progress
) -> BaseException:
    """Say what to do about memory, or images, that are short, and whose code failed; keep what `replay` needs."""
    from ftcore.training import nonfinite, oom
    from ftcore.training.gradients import NotFiniteError

    if short := oom.explain_resource_error(error, parts, progress):
        return short
    if parts.placement.sharding and not is_connection_error(error) and _is_dtensor_error(error):
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        return UserError(
            f"{_outside_torch(error)} uses an operation that torch does not support on sharded "
            f"parameters; {load_defaults().ADVICE['sharding']}\n{first}"
        )
    if not isinstance(error, UserError):
        _name_plugin(error, ready.host)
    if not isinstance(error, NotFiniteError) or not ready.ranks.is_main or parts.placement.sharding:
        return error
    ready.ranks.claim_error_report(2)  # before the others do, for all of them see it
    kept = nonfinite.save_failing_step(folder.path, parts, progress, error)
    return UserError(
        f"{error}\nthe state before the step is in {kept}: replay the step with: ftcore replay {folder.path}"
    )


def _name_plugin(error: BaseException, host: Host) -> None:
    """Let an error say which plugin it comes from, if it was raised by something that a hook returned."""
    own = Path(ftcore.__file__).parent
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if own in Path(frame.f_code.co_filename).parents]
    if not ours or ours[-1] is frames[-1]:  # raised by ftcore itself
        return
    code = ours[-1].f_code
    hook, part = _callers().get((code.co_filename, code.co_qualname.partition(".<locals>")[0]), ("", ""))
    if hook:
        blame_plugin(error, host.origin_of(hook, ours[-1].f_locals.get(part)))


def _callers() -> dict[tuple[str, str], tuple[str, str]]:
    """File and name of each function that calls what a hook returned -> hook, and the variable that holds it."""
    from ftcore.data.loader import EpochLoader
    from ftcore.training import evaluation, gradients, loop, weight_averaging

    calls: list[tuple[Callable[..., Any], str, str]] = [
        (EpochLoader.epoch, "make_transforms", ""),
        (loop.apply_batch_transforms, "batch_transforms", "transform"),
        (loop.total_loss, "make_loss", ""),
        (loop.loss_denominator, "make_loss", ""),
        (loop.local_weight, "make_loss", ""),
        (evaluation.evaluate, "make_loss", ""),
        (loop.step_terms, "make_step", ""),
        (loop.penalties, "make_regularizers", "r"),
        (gradients.optimizer_step, "make_optimizer", ""),
        (gradients.step_scheduler, "make_schedule", ""),
        (weight_averaging.update_average, "make_average", ""),
        (evaluation.update_metrics, "make_metrics", "metric"),
        (evaluation.computed_metrics, "make_metrics", "metric"),
    ]
    return {(f.__code__.co_filename, f.__code__.co_qualname): (hook, part) for f, hook, part in calls}


def _outside_torch(error: BaseException) -> str:
    """Return the last place in an error's traceback that is not torch's, as ``file, line``."""
    import torch

    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(torch.__file__).parent not in Path(frame.filename).parents]
    return f"{'/'.join(Path(outside[-1].filename).parts[-3:])}, line {outside[-1].lineno},"


def _is_dtensor_error(error: BaseException) -> bool:
    """Whether an error comes from torch's arithmetic of tensors that are spread over processes."""
    from torch.distributed import tensor

    places = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if not isinstance(error, RuntimeError | AssertionError):
        return False
    return "DTensor" in str(error) or any(Path(str(tensor.__file__)).parent in place.parents for place in places)
