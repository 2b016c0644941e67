"""The device and the process group of one process of several."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from ftcore import UserError

from .single import resolve_device

if TYPE_CHECKING:
    import torch

    from ftcore import ProcessInfo, RunConfig


def single_process_message(plugin: str) -> str:
    """Return why a run of such a plugin may not go on in one process."""
    return f"{plugin} needs several processes: start with ftcore run --nproc 2, torchrun, srun or a PyTorchJob"


def local_device(name: str | None, ranks: ProcessInfo, plugin: str) -> torch.device:
    """Return the device of this process: of CUDA's, that of its own number on its machine.

    Raises:
        UserError: there is none.
    """
    import torch

    device = resolve_device(name, f"{plugin}.device")
    if device.type != "cuda" or not ranks.started:
        return device
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"process {ranks.local_rank} of this machine has no GPU: there are {count} GPUs and each process needs "
            f'one; start fewer processes, or set {plugin}.device = "cpu"'
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def init_process_group(device: torch.device, ranks: ProcessInfo, backend: str | None, timeout: int, plugin: str) -> str:
    """Make the process group, and return the name of its backend.

    Raises:
        UserError: the backend is not for the device.
    """
    from torch import distributed

    backend = backend or {"cuda": "nccl", "cpu": "gloo"}[device.type]
    if backend == "nccl" and device.type != "cuda":
        raise UserError(
            f'{plugin}.backend = "nccl" is for CUDA, and this run is on {device.type}, where it must be "gloo"'
        )
    if not distributed.is_initialized():
        distributed.init_process_group(
            backend,
            store=ranks.store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(seconds=timeout),
        )
    return backend


def check_batch_size(config: RunConfig, ranks: ProcessInfo) -> None:
    """Refuse batches of fewer images than there are processes."""
    if config.train.batch_size < ranks.world_size:
        raise UserError(
            f"train.batch_size = {config.train.batch_size} is the total over all processes, but there are "
            f"{ranks.world_size} processes ({config.origin('train.batch_size')})"
        )
