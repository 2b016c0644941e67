"""Checkpoints: folders that appear whole or not at all; tensors in safetensors, everything else in JSON."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model

from ftcore.errors import UserError

from . import atomic
from .manifest import find_damage, write_manifest
from .serialization import deserialize, serialize
from .sharded import LazyTensor, ShardedReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


class CpuCopy:
    """The tensors of a network as they are now, on the CPU; tied ones stay tied."""

    def __init__(self, network: nn.Module) -> None:
        copies: dict[tuple[object, ...], Tensor] = {}
        self.tensors = {name: _copied(tensor, copies) for name, tensor in network.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return them, as the network would."""
        return dict(self.tensors)


def _copied(tensor: Tensor, copies: dict[tuple[object, ...], Tensor]) -> Tensor:
    same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if same not in copies or not tensor.numel():
        copies[same] = tensor.detach().to("cpu", copy=True)
    return copies[same]


@frozen(eq=False)
class CapturedState:
    """What goes into a folder, as it was at one moment.

    Attributes:
        tensors: stem of a safetensors file -> tensors by name, or a network with parameters and buffers.
        plain: stem of a JSON file -> plain data.
        is_checkpoint: whether a run goes on from it: its files are listed with their checksums, and may be sharded.
    """

    tensors: Mapping[str, dict[str, Tensor] | nn.Module | CpuCopy]
    plain: Mapping[str, Any]
    is_checkpoint: bool = True

    def tensors_by_file(self) -> dict[str, dict[str, Tensor]]:
        """Return stem of a safetensors file -> name -> tensor."""
        return {stem: held if isinstance(held, dict) else held.state_dict() for stem, held in self.tensors.items()}


def capture(networks: Mapping[str, nn.Module], state: Mapping[str, Any], *, copy: bool = False) -> CapturedState:
    """Take what a checkpoint holds as it is now.

    Args:
        networks: ``model`` and perhaps ``average``.
        state: see `ftcore.checkpoints.serialization.serialize`.
        copy: whether networks may change before they are written; else they are not copied.
    """
    tensors: dict[str, Tensor] = {}
    plain = serialize(state, "state", tensors)
    taken = {name: CpuCopy(network) if copy else network for name, network in networks.items()}
    return CapturedState({**taken, "state": tensors}, {"state": plain})


class CheckpointWriter:
    """Writes what a run saves, where one process has all of it."""

    def write(self, captured: CapturedState, target: Path) -> None:
        """Let a folder appear whole.

        Raises:
            UserError: there is no room for a checkpoint.
            OSError: the system refuses; what was there stays.
        """
        if captured.is_checkpoint:
            atomic.check_room(target, [t for named in captured.tensors_by_file().values() for t in named.values()])
        atomic.write_dir_atomic(target, partial(self._write_files, captured))

    def _write_files(self, captured: CapturedState, folder: Path) -> None:
        self._write_tensors(captured, folder)
        for stem, plain in captured.plain.items():
            atomic.write_json(folder / f"{stem}.json", plain)
        if captured.is_checkpoint:
            write_manifest(folder)

    def _write_tensors(self, captured: CapturedState, folder: Path) -> None:
        for stem, held in captured.tensors.items():
            file = folder / f"{stem}.safetensors"
            if isinstance(held, dict):
                save_file(held, file)
            else:
                save_model(cast("nn.Module", held), str(file))


def checkpoint_dir(folder: Path, step: int) -> Path:
    """Return where the checkpoint after an optimizer step is."""
    return folder / f"step-{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder, None if there is none; say which are damaged.

    Raises:
        UserError: all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for found in sorted(folder.glob("step-*"), reverse=True):
        reason = find_damage(found)
        if not reason:
            for path, why in damaged:
                structlog.get_logger().warning(f"{path} is damaged; using {found.name}", reason=why)
            return found
        damaged.append((found, reason))
    if damaged:
        raise UserError("\n".join(["no complete checkpoint", *(f"  {path}: {why}" for path, why in damaged)]))
    return None


def load_state(folder: Path, *, later: bool = False) -> dict[str, Any]:
    """Return the state that `capture` was given.

    Args:
        folder: the checkpoint.
        later: whether tensors of the optimizer are `LazyTensor`, to be read where it is known who has which rows.

    Raises:
        UserError: it is not what a `CheckpointWriter` writes.
    """
    try:
        plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = ShardedReader(folder, "state")
        state: dict[str, Any] = {key: deserialize(value, tensors) for key, value in plain.items() if key != "optimizer"}
        kept: Any = {name: LazyTensor(tensors, name) for name in tensors} if later else tensors
        state["optimizer"] = deserialize(plain.get("optimizer"), kept)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot read {folder}: {type(error).__name__}: {error}") from None
    return state


def is_sharded(folder: Path) -> bool:
    """Whether each process has written its own rows into a checkpoint."""
    return any(folder.glob("rows-*.safetensors"))


def quarantine_newer(newest: Path) -> None:
    """Rename the checkpoints behind the newest whole one, all damaged: they can be looked at, and count no more."""
    for other in newest.parent.glob("step-*"):
        if other.name > newest.name:
            aside = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)


def prune_checkpoints(newest: Path, keep: int, best: Path) -> None:
    """Remove all checkpoints but the newest `keep` and the best."""
    for other in sorted(newest.parent.glob("step-*"))[:-keep]:
        if other != best:
            gone = other.with_name(f".gone-{other.name}")
            other.rename(gone)  # first, for a folder is not removed at once
            shutil.rmtree(gone)
