"""One process a device, of which each holds a share of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Placement, Sharding, UserError, hookimpl

from .process_group import check_batch_size, init_process_group, local_device, single_process_message

if TYPE_CHECKING:
    from torch import nn

    from ftcore import Backbone, Context, RunConfig


@frozen
class FsdpConfig:
    """Options of `fsdp`.

    Attributes:
        device: ``cuda`` (each process uses the GPU of its local rank) or ``cpu``; by default cuda if
            available.
        backend: of `torch.distributed`; by default nccl on CUDA and gloo on a CPU.
        timeout: timeout of collective operations in seconds.
        checkpoints: ``full``, as a single process would write them; or ``sharded``: each process writes its shard
            to the run folder, on shared storage. Any number of processes can resume either kind.
        dtype: dtype of gathered parameters and inputs in a forward pass; gradients are reduced in float32.
    """

    device: Literal["cuda", "cpu"] | None = None
    backend: Literal["nccl", "gloo"] | None = None
    timeout: int = field(default=600, validator=validators.gt(0))
    checkpoints: Literal["full", "sharded"] = "full"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Fsdp:
    """`torch.distributed.fsdp.fully_shard`: parameters, gradients and optimizer state are sharded over the processes.

    Each block's parameters are all-gathered before use and freed afterwards. `train.batch_size` is the total over
    all processes. Running statistics of batch norm are those of rank 0.
    """

    Config = FsdpConfig

    def __init__(self, config: FsdpConfig) -> None:
        self.config = config

    @hookimpl
    def wrap_devices(self, model: nn.Module, backbone: Backbone, config: RunConfig, ctx: Context) -> Placement:
        """Answer always; in a process that was started alone, for a look at the run and not for the run itself."""
        ranks = ctx.ranks
        device = local_device(self.config.device, ranks, "fsdp")
        if not ranks.started:
            return Placement(
                device=device,
                model=model.to(device),
                unwrap=lambda wrapped: wrapped,
                single_process_error=single_process_message("fsdp"),
            )
        check_batch_size(config, ranks)
        _check_settings(config)
        backend = init_process_group(device, ranks, self.config.backend, self.config.timeout, "fsdp")

        from ftcore.model import state_digest

        from . import ddp_module, fsdp_module

        digest = state_digest(model)
        blocks = fsdp_module.shardable_blocks(model, backbone.blocks)
        wrapped = fsdp_module.FSDPModule(model, blocks, device, self.config.dtype)
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
            sharding=Sharding(self.config.checkpoints, digest),
            note=f"FSDP over {ranks.world_size} processes ({backend}), each batch and the network split between them: "
            f"{len(blocks)} blocks, {self.config.checkpoints} checkpoints",
        )


def _check_settings(config: RunConfig) -> None:
    """Refuse what waits for one process while the others go on."""
    if config.train.on_oom == "halve":
        raise UserError(
            f"train.on_oom = 'halve' does not work with fsdp, whose forward passes synchronise all "
            f"processes ({config.origin('train.on_oom')}); use a smaller train.batch_size with a larger "
            f"train.accumulate "
            "instead"
        )
    if config.run.async_save:
        raise UserError(
            f"run.async_save does not work with fsdp, which writes a checkpoint from all processes "
            f"together ({config.origin('run.async_save')})"
        )
