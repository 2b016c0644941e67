"""One process a device, through `torch.distributed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Placement, UserError, hookimpl

from .process_group import check_batch_size, init_process_group, local_device, single_process_message

if TYPE_CHECKING:
    from torch import nn

    from ftcore import Context, RunConfig


@frozen
class DdpConfig:
    """Options of `ddp`.

    Attributes:
        device: ``cuda`` (each process uses the GPU of its local rank) or ``cpu``; by default cuda if
            available.
        backend: of `torch.distributed`; by default nccl on CUDA and gloo on a CPU.
        timeout: timeout of collective operations in seconds.
        find_unused_parameters: whether trainable parameters may be unused in the output; costs a graph
            traversal in each step.
        sync_batchnorm: whether batch norm uses the images of all processes; CUDA only.
    """

    device: Literal["cuda", "cpu"] | None = None
    backend: Literal["nccl", "gloo"] | None = None
    timeout: int = field(default=600, validator=validators.gt(0))
    find_unused_parameters: bool = False
    sync_batchnorm: bool = False


class Ddp:
    """`torch.nn.parallel.DistributedDataParallel`: one process per device, each batch split between them.

    `train.batch_size` is the total over all processes, so an update uses the same images for any number of them.
    Running statistics of batch norm are those of rank 0.
    """

    Config = DdpConfig

    def __init__(self, config: DdpConfig) -> None:
        self.config = config

    @hookimpl
    def wrap_devices(self, model: nn.Module, config: RunConfig, ctx: Context) -> Placement:
        """Answer always; in a process that was started alone, for a look at the run and not for the run itself."""
        ranks = ctx.ranks
        device = local_device(self.config.device, ranks, "ddp")
        if not ranks.started:
            return Placement(
                device=device,
                model=model.to(device),
                unwrap=lambda wrapped: wrapped,
                single_process_error=single_process_message("ddp"),
            )
        check_batch_size(config, ranks)
        backend = init_process_group(device, ranks, self.config.backend, self.config.timeout, "ddp")

        from . import ddp_module

        if self.config.sync_batchnorm:
            if device.type != "cuda":
                raise UserError("ddp.sync_batchnorm needs CUDA: torch has no SyncBatchNorm for CPUs")
            ddp_module.convert_sync_batchnorm(model)

        def placed(wrapped: ddp_module.RewrappingDDP) -> Placement:
            return Placement(
                device=device,
                model=wrapped,
                unwrap=lambda _: model,
                rank=ranks.rank,
                world_size=ranks.world_size,
                no_sync=wrapped.no_sync,
                reduce=lambda amount: ddp_module.all_reduce(amount, device),
                gather=ddp_module.all_gather,
                broadcast_buffers=ddp_module.broadcast_buffers,
                rewrap=lambda module: placed(wrapped.around(module)),
                note=f"DDP over {ranks.world_size} processes ({backend}), each batch split between them",
            )

        return placed(
            ddp_module.RewrappingDDP(model.to(device), find_unused_parameters=self.config.find_unused_parameters)
        )
