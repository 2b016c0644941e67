"""A checkpoint folder that several processes write together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define
from safetensors.torch import save_file

from ftcore.distributed.dtensor import is_sharded

from .atomic import fsync
from .checkpoint import CheckpointWriter
from .sharded import local_shards, write_safetensors_streaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

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
        """Let a folder appear whole; what is captured is as it is now."""
        super().write(captured, target) if self.ranks.is_main else self._write_tensors(captured, target)

    def _write_tensors(self, captured: CapturedState, folder: Path) -> None:
        files = captured.tensors_by_file()
        if self.kind == "sharded" and captured.is_checkpoint:
            self._write_rows(files, folder)
            return
        for stem, tensors in files.items():
            write_safetensors_streaming(tensors, folder / f"{stem}.safetensors" if self.ranks.is_main else None)

    def _write_rows(self, files: dict[str, dict[str, Tensor]], folder: Path) -> None:
        self.counter += 1
        folder = Path(self.ranks.broadcast(f"aside {self.counter}", lambda: str(folder.absolute())))
        own, first = local_shards({f"{stem}/{name}": t for stem, named in files.items() for name, t in named.items()})
        mine = folder / f"rows-{self.ranks.rank:05d}.safetensors"
        save_file(own, mine, first)
        fsync(mine)
        if self.ranks.is_main:
            for stem, tensors in files.items():
                rest = {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}
                save_file(rest, folder / f"{stem}.safetensors")
        self.barrier()
