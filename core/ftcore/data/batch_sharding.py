"""Each process's share of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.types.distributed import Placement


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Return which of so many samples a process has: one run of them, in the order of the ranks, none or one longer."""
    each, more = divmod(size, world_size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def local_part(items: Any, rank: int, world_size: int) -> Any:
    """Return the share of a process in a micro-batch; the first item, which is not its own, for one that has none.

    All processes go through the network, or the gradients would not be added up. What is not its own counts nothing.
    """
    return items[rank_slice(len(items), rank, world_size)] if rank < len(items) else items[:1]


def gather_batch(rows: Tensor, size: int, placement: Placement) -> Tensor:
    """Return the rows (size, ...) of a whole micro-batch, of which each process has its share."""
    ranks = placement.world_size
    if ranks == 1:
        return rows
    sizes = [len(range(size)[rank_slice(size, rank, ranks)]) for rank in range(ranks)]
    padded = rows.new_zeros(sizes[0], *rows.shape[1:])
    padded[: sizes[placement.rank]] = rows[: sizes[placement.rank]]
    found = placement.gather(padded)
    return torch.cat([part[:length] for part, length in zip(found, sizes, strict=True)])
