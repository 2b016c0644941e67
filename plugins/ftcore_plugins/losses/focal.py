"""Losses that play down what the network already knows: focal and asymmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import Loss, UserError, hookimpl
from ftcore_plugins.tasks import Classification, Multilabel

from .cross_entropy import SHARE, class_table, favours_rare, per_class_values

if TYPE_CHECKING:
    from ftcore import Task


@frozen
class FocalConfig:
    """Options of `focal`.

    Attributes:
        gamma: how strongly easy images are down-weighted, >= 0; 0 is plain cross-entropy.
        alpha: weight of each class, or of each positive label: a list with one number per class, in the
            order of the class names, or a table ``{tumor = 10}`` where others have 1; every number > 0. For
            labels also one number in (0, 1), as in the paper: alpha for positive labels, 1 - alpha for negative ones.
            None: 1 for all.
    """

    gamma: float = field(default=2.0, validator=validators.ge(0.0))
    alpha: float | tuple[float, ...] | dict[str, float] | None = None


class Focal:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5): cross-entropy x (1 - p_t)^gamma.

    For classes (softmax) a mean over images; for labels (sigmoid) a mean over images and labels.
    """

    Config = FocalConfig

    def __init__(self, config: FocalConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification and for several labels."""
        if not isinstance(task, Classification | Multilabel):
            return None
        from .modules import AsymmetricLabelLoss, FocalLoss

        gamma, (present, absent) = self.config.gamma, self._factors(task)
        tables = () if self.config.alpha is None else (class_table("focal", task, "alpha", present),)
        rare = favours_rare(task, present)
        if isinstance(task, Classification):
            return Loss(FocalLoss(gamma, present), tables=tables, soft_targets=True, favours_rare=rare)
        loss = AsymmetricLabelLoss(gamma, gamma, present=present, absent=absent)
        return Loss(loss, tables=tables, favours_rare=rare)

    def _factors(self, task: Classification | Multilabel) -> tuple[list[float], list[float]]:
        """Return a factor for each class or label where it is there, and where it is not."""
        alpha, ones = self.config.alpha, [1.0] * task.outputs
        if alpha is None:
            return ones, ones
        if not isinstance(alpha, int | float):
            return per_class_values("focal.alpha", alpha, task), ones
        if isinstance(task, Classification) or not 0 < alpha < 1:
            allowed = "in (0, 1) for labels; for classes a list or table with one value each"
            raise UserError(f"focal.alpha must be {allowed}; got {alpha} for {task.name} of {', '.join(task.names)}")
        return [alpha] * task.outputs, [1 - alpha] * task.outputs


_GAMMA = validators.ge(0.0)


@frozen
class AsymmetricConfig:
    """Options of `asymmetric`; the defaults are those of the paper.

    Attributes:
        gamma_pos: how strongly easy positives are down-weighted, >= 0.
        gamma_neg: the same for negatives, >= 0; by default 4. For classes it only matters with
            `label_smoothing`.
        clip: only for labels: negatives below this probability are ignored, in [0, 1); by default
            0.05.
        label_smoothing: only for classes: fraction of each target to spread evenly over all classes, in [0, 1); by
            default 0.1.
    """

    gamma_pos: float = field(default=0.0, validator=_GAMMA)
    gamma_neg: float | None = field(default=None, validator=validators.optional(_GAMMA))
    clip: float | None = field(default=None, validator=validators.optional(SHARE))
    label_smoothing: float | None = field(default=None, validator=validators.optional(SHARE))


class Asymmetric:
    """Asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119): down-weights easy negatives more than positives.

    For labels it is the mean over images and labels, while the authors' code sums over them and therefore needs another
    learning rate. For classes it is the mean over images.
    """

    Config = AsymmetricConfig

    def __init__(self, config: AsymmetricConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification and for several labels."""
        if not isinstance(task, Classification | Multilabel):
            return None
        from .modules import AsymmetricClassLoss, AsymmetricLabelLoss

        self._check(task)
        positive, negative = self.config.gamma_pos, _value_or(self.config.gamma_neg, 4.0)
        if isinstance(task, Multilabel):
            return Loss(AsymmetricLabelLoss(positive, negative, _value_or(self.config.clip, 0.05)))
        smoothing = _value_or(self.config.label_smoothing, 0.1)
        return Loss(AsymmetricClassLoss(positive, negative, smoothing), soft_targets=True)

    def _check(self, task: Task) -> None:
        """Refuse an option that this kind of task does not read."""
        idle, kind = ("label_smoothing", "classes") if isinstance(task, Multilabel) else ("clip", "labels")
        if getattr(self.config, idle) is not None:
            raise UserError(f"asymmetric.{idle} is for {kind}; this is {task.name} of {', '.join(task.names)}")
        if self.config.label_smoothing == 0 and self.config.gamma_neg is not None:
            raise UserError(
                f"asymmetric.gamma_neg = {self.config.gamma_neg} has no effect in classification with "
                "asymmetric.label_smoothing = 0; set that > 0, or remove gamma_neg"
            )


def _value_or(value: float | None, default: float) -> float:
    return default if value is None else value
