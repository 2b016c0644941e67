"""PolyLoss for ftcore: ``--plugin poly``.

torch is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from attrs import field, frozen, validators
from ftcore import Loss, hookimpl
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from ftcore import Task
    from torch import Tensor

__all__ = ["Poly", "PolyConfig", "poly_loss"]


@frozen
class PolyConfig:
    """Options of `poly`.

    Attributes:
        epsilon: factor on what the true class lacks in probability, finite and >= -1; 0 is plain cross-entropy. Above 0
            the gradient of images that are nearly right is larger, below 0 smaller.
    """

    epsilon: float = field(default=1.0, validator=[validators.ge(-1.0), validators.lt(math.inf)])


class Poly:
    """Cross-entropy whose first polynomial term has another factor: Poly-1."""

    Config = PolyConfig

    def __init__(self, config: PolyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        return Loss(partial(poly_loss, epsilon=self.config.epsilon), soft_targets=True)


def poly_loss(outputs: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """Mean over the batch of -log(p_t) + epsilon (1 - p_t), Poly-1 of Leng et al. 2022 (arXiv:2204.12511).

    p_t is the softmax probability of the true class. Of probabilities as targets, it is the mean over classes of the
    loss of each, weighted by them.

    Args:
        outputs: (N, K) float, logits.
        targets: (N,) int64, in 0..K-1, or probabilities (N, K) float.
        epsilon: >= -1.

    Returns:
        A scalar.
    """
    from torch.nn.functional import cross_entropy, one_hot

    chances = targets if targets.ndim > 1 else one_hot(targets, outputs.shape[1])
    p_t = (chances * outputs.softmax(dim=1)).sum(dim=1)
    return cross_entropy(outputs, targets) + epsilon * (1 - p_t).mean()
