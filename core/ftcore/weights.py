"""Read a weights file into a network; read nothing that can execute code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from .backbone import HeadSlot

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin"})


def is_file(weights: str) -> bool:
    """Whether ``model.weights`` means a file, by its form."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or "\\" in weights


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pth file that holds tensors alone.

    Raises:
        UserError: missing, damaged, or holding anything but tensors by name.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise UserError(f"weights file not found: {file} (looked at {file.absolute()})")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, LookupError) as error:
        raise UserError(f"cannot read weights {file}: {error}") from None
    except UnpicklingError as error:
        raise UserError(f"weights {file} hold more than tensors, which ftcore does not load: {error}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"weights {file} are not a mapping of names to tensors")
    return state


def load_weights(model: nn.Module, file: str | Path, heads: Sequence[HeadSlot] = ()) -> None:
    """Load a weights file into a network, strictly everywhere but in its old heads, which are replaced anyway.

    Raises:
        UserError: a key is missing, strange or of another shape; the message names the first of each.
    """
    given = read_weights(Path(file))
    wanted = model.state_dict()
    roots = tuple(f"{slot.path}." for slot in heads)
    given = {key: tensor for key, tensor in given.items() if not (key.startswith(roots) and heads)}
    wanted_keys = {key for key in wanted if not (key.startswith(roots) and heads)}
    faults = _faults(given, wanted, wanted_keys)
    if faults:
        lines = "\n".join(f"  {line}" for line in faults)
        raise UserError(f"weights {file} do not fit {type(model).__name__}:\n{lines}")
    model.load_state_dict(given, strict=False)


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], keys: set[str]) -> list[str]:
    missing, strange = sorted(keys - set(given)), sorted(set(given) - keys)
    shapes = [
        f"{key} is {tuple(given[key].shape)}, the network's is {tuple(wanted[key].shape)}"
        for key in sorted(keys & set(given))
        if given[key].shape != wanted[key].shape
    ]
    found = {"missing": missing, "not in the network": strange, "of another shape": shapes}
    return [f"{len(names)} {what}: {'; '.join(names[:5])}" for what, names in found.items() if names]
