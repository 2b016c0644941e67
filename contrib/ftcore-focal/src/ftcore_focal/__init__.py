"""Focal loss for ftcore: ``--plugin focal``.

torch is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from attrs import field, frozen, validators
from ftcore import Loss, UserError, hookimpl, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore import Task
    from torch import Tensor

__all__ = ["Focal", "FocalConfig", "focal_loss"]


@frozen
class FocalConfig:
    """Options of `focal`.

    Attributes:
        gamma: how strongly easy images are played down, finite and >= 0; 0 is plain cross-entropy.
        alpha: a factor on each class's loss: a list with one number a class, in the order of the class names, or a
            table ``{tumor = 0.75}`` where unnamed classes have 1; every number finite and > 0. None: 1 for all.
    """

    gamma: float = field(default=2.0, validator=[validators.ge(0.0), validators.lt(math.inf)])
    alpha: tuple[float, ...] | dict[str, float] | None = None


class Focal:
    """Cross-entropy that plays down what the network already knows."""

    Config = FocalConfig

    def __init__(self, config: FocalConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if task.kind != "classification":
            return None
        alpha = None if self.config.alpha is None else class_factors(self.config.alpha, task.names)
        return Loss(partial(focal_loss, gamma=self.config.gamma, alpha=alpha))


def focal_loss(outputs: Tensor, targets: Tensor, *, gamma: float, alpha: Sequence[float] | None = None) -> Tensor:
    """Mean over the batch of FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, eq. 5).

    p_t is the softmax probability of the true class; the paper writes the case of two classes.

    Args:
        outputs: (N, K) float, logits.
        targets: (N,) int64, in 0..K-1.
        gamma: >= 0.
        alpha: K numbers, or None for 1 everywhere.

    Returns:
        A scalar.
    """
    import torch
    from torch.nn.functional import cross_entropy

    negative_log_p = cross_entropy(outputs, targets, reduction="none")
    # 1 - p_t without cancellation. At exactly 0 its power has no gradient for gamma < 1, hence the floor.
    miss = -torch.expm1(-negative_log_p)
    losses = miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * negative_log_p
    if alpha is not None:
        losses = losses * losses.new_tensor(alpha)[targets]
    return losses.mean()


def class_factors(given: tuple[float, ...] | Mapping[str, float], names: tuple[str, ...]) -> list[float]:
    """Return one factor a class, in the order of `names`.

    Raises:
        UserError: wrong length, a class that does not exist, or a factor that is not a positive number.
    """
    if isinstance(given, tuple):
        if len(given) != len(names):
            raise UserError(f"focal.alpha has {len(given)} numbers for {len(names)} classes ({', '.join(names)})")
        given = dict(zip(names, given, strict=True))
    for name, factor in given.items():
        if name not in names:
            raise UserError(f"focal.alpha: no class {name!r}{nearest(name, names)}; classes: {', '.join(names)}")
        if not (factor > 0 and math.isfinite(factor)):
            raise UserError(f"focal.alpha: the number of {name!r} must be finite and > 0, got {factor}")
    return [given.get(name, 1.0) for name in names]
