"""Binary cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from ftcore import Loss, hookimpl

from .cross_entropy import SHARE, class_counts, class_table, per_class_values

if TYPE_CHECKING:
    from ftcore import Context, Task


@frozen
class BinaryCrossEntropyConfig:
    """Options of `bce`.

    Attributes:
        positive: factor on the loss of a label that is there: ``"equal"`` (1), ``"balanced"`` (images without the label
            / images with it, so that both sides weigh the same), or a table ``{rare = 10}`` where unnamed labels have
            1; every factor > 0. For classes likewise: the class of the image is there, the others are not.
        label_smoothing: share of each target that is spread evenly, in [0, 1): of a label over there and not there, of
            a class over all classes.
    """

    positive: Literal["equal", "balanced"] | dict[str, float] = "equal"
    label_smoothing: float = field(default=0.0, validator=SHARE)


class BinaryCrossEntropy:
    """`torch.nn.BCEWithLogitsLoss`, the mean over images and labels; of classes too, if named, each against the rest.

    Wightman et al. 2021 (arXiv:2110.00476) train ImageNet with it. Probabilities of classes that `predict` shows are
    those of a softmax all the same, so they are no estimates of how often each is right.
    """

    Config = BinaryCrossEntropyConfig

    def __init__(self, config: BinaryCrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task, ctx: Context) -> Loss | None:
        """Answer for several labels; for classification only if it was named, for there it is no default."""
        if task.kind == "regression" or (task.kind == "classification" and not ctx.named):
            return None
        from .modules import BinaryCrossEntropyLoss

        factors = self._factors(task)
        among = 2 if task.kind == "multilabel" else task.outputs
        loss = BinaryCrossEntropyLoss(factors, self.config.label_smoothing, among)
        tables = () if self.config.positive == "equal" else (class_table("bce", task, "factor", factors),)
        return Loss(loss, tables=tables, soft_targets=True)

    def _factors(self, task: Task) -> list[float]:
        given = self.config.positive
        if given == "equal":
            return [1.0] * task.outputs
        if given == "balanced":
            images = sum(task.counts) if task.kind == "classification" else task.images
            return [(images - count) / count or 1.0 for count in class_counts("bce.positive", task)]
        return per_class_values("bce.positive", given, task)
