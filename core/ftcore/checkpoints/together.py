"""A checkpoint folder that several processes write together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define
from safetensors.torch import save_file

from ftcore.distributed.dtensor import is_sharded

from .atomic import _check_room, _sync, write_dir_atomic, write_json
from .manifest import write_manifest
from .serialization import serialize
from .sharded import local_shards, write_safetensors_streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from ftcore.distributed.ranks import ProcessInfo


@define
class DistributedCheckpoint:
    """How the processes of a run write a checkpoint of tensors that are spread over them.

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

    def saving(self, networks: Mapping[str, nn.Module], state: Mapping[str, Any]) -> Callable[[Path], None]:
        """Return what writes a checkpoint of a state as it is then; to be called by all processes."""
        packed: dict[str, Tensor] = {}
        plain = serialize(state, "state", packed)
        tensors = {**{name: network.state_dict() for name, network in networks.items()}, "state": packed}

        def write(aside: Path) -> None:
            self._write(tensors, aside)
            write_json(aside / "state.json", plain)
            write_manifest(aside)

        def save(target: Path) -> None:
            if self.ranks.is_main:
                _check_room(target, [tensor for named in tensors.values() for tensor in named.values()])
                write_dir_atomic(target, write)
            else:
                self._write(tensors, target)

        return save

    def stream(self, network: nn.Module, file: Path) -> None:
        """Write the whole network into one file; to be called by all processes."""
        write_safetensors_streaming(network.state_dict(), file if self.ranks.is_main else None)

    def _write(self, tensors: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
        """Write the tensor files of a checkpoint into a folder, which the first process names."""
        if self.kind == "full":
            for stem, named in tensors.items():
                write_safetensors_streaming(named, folder / f"{stem}.safetensors" if self.ranks.is_main else None)
            return
        self.counter += 1
        folder = Path(self.ranks.broadcast(f"aside {self.counter}", lambda: str(folder.absolute())))
        own, first = local_shards({f"{stem}/{name}": t for stem, named in tensors.items() for name, t in named.items()})
        mine = folder / f"rows-{self.ranks.rank:05d}.safetensors"
        save_file(own, mine, first)
        _sync(mine)
        if self.ranks.is_main:
            for stem, named in tensors.items():
                rest = {name: tensor for name, tensor in named.items() if not is_sharded(tensor)}
                save_file(rest, folder / f"{stem}.safetensors")
        self.barrier()
