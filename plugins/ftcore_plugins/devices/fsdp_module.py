"""A network whose parameters are spread over several processes."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from ftcore import UserError
from ftcore.distributed import local_tensor
from ftcore.model import named_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor


def shardable_blocks(network: nn.Module, layers: Mapping[str, int]) -> list[str]:
    """Return the paths of the modules that are gathered one by one: the largest that lie within one layer.

    Args:
        network: the network.
        layers: see `ftcore.Backbone`.
    """
    numbers = {name: layers.get(name, -1) for name, _ in network.named_parameters()}
    found: list[str] = []
    waiting = [name for name, _ in network.named_children()]
    while waiting:
        path = waiting.pop(0)
        module = network.get_submodule(path)
        inside = {numbers[f"{path}.{name}"] for name, _ in module.named_parameters() if f"{path}.{name}" in numbers}
        children = [f"{path}.{name}" for name, _ in module.named_children()]
        if children and len(inside) == 1 and not _is_list(module):
            found.append(path)
        elif inside:
            waiting = children + waiting
    return found


def _is_list(module: nn.Module) -> bool:
    """Whether it is never called itself."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


class FSDPModule(nn.Module):
    """A network that is sharded over processes, by rows of each parameter.

    Attributes:
        network: the network; a copy of it is spread in the same way.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], device: torch.device, dtype: str) -> None:
        super().__init__()
        _check_shared(network)
        empty = deepcopy(network).to("meta")
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        kind = getattr(torch, dtype)
        policy = MixedPrecisionPolicy(*((None, None) if dtype == "float32" else (kind, torch.float32)))

        def spread(whole: nn.Module) -> None:
            for norm in whole.modules() if dtype != "float32" else ():
                if isinstance(norm, _BatchNorm) and norm.affine:  # whose running statistics are in float32
                    fully_shard(norm, mesh=mesh)
            for path in paths:
                fully_shard(whole.get_submodule(path), mesh=mesh, mp_policy=policy)
            # the outermost too, or what lies in it would be whole between the passes
            fully_shard(whole, mesh=mesh, mp_policy=policy, reshard_after_forward=True)

        def copied(self: nn.Module, _memo: Any) -> nn.Module:
            copy = deepcopy(empty)
            spread(copy)
            copy.to_empty(device=device)
            _fill(copy, self)
            let_copy(copy)
            return copy

        def let_copy(spreading: nn.Module) -> None:
            """Let `copy.deepcopy` work, which averages of a network are made by; torch's refuses."""
            kind = type(spreading)
            spreading.__class__ = type(kind.__name__, (kind,), {"__deepcopy__": copied})

        try:
            spread(network.to(device))
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"fsdp cannot shard this network: {error}") from error
        let_copy(network)
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Return what the network does."""
        return self.network(images)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Leave the gradients of a pass to be averaged with those of the next."""
        network: Any = self.network
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)


def _check_shared(network: nn.Module) -> None:
    """Refuse a parameter that has several places, which would be spread apart."""
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if twice := sorted(names - named_tensors(network).keys()):
        raise UserError(f"fsdp cannot shard a network with shared parameters: {', '.join(twice[:5])}; ddp can")


@torch.no_grad()
def _fill(copy: nn.Module, network: nn.Module) -> None:
    """Give a copy the content of a network that is spread in the same way, and what of it learns."""
    for new, old in zip(copy.parameters(), network.parameters(), strict=True):
        local_tensor(new).copy_(local_tensor(old))
        new.requires_grad_(old.requires_grad)
    for buffer, other in zip(copy.buffers(), network.buffers(), strict=True):
        buffer.copy_(other)
