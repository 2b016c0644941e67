"""Losses that are metrics of a batch: soft F1 and soft Dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Loss, hookimpl
from ftcore_plugins.tasks import Classification, Multilabel

if TYPE_CHECKING:
    from ftcore import Context, RunConfig, Task


@frozen
class OverlapConfig:
    """Options of `soft_f1` and `soft_dice`.

    Attributes:
        average: ``"macro"``, the mean of the scores per class or label; or ``"micro"``, one score over all of
            them.
        eps: added to numerator and denominator, > 0: a class that is neither present in a batch nor predicted
            scores 1. Larger values smooth.
    """

    average: Literal["macro", "micro"] = "macro"
    eps: float = field(default=1e-6, validator=validators.gt(0.0))


class SoftF1:
    """1 - F1, counted in probabilities, with F1 = 2 TP / (2 TP + FP + FN) of each class or label over the batch.

    Benedict et al. 2021 (arXiv:2108.10566), without the steeper sigmoid. It is computed per batch, not per image,
    so a small batch or `train.accumulate` changes it; over an epoch, the values of the batches are averaged.
    """

    Config = OverlapConfig
    squared = False

    def __init__(self, config: OverlapConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task, config: RunConfig, ctx: Context) -> Loss | None:
        """Answer for classification and for several labels."""
        if not isinstance(task, Classification | Multilabel):
            return None
        from .modules import SoftF1DiceLoss

        if config.train.accumulate > 1:
            ctx.log.warning(
                "the loss is computed per micro-batch and averaged, which differs from its value over all images of a "
                "step",
                accumulate=config.train.accumulate,
                batch_size=config.train.batch_size,
            )
        exclusive, micro = isinstance(task, Classification), self.config.average == "micro"
        loss = SoftF1DiceLoss(squared=self.squared, exclusive=exclusive, micro=micro, eps=self.config.eps)
        return Loss(loss, soft_targets=True)


class SoftDice(SoftF1):
    """1 - the Dice coefficient of each class or label over the batch, 2 sum(p y) / (sum(p^2) + sum(y^2)).

    Milletari et al. 2016 (arXiv:1606.04797), section 3, with images for voxels. As `soft_f1`, no mean over images.
    """

    squared = True
