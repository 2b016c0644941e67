"""Real steps of a run that are tried for a learning rate, a batch size or faster settings."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .batch_size import find_batch_size
    from .lr_finder import lr_range_test
    from .speed import find_faster_settings

__all__ = ["find_batch_size", "find_faster_settings", "lr_range_test"]

__getattr__ = lazy(
    __name__, {"batch_size": "find_batch_size", "lr_finder": "lr_range_test", "speed": "find_faster_settings"}
)
