"""Where a network runs, and how it is distributed over processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn


@frozen
class Sharding:
    """How the parameters of a network are sharded over processes, as `torch.distributed.tensor.DTensor` by rows.

    Attributes:
        checkpoints: ``full``, the files that one process would write; or ``sharded``, where each process writes its
            shard.
        weights: `ftcore.model.state_digest` of the network before.
    """

    checkpoints: Literal["full", "sharded"]
    weights: str


@frozen
class Placement:
    """The result of `wrap_devices`: where the network runs.

    Attributes:
        device: where batches go.
        model: the network, moved and perhaps wrapped.
        unwrap: wrapped network -> the original network, whose parameter names are saved.
        rank: number of this process, from 0.
        world_size: number of processes.
        no_sync: entered for backward passes that need no gradient exchange.
        reduce: tensor or number -> its sum over all processes.
        gather: tensor, of the same shape and dtype in all processes -> (world_size, ...), those of all.
        broadcast_buffers: copies the buffers of the network, or of an average, from rank 0 to all processes.
        rewrap: another module with the same parameters, e.g. the trainable part of the network -> its placement,
            made the same way; None if not supported.
        single_process_error: why the run cannot continue in one process; empty if it can.
        sharding: how the parameters are sharded over the processes; None if each has all of them.
        note: one line for the user, e.g. a warning.
    """

    device: torch.device
    model: nn.Module
    unwrap: Callable[[nn.Module], nn.Module]
    rank: int = 0
    world_size: int = 1
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    reduce: Callable[[Any], Any] = lambda amount: amount
    gather: Callable[[Tensor], Tensor] = lambda rows: rows[None]
    broadcast_buffers: Callable[[nn.Module], None] = lambda _: None
    rewrap: Callable[[nn.Module], Placement] | None = None
    single_process_error: str = ""
    sharding: Sharding | None = None
    note: str = ""
