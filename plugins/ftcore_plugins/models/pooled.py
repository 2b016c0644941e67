"""A classifier for encoders that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Pooled(nn.Module):
    """Images -> mean of an encoder's tokens (N, L, C) or feature map (N, C, H, W) -> outputs (N, K)."""

    def __init__(self, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode, average, classify."""
        found = self.encoder(images)
        outputs: Tensor = self.head(found.mean((2, 3)) if found.ndim == 4 else found.mean(1))
        return outputs
