"""One process a device, through `torch.distributed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Placement, UserError, hookimpl

from .processes import check_share, device_of, join, lone

if TYPE_CHECKING:
    from torch import nn

    from ftcore import Context, RunConfig


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
        device = device_of(self.config.device, ranks, "ddp")
        if not ranks.started:
            return Placement(device=device, model=model.to(device), unwrap=lambda wrapped: wrapped, lone=lone("ddp"))
        check_share(config, ranks)
        backend = join(device, ranks, self.config.backend, self.config.timeout, "ddp")

        from . import replica

        if self.config.sync_batchnorm:
            if device.type != "cuda":
                raise UserError("ddp.sync_batchnorm needs CUDA: torch has no batch norm over processes for a CPU")
            replica.synchronise(model)

        def placed(wrapped: replica.Replica) -> Placement:
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
                around=lambda module: placed(wrapped.around(module)),
                note=f"DDP over {ranks.world_size} processes ({backend}), which share each batch",
            )

        return placed(replica.Replica(model.to(device), find_unused_parameters=self.config.find_unused_parameters))
