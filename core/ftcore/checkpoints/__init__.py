"""Folders of tensors and state that are written whole or not at all."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .atomic import to_json, write_dir_atomic, write_file, write_json
    from .checkpoint import latest_checkpoint, load_state, prune_checkpoints
    from .manifest import find_damage, write_manifest

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
        "atomic": "to_json write_dir_atomic write_file write_json",
        "checkpoint": "latest_checkpoint load_state prune_checkpoints",
        "manifest": "find_damage write_manifest",
    },
)
