"""Binary cross-entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from ftcore import Loss, hookimpl
from ftcore_plugins.tasks import Classification, Multilabel

from .cross_entropy import SHARE, check_smoothing_weights, class_counts, class_table, favours_rare, per_class_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Context, Task


@frozen
class BinaryCrossEntropyConfig:
    """Options of `bce`.

    Attributes:
        positive: weight of positive labels (``pos_weight``): ``"equal"`` (1), ``"balanced"`` (images without the label
            / images with it, so that both sides weigh the same), or a table ``{rare = 10}`` where other labels have
            1; every weight > 0. For classes, the class of the image is the positive label.
        label_smoothing: fraction of each target to spread evenly, in [0, 1): for labels over present and absent, for
            a class over all classes.
        smoothing_weights: weight of the smoothed part: ``"true_class"``, that of the true label, so that an absent
            label cannot win by smoothing; or ``"torch"``, `positive` wherever the smoothed target is above 0, as
            `torch.nn.BCEWithLogitsLoss(pos_weight=...)` on smoothed targets.
    """

    positive: Literal["equal", "balanced"] | dict[str, float] = "equal"
    label_smoothing: float = field(default=0.0, validator=SHARE)
    smoothing_weights: Literal["true_class", "torch"] = "true_class"

    def __attrs_post_init__(self) -> None:
        check_smoothing_weights(self.smoothing_weights, self.label_smoothing)


class BinaryCrossEntropy:
    """`torch.nn.BCEWithLogitsLoss`, the mean over images and labels; for classes one-vs-rest, if enabled.

    Wightman et al. 2021 (arXiv:2110.00476) train ImageNet with it. `predict` shows softmax
    probabilities for classes all the same, which are not calibrated.
    """

    Config = BinaryCrossEntropyConfig

    def __init__(self, config: BinaryCrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task, ctx: Context) -> Loss | None:
        """Answer for several labels; for classification only if it was named, for there it is no default."""
        if not isinstance(task, Multilabel) and not (isinstance(task, Classification) and ctx.named):
            return None
        from .modules import BinaryCrossEntropyLoss

        factors, smoothing = self._factors(task), self.config.label_smoothing
        among, as_torch = 2 if isinstance(task, Multilabel) else task.outputs, self.config.smoothing_weights == "torch"
        loss = BinaryCrossEntropyLoss(factors, smoothing, among, smooth_as_torch=as_torch)
        if as_torch and (how := how_smoothing_inverts(task.names, factors, smoothing, among)):
            ctx.log.warning(how)
        tables = () if self.config.positive == "equal" else (class_table("bce", task, "factor", factors),)
        even = self.config.positive == "equal" and isinstance(task, Multilabel)
        return Loss(
            loss,
            tables=tables,
            soft_targets=True,
            favours_rare=favours_rare(task, factors),
            chance_level=math.log(2) if even else None,
        )

    def _factors(self, task: Classification | Multilabel) -> list[float]:
        given = self.config.positive
        if given == "equal":
            return [1.0] * task.outputs
        if given == "balanced":
            images = sum(task.counts) if isinstance(task, Classification) else task.images
            return [(images - count) / count or 1.0 for count in class_counts("bce.positive", task)]
        return per_class_values("bce.positive", given, task)


def how_smoothing_inverts(names: Sequence[str], factors: Sequence[float], smoothing: float, among: int) -> str:
    """Say which name wins by torch's rule where it is absent; nothing if none: f s / among > 1 - s / among."""
    most, low = max(factors), smoothing / among
    if most * low <= 1 - low:
        return ""
    return (
        f"with these weights and label smoothing by torch's rule, an image without {names[factors.index(most)]!r} has "
        f"the lowest loss "
        f"if it is predicted: f e/{among} = {most:g} x {smoothing:g} / {among} = {most * low:.4g} > "
        f'1 - e/{among} = {1 - low:.4g}; bce.smoothing_weights = "true_class" avoids this'
    )
