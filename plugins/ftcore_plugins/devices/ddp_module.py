"""A network that several processes train together, and what they exchange."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor


_TAKEN = inspect.signature(DistributedDataParallel.__init__).parameters

_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _TAKEN else "broadcast_buffers": False  # before torch 2.15
}


class RewrappingDDP(nn.Module):
    """A network that is wrapped again whenever its trainable parameters change, as a wrapper reads them only once.

    Attributes:
        network: the network.
        find_unused_parameters: as of `DistributedDataParallel`.
    """

    def __init__(self, network: nn.Module, *, find_unused_parameters: bool) -> None:
        super().__init__()
        self.network = network
        self.find_unused_parameters = find_unused_parameters
        self._wrapped: list[DistributedDataParallel] = []  # in a list, so as not to be a module within this one
        self._learning: list[nn.Parameter] = []
        self._others: list[RewrappingDDP] = []
        self.train(network.training)

    def train(self, mode: bool = True) -> RewrappingDDP:  # noqa: FBT001, FBT002 - as `nn.Module` has it
        """Set the mode, as of any module; wrap the network before it trains."""
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if mode and list(map(id, learning)) != list(map(id, self._learning)):
            self.release()  # first, for a wrapper has hooks on the parameters
            self._learning = learning
            self._wrapped.append(
                DistributedDataParallel(
                    self.network,
                    init_sync=False,  # all began with the same weights, which was checked
                    **_KEEP_BUFFERS,  # a second pass would write what the first has kept for its gradient
                    find_unused_parameters=self.find_unused_parameters,
                    gradient_as_bucket_view=True,
                )
            )
        super().train(mode)
        return self

    def release(self) -> None:
        """Leave the parameters to others, until this trains again."""
        self._wrapped.clear()
        self._learning = []
        for other in self._others:
            other.release()

    def around(self, module: nn.Module) -> RewrappingDDP:
        """Wrap another module with the same parameters, in the place of this one and of others before."""
        self.release()
        self._others = [RewrappingDDP(module, find_unused_parameters=self.find_unused_parameters)]
        return self._others[0]

    def forward(self, images: Tensor) -> Any:
        """Return what the network does; where it trains, its gradients are then averaged over the processes."""
        network = self._wrapped[0] if self.training else self.network
        return network(images)

    def no_sync(self) -> AbstractContextManager[None]:
        """Leave the gradients of a pass to be averaged with those of the next."""
        return self._wrapped[0].no_sync()


def all_reduce(amount: Any, device: torch.device) -> Tensor:
    """Tensor or number -> its sum over all processes."""
    total = amount.detach().clone() if isinstance(amount, torch.Tensor) else torch.tensor(amount, device=device)
    distributed.all_reduce(total)
    return total


def all_gather(rows: Tensor) -> Tensor:
    """Tensor -> (world_size, ...), those of all processes."""
    found = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, rows.contiguous())
    return torch.stack(found)


def broadcast_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first."""
    for buffer in network.buffers():
        distributed.broadcast(buffer, src=0)


def convert_sync_batchnorm(network: nn.Module) -> None:
    """Put a batch norm over all processes in the place of each."""
    from timm.layers import convert_sync_batchnorm

    convert_sync_batchnorm(network)
