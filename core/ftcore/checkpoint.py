"""Checkpoints: folders that appear whole or not at all; tensors in safetensors, everything else in JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
from attrs import define
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model

from .errors import UserError
from .packing import pack, unpack
from .spread import Kept, Stored, is_spread, shares, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from .ranks import Ranks

FORMAT = 1
"""Version of the files that a run leaves; a reader refuses another."""

MANIFEST = "manifest.json"
_ROOM = 1.1
"""Of what a checkpoint takes, for what the file system takes beside it."""


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make `target` appear whole: write it aside, fsync every file, rename, fsync the parent.

    A folder that is already there is replaced; after a process was killed in between, `standing` finds the old one.
    """
    mark = uuid.uuid4().hex[:8]
    aside, old = (target.with_name(f".{kind}-{target.name}-{mark}") for kind in ("new", "old"))
    make_folder(target.parent)
    aside.mkdir()
    try:
        write(aside)
        for file in aside.iterdir():
            file.chmod(aside.stat().st_mode & 0o666)  # safetensors makes files for the owner alone
            _sync(file)
        _sync(aside)
        _rename(aside, target, old)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, that stays after a loss of power."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _rename(aside: Path, target: Path, old: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    target.rename(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def standing(target: Path) -> Path:
    """Return the folder that `write_folder` last made whole.

    `target` itself; or the one before it, where a process was killed between the renames that replace it.
    """
    return target if target.exists() else next(target.parent.glob(f".old-{target.name}-*"), target)


def tidy(folder: Path) -> None:
    """Finish or remove what a process that was killed has left in a folder."""
    for old in folder.glob(".old-*"):
        target = folder / old.name.removeprefix(".old-").rpartition("-")[0]
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for rest in [*folder.glob(".new-*"), *folder.glob(".gone-*")]:
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def to_json(value: Any, indent: int | None = None) -> str:
    """Spell plain data as JSON; a number that is not finite becomes null, anything but plain data is an error."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write plain data to a file."""
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


class Copied:
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


def save(target: Path, networks: Mapping[str, nn.Module | Copied], state: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        target: the folder.
        networks: ``model`` and perhaps ``average``; parameters and buffers.
        state: see `ftcore.packing.pack`.

    Raises:
        UserError: there is no room.
        OSError: the system refuses; what was there stays.
    """
    saving(networks, state)(target)


def saving(networks: Mapping[str, nn.Module | Copied], state: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return what writes a checkpoint of a state as it is now; of networks as they are then, unless they are copied."""
    tensors: dict[str, Tensor] = {}
    plain = pack(state, "state", tensors)

    def write(aside: Path) -> None:
        for name, network in networks.items():
            save_model(cast("nn.Module", network), str(aside / f"{name}.safetensors"))
        save_file(tensors, aside / "state.safetensors")
        write_json(aside / "state.json", plain)
        write_manifest(aside)

    def save(target: Path) -> None:
        _check_room(target, [*tensors.values(), *(t for n in networks.values() for t in n.state_dict().values())])
        write_folder(target, write)

    return save


@define
class Together:
    """How the processes of a run write a checkpoint of tensors that are spread over them.

    Attributes:
        kind: ``full``, the files that one process would write; or ``sharded``, where each writes what it has.
        ranks: the processes.
        meet: waits for all.
        turn: how many were written.
    """

    kind: str
    ranks: Ranks
    meet: Callable[[], object]
    turn: int = 0

    def saving(self, networks: Mapping[str, nn.Module], state: Mapping[str, Any]) -> Callable[[Path], None]:
        """Return what writes a checkpoint of a state as it is then; to be called by all processes."""
        packed: dict[str, Tensor] = {}
        plain = pack(state, "state", packed)
        tensors = {**{name: network.state_dict() for name, network in networks.items()}, "state": packed}

        def write(aside: Path) -> None:
            self._write(tensors, aside)
            write_json(aside / "state.json", plain)
            write_manifest(aside)

        def save(target: Path) -> None:
            if self.ranks.leads:
                _check_room(target, [tensor for named in tensors.values() for tensor in named.values()])
                write_folder(target, write)
            else:
                self._write(tensors, target)

        return save

    def stream(self, network: nn.Module, file: Path) -> None:
        """Write the whole network into one file; to be called by all processes."""
        stream(network.state_dict(), file if self.ranks.leads else None)

    def _write(self, tensors: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
        """Write the tensor files of a checkpoint into a folder, which the first process names."""
        if self.kind == "full":
            for stem, named in tensors.items():
                stream(named, folder / f"{stem}.safetensors" if self.ranks.leads else None)
            return
        self.turn += 1
        folder = Path(self.ranks.told(f"aside {self.turn}", lambda: str(folder.absolute())))
        own, first = shares({f"{stem}/{name}": t for stem, named in tensors.items() for name, t in named.items()})
        mine = folder / f"rows-{self.ranks.rank:05d}.safetensors"
        save_file(own, mine, first)
        _sync(mine)
        if self.ranks.leads:
            for stem, named in tensors.items():
                rest = {name: tensor for name, tensor in named.items() if not is_spread(tensor)}
                save_file(rest, folder / f"{stem}.safetensors")
        self.meet()


def write_manifest(folder: Path) -> None:
    """Say of each file of a checkpoint what it must be when it is read again."""
    files = {file.name: _identity(file) for file in folder.iterdir() if file.name != MANIFEST}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn what the system says to writing into an error that names the place and the room that is left.

    Raises:
        UserError: what was to be written is whole or not there, and what was there before stays.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save in {path}: {error}; {_left(path)}") from None


def _check_room(target: Path, tensors: list[Any]) -> None:
    need = int(_ROOM * sum(tensor.numel() * tensor.element_size() for tensor in tensors)) + 100_000
    if need > shutil.disk_usage(_existing(target)).free:
        raise UserError(f"cannot save {target}: it needs {need:,} bytes; {_left(target)}")


def _left(path: Path) -> str:
    return f"{shutil.disk_usage(_existing(path)).free:,} bytes are free on its disk"


def _existing(path: Path) -> Path:
    return next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())


def _identity(file: Path) -> dict[str, Any]:
    """Say what a file must be when it is read again."""
    if not file.is_file():
        raise OSError(f"{file} is no file")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint; empty if every file is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']!r}; this ftcore reads format {FORMAT}"
        files = manifest["files"].items()
        wrong = [name for name, wanted in files if Path(name).name != name or _identity(folder / name) != wanted]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(wrong)} is not what was written" if wrong else ""


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint after an optimizer step is."""
    return folder / f"step-{step:08d}"


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder, None if there is none; say which are damaged.

    Raises:
        UserError: all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for found in sorted(folder.glob("step-*"), reverse=True):
        reason = damage(found)
        if not reason:
            for path, why in damaged:
                structlog.get_logger().warning(f"{path} is damaged, {found.name} is used", reason=why)
            return found
        damaged.append((found, reason))
    if damaged:
        raise UserError("\n".join(["no checkpoint is whole", *(f"  {path}: {why}" for path, why in damaged)]))
    return None


def read(folder: Path, *, later: bool = False) -> dict[str, Any]:
    """Return the state that `save` was given.

    Args:
        folder: the checkpoint.
        later: whether tensors of the optimizer are `Kept`, to be read where it is known who has which rows.

    Raises:
        UserError: it is not what `save` writes.
    """
    try:
        plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = Stored(folder, "state")
        state: dict[str, Any] = {key: unpack(value, tensors) for key, value in plain.items() if key != "optimizer"}
        kept: Any = {name: Kept(tensors, name) for name in tensors} if later else tensors
        state["optimizer"] = unpack(plain.get("optimizer"), kept)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot read {folder}: {type(error).__name__}: {error}") from None
    return state


def is_sharded(folder: Path) -> bool:
    """Whether each process has written its own rows into a checkpoint."""
    return any(folder.glob("rows-*.safetensors"))


def set_aside(newest: Path) -> None:
    """Rename the checkpoints behind the newest whole one, all damaged: they can be looked at, and count no more."""
    for other in newest.parent.glob("step-*"):
        if other.name > newest.name:
            aside = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)


def rotate(newest: Path, keep: int, best: Path) -> None:
    """Remove all checkpoints but the newest `keep` and the best."""
    for other in sorted(newest.parent.glob("step-*"))[:-keep]:
        if other != best:
            gone = other.with_name(f".gone-{other.name}")
            other.rename(gone)  # first, for a folder is not removed at once
            shutil.rmtree(gone)
