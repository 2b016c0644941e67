"""Folders of tensors and state that are written whole or not at all."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .atomic import write_dir_atomic, write_file, write_json
    from .checkpoint import latest_checkpoint, load_state, prune_checkpoints
    from .manifest import find_damage, write_manifest
    from .strict_json import to_json

__all__ = [
    "find_damage",
    "latest_checkpoint",
    "load_state",
    "prune_checkpoints",
    "to_json",
    "write_dir_atomic",
    "write_file",
    "write_json",
    "write_manifest",
]

__getattr__ = lazy(
    __name__,
    {
        "atomic": "write_dir_atomic write_file write_json",
        "checkpoint": "latest_checkpoint load_state prune_checkpoints",
        "manifest": "find_damage write_manifest",
        "strict_json": "to_json",
    },
)
