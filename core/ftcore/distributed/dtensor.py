"""Tensors whose rows are spread over processes (`torch.distributed.tensor.DTensor`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(tensor: object) -> bool:
    """Whether each process has some rows of it."""
    module = sys.modules.get("torch.distributed.tensor")  # where nothing has imported it, nothing is
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Any) -> Tensor:
    """Return what this process has of a tensor, in the same memory."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return local


def full_tensor(tensor: Any) -> Tensor:
    """Return all of a tensor, in every process; differentiable."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def local_row_range(tensor: Any) -> tuple[int, int | None]:
    """Return which rows of a tensor this process has: the first, and the one behind the last; None for all."""
    if not is_sharded(tensor):
        return 0, None
    length, mesh = tensor.shape[0], tensor.device_mesh
    rows_per_rank = -(-length // mesh.size())  # as `Shard(0)` cuts
    start = min(mesh.get_local_rank() * rows_per_rank, length)
    return start, min(start + rows_per_rank, length)
