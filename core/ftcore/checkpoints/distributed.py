"""A checkpoint folder that several processes write together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define
from safetensors.torch import save_file

from ftcore.distributed.dtensor import is_sharded

from .atomic import fsync
from .checkpoint import CheckpointWriter
from .sharded import local_shards, write_safetensors_streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from ftcore.distributed.ranks import ProcessInfo

    from .checkpoint import CapturedState


@define
class DistributedWriter(CheckpointWriter):
    """Writes what a run saves, where its processes have it together; called by all, of which the first says where.

    Attributes:
        kind: ``full``, the files that one process would write; or ``sharded``, where each writes what it has.
        ranks: the processes.
        barrier: waits for all.
        counter: how many were written.
    """

    kind: str
    ranks: ProcessInfo
    barrier: Callable[[], object]
    counter: int = 0

    def write(self, captured: CapturedState, target: Path) -> None:
        """Write a checkpoint into a folder."""
        super().write(captured, target) if self.ranks.is_main else self.write_tensors(captured, target)

    def write_model(self, network: nn.Module, description: Mapping[str, Any], target: Path) -> None:
        """Write a network, and what `predict` must know of it, into a folder."""
        super().write_model(network, description, target) if self.ranks.is_main else self.write_network(network, target)

    def write_network(self, network: nn.Module, file: Path) -> None:
        """Write the whole network into one file."""
        write_safetensors_streaming(network.state_dict(), file if self.ranks.is_main else None)

    def write_tensors(self, captured: CapturedState, folder: Path) -> None:
        """Write the tensor files of a checkpoint, which is a state as it is now."""
        files = captured.tensors_by_file()
        if self.kind == "full":
            for stem, tensors in files.items():
                write_safetensors_streaming(tensors, folder / f"{stem}.safetensors" if self.ranks.is_main else None)
            return
        self.counter += 1
        folder = Path(self.ranks.broadcast(f"aside {self.counter}", lambda: str(folder.absolute())))
        own, first = local_shards({f"{stem}/{name}": t for stem, named in files.items() for name, t in named.items()})
        mine = folder / f"rows-{self.ranks.rank:05d}.safetensors"
        save_file(own, mine, first)
        fsync(mine)
        if self.ranks.is_main:
            for stem, tensors in files.items():
                rest: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}
                save_file(rest, folder / f"{stem}.safetensors")
        self.barrier()
