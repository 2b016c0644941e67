"""Read a weights file into a network; read nothing that can execute code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from ftcore.types.model import HeadSlot


SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin"})


FIXED_TORCH = (2, 10)
"""Version of torch from which ``weights_only`` is without CVE-2026-24747."""


def is_weights_file(weights: str) -> bool:
    """Whether ``model.weights`` means a file, by its form."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or "\\" in weights


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pth file that holds tensors alone; nothing in either is executed.

    A .pth file is first turned into the other by `ftcore.model.safe_unpickle`, in a process of its own and within
    limits.

    Raises:
        UserError: missing, damaged, or holding anything but tensors by name; or a .pth file where torch is older than
            `FIXED_TORCH`.
    """
    if not file.is_file():
        raise UserError(f"weights file not found: {file} (looked at {file.absolute()})")
    if file.suffix == ".safetensors":
        return _read(file, file)
    _check_torch(metadata.version("torch"), file)
    with TemporaryDirectory(prefix="ftcore-") as folder:
        target = Path(folder) / "weights.safetensors"
        command = [
            sys.executable,
            "-P",
            "-W",
            "ignore",
            "-m",
            "ftcore.model.safe_unpickle",
            str(file.absolute()),
            str(target),
        ]
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise UserError(f"weights {file} {_reason(done)}\n{_HOW_TO_CONVERT}")
        return _read(target, file)


def _check_torch(version: str, file: Path) -> None:
    """Refuse pickled weights where they could execute code in spite of ``weights_only`` (CVE-2026-24747)."""
    major, minor = (int(re.sub(r"\D.*", "", part) or 0) for part in f"{version}.0".split(".")[:2])
    if (major, minor) < FIXED_TORCH:
        fixed = ".".join(map(str, FIXED_TORCH))
        raise UserError(
            f"weights {file} are pickled, and with torch {version} such a file can execute code (CVE-2026-24747): "
            f"pip install 'torch>={fixed}', or use a .safetensors file\n{_HOW_TO_CONVERT}"
        )


_HOW_TO_CONVERT = (
    "if you trust the file, save only its tensors: "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)


def _read(file: Path, given: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(f"cannot read weights {given}: {error}") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"cannot be read: the reader process was ended by {signal.Signals(-done.returncode).name}"
    return done.stdout or f"cannot be read: {(done.stderr.splitlines() or ['no reason given'])[-1]}"


def load_weights(model: nn.Module, file: str | Path, heads: Sequence[HeadSlot] = ()) -> None:
    """Load a weights file into a network, strictly everywhere but in its old heads, which are replaced anyway.

    Raises:
        UserError: a key is missing, unexpected or of another shape, or a parameter holds a number that is not
            finite; the message names the first of each.
    """
    given = read_weights(Path(file))
    wanted = model.state_dict()
    roots = tuple(f"{slot.path}." for slot in heads)
    given = {key: tensor for key, tensor in given.items() if not (key.startswith(roots) and heads)}
    wanted_keys = {key for key in wanted if not (key.startswith(roots) and heads)}
    faults = _key_mismatches(given, wanted, wanted_keys) | _not_finite(
        given, {name for name, _ in model.named_parameters()}
    )
    if any(faults.values()):
        lines = "\n".join(f"  {len(names)} {what}: {'; '.join(names[:5])}" for what, names in faults.items() if names)
        raise UserError(f"weights {file} do not fit {type(model).__name__}:\n{lines}")
    model.load_state_dict(_with_versions(given, model), strict=False)


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what a safetensors file holds of a network, in place and strictly; shared tensors are there under one name.

    Raises:
        RuntimeError: a name is missing, unexpected or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    shared = {id(own[name]): tensor for name, tensor in state.items() if name in own}
    others = {name: shared[id(tensor)] for name, tensor in own.items() if id(tensor) in shared}
    model.load_state_dict(_with_versions({**others, **state}, model))


def _with_versions(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Add the versions of modules' formats, which safetensors does not keep and MNASNet asks for: the model's own."""
    versioned: Any = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", {})  # noqa: SLF001 - where torch keeps them
    return versioned  # type: ignore[no-any-return]


def _key_mismatches(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], keys: set[str]) -> dict[str, list[str]]:
    missing, strange = sorted(keys - set(given)), sorted(set(given) - keys)
    shapes = [
        f"{key} is {tuple(given[key].shape)}, the network's is {tuple(wanted[key].shape)}"
        for key in sorted(keys & set(given))
        if given[key].shape != wanted[key].shape
    ]
    return {"missing": missing, "not in the network": strange, "different shape": shapes}


def _not_finite(given: Mapping[str, Tensor], parameters: set[str]) -> dict[str, list[str]]:
    return {"not finite": sorted(name for name in parameters & set(given) if not given[name].float().isfinite().all())}
