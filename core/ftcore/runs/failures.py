"""Errors of a run, explained."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.distributed.rendezvous import is_connection_error
from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults

if TYPE_CHECKING:
    from ftcore.distributed.ranks import ProcessInfo
    from ftcore.training.state import Progress, TrainingParts

    from .folder import RunFolder


def explain_failure(
    error: BaseException, folder: RunFolder, parts: TrainingParts, progress: Progress, ranks: ProcessInfo
) -> BaseException:
    """Say what to do about memory, or images, that are short; keep a step that was not finite for `replay`."""
    from ftcore.training import nonfinite, oom
    from ftcore.training.gradients import NotFiniteError

    if short := oom.explain_resource_error(error, parts, progress):
        return short
    if parts.placement.sharding and not is_connection_error(error) and _is_dtensor_error(error):
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        return UserError(
            f"{_outside_torch(error)} computes with parameters in a way in which torch does not where they are spread "
            f"over processes; {load_defaults().ADVICE['sharding']}\n{first}"
        )
    if not isinstance(error, NotFiniteError) or not ranks.is_main or parts.placement.sharding:
        return error
    ranks.claim_error_report(2)  # before the others do, for all of them see it
    kept = nonfinite.save_failing_step(folder.path, parts, progress, error)
    return UserError(f"{error}\nthe state before it is in {kept}: `ftcore replay {folder.path}` does the step again")


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
