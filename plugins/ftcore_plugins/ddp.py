"""One process a device, through `torch.distributed`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Placement, UserError, hookimpl

from .devices import chosen

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftcore import Context, Ranks, RunConfig

LONE = "ddp needs processes that share the work: ftcore run --nproc 2, or torchrun, srun, a PyTorchJob"


@frozen
class DdpConfig:
    """Options of `ddp`.

    Attributes:
        device: ``cuda``, of which each process of a machine takes that of its own number, or ``cpu``; by default cuda
            where it is there.
        backend: of `torch.distributed`; by default nccl on CUDA and gloo on a CPU.
        timeout: seconds that an exchange between processes may take.
        find_unused_parameters: whether parts of the network that learn may have no part in its output, at the price of
            a search in each step.
        sync_batchnorm: whether batch norm sees the images of all processes; on CUDA alone.
    """

    device: Literal["cuda", "cpu"] | None = None
    backend: Literal["nccl", "gloo"] | None = None
    timeout: int = field(default=600, validator=validators.gt(0))
    find_unused_parameters: bool = False
    sync_batchnorm: bool = False


class Ddp:
    """`torch.nn.parallel.DistributedDataParallel`: one process a device, which share each micro-batch.

    `train.batch_size` is that of all processes together, so an update is made of the same images whatever their number.
    Running statistics of batch norm are those of the first process.
    """

    Config = DdpConfig

    def __init__(self, config: DdpConfig) -> None:
        self.config = config

    @hookimpl
    def wrap_devices(self, model: nn.Module, config: RunConfig, ctx: Context) -> Placement:
        """Answer always; in a process that was started alone, for a look at the run and not for the run itself."""
        ranks = ctx.ranks
        device = self._device(ranks)
        if not ranks.started:
            return Placement(device=device, model=model.to(device), unwrap=lambda wrapped: wrapped, lone=LONE)
        if config.train.batch_size < ranks.world_size:
            raise UserError(
                f"train.batch_size = {config.train.batch_size} is the number of images of all processes together, and "
                f"there are {ranks.world_size} processes ({config.origin('train.batch_size')})"
            )
        backend = self._join(device, ranks)

        from . import replica

        if self.config.sync_batchnorm:
            if device.type != "cuda":
                raise UserError("ddp.sync_batchnorm needs CUDA: torch has no batch norm over processes for a CPU")
            replica.synchronise(model)
        wrapped = replica.Replica(model.to(device), find_unused_parameters=self.config.find_unused_parameters)
        return Placement(
            device=device,
            model=wrapped,
            unwrap=lambda _: model,
            rank=ranks.rank,
            world_size=ranks.world_size,
            no_sync=wrapped.no_sync,
            reduce=lambda amount: replica.added_up(amount, device),
            gather=replica.gathered,
            align=replica.align,
            note=f"DDP over {ranks.world_size} processes ({backend}), which share each batch",
        )

    def _device(self, ranks: Ranks) -> torch.device:
        import torch

        device = chosen(self.config.device, "ddp.device")
        if device.type != "cuda" or not ranks.started:
            return device
        count = torch.cuda.device_count()
        if ranks.local_rank >= count:
            raise UserError(
                f"process {ranks.local_rank} of this machine has no GPU: there are {count}, and each process takes "
                'one; fewer processes, or ddp.device = "cpu"'
            )
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)

    def _join(self, device: torch.device, ranks: Ranks) -> str:
        """Make the process group, and return the name of its backend."""
        from torch import distributed

        backend = self.config.backend or {"cuda": "nccl", "cpu": "gloo"}[device.type]
        if backend == "nccl" and device.type != "cuda":
            raise UserError(f'ddp.backend = "nccl" is for CUDA, and this run is on {device.type}; there, it is "gloo"')
        if not distributed.is_initialized():
            distributed.init_process_group(
                backend,
                store=ranks.store,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=timedelta(seconds=self.config.timeout),
            )
        return backend
