"""Norm layers and their running statistics."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def preserve_running_stats(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are, in train mode too: what is inside updates copies of them."""
    modules: list[Any] = list(model.modules())
    buffers = [(module, name, buffer) for module in modules for name, buffer in module.named_buffers(recurse=False)]
    own = [(norm, name, buffer) for norm, name, buffer in buffers if name.startswith(("running_", "num_batches"))]
    for norm, name, buffer in own:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in own:
            setattr(norm, name, buffer)
