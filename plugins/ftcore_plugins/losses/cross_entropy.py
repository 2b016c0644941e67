"""Cross-entropy and its kin; and what the losses of all modules say about classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen, validators

from ftcore import Loss, Table, UserError, did_you_mean, hookimpl
from ftcore_plugins.tasks import Classification, Multilabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Context, Task


SHARE = (validators.ge(0.0), validators.lt(1.0))
"""Of an option in [0, 1)."""


@frozen
class CrossEntropyConfig:
    """Options of `cross_entropy`.

    Attributes:
        label_smoothing: fraction of each target to spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = field(default=0.0, validator=SHARE)


class CrossEntropy:
    """`torch.nn.CrossEntropyLoss`."""

    Config = CrossEntropyConfig

    def __init__(self, config: CrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        import torch

        loss = torch.nn.CrossEntropyLoss(label_smoothing=self.config.label_smoothing)
        return Loss(loss, soft_targets=True, chance_level=math.log(task.outputs))


@frozen
class WeightedCrossEntropyConfig:
    """Options of `weighted_ce`.

    Attributes:
        weights: ``"balanced"`` (images / (classes x images of the class), as in scikit-learn), ``"effective"`` (see
            `beta`), a list with one weight per class in the order of the class names, or a table ``{tumor = 10}`` where
            other classes have 1; every weight > 0.
        beta: only for ``"effective"``, by default 0.999: a class of n images weighs (1 - beta) / (1 - beta ** n),
            scaled so that the weights add up to the number of classes; in [0, 1), 0 disables weighting (Cui et al.
            2019, arXiv:1901.05555, eq. 4).
        divide_by: ``"weights"``, the sum of the targets' weights, as `torch.nn.CrossEntropyLoss(weight=...)` does; or
            ``"samples"``, the plain mean over the batch.
        label_smoothing: fraction of each target to spread evenly over all classes, in [0, 1).
        smoothing_weights: weight of the smoothed part: ``"true_class"``, that of the true class, so that
            no other class can win by smoothing; or ``"torch"``, that of each class, as in
            `torch.nn.CrossEntropyLoss(weight=..., label_smoothing=...)`.
    """

    weights: Literal["balanced", "effective"] | tuple[float, ...] | dict[str, float] = "balanced"
    beta: float | None = field(default=None, validator=validators.optional(SHARE))
    divide_by: Literal["weights", "samples"] = "weights"
    label_smoothing: float = field(default=0.0, validator=SHARE)
    smoothing_weights: Literal["true_class", "torch"] = "true_class"

    def __attrs_post_init__(self) -> None:
        if self.beta is not None and self.weights != "effective":
            raise ValueError(f'beta needs weights = "effective", not {self.weights!r}')
        check_smoothing_weights(self.smoothing_weights, self.label_smoothing)


def check_smoothing_weights(smoothing_weights: str, label_smoothing: float) -> None:
    """Refuse a rule for label smoothing where there is none."""
    if smoothing_weights == "torch" and not label_smoothing:
        raise ValueError('smoothing_weights = "torch" needs label_smoothing > 0')


class WeightedCrossEntropy:
    """Cross-entropy with class weights."""

    Config = WeightedCrossEntropyConfig

    def __init__(self, config: WeightedCrossEntropyConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task, ctx: Context) -> Loss | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        from .weighted_cross_entropy import WeightedCrossEntropyLoss

        weights = class_weights(self.config.weights, task, 0.999 if self.config.beta is None else self.config.beta)
        mean_over_samples, as_torch = self.config.divide_by == "samples", self.config.smoothing_weights == "torch"
        loss = WeightedCrossEntropyLoss(
            weights,
            mean_over_samples=mean_over_samples,
            label_smoothing=self.config.label_smoothing,
            smooth_as_torch=as_torch,
        )
        if as_torch and (how := how_smoothing_inverts(task.names, weights, self.config.label_smoothing)):
            ctx.log.warning(how)
        title = f"weighted_ce, divided by the {'number' if mean_over_samples else 'weights'} of the samples"
        return Loss(
            loss,
            loss.denominator,
            (class_table(title, task, "weight", weights),),
            soft_targets=True,
            favours_rare=favours_rare(task, weights),
            chance_level=None if mean_over_samples else math.log(task.outputs),
        )


def how_smoothing_inverts(names: Sequence[str], weights: Sequence[float], smoothing: float) -> str:
    """Say for which two classes torch's rule of label smoothing answers the wrong one; nothing if for none.

    An image of class y costs least where p[c] ~ w[c] e/K + [c = y] w[y] (1 - e), so c beats y where
    w[c] e/K > w[y] (1 - e + e/K); if it does for any two, it does for the heaviest and the lightest.
    """
    light, heavy = (weights.index(extreme(weights)) for extreme in (min, max))
    each = smoothing / len(weights)
    wrong, right = weights[heavy] * each, weights[light] * (1 - smoothing + each)
    if wrong <= right:
        return ""
    return (
        f"with class weights and label smoothing by torch's rule, an image of {names[light]!r} has the lowest loss if "
        f"{names[heavy]!r} is predicted: w[c] e/K = {weights[heavy]:g} x {smoothing:g} / {len(weights)} = {wrong:.4g} "
        f"> "
        f"w[y] (1 - e + e/K) = {weights[light]:g} x {1 - smoothing + each:.4g} = {right:.4g}; "
        'weighted_ce.smoothing_weights = "true_class" avoids this'
    )


def class_weights(
    given: str | tuple[float, ...] | dict[str, float], task: Classification, beta: float = 0.999
) -> list[float]:
    """Return one weight a class, in the order of `task.names`.

    Raises:
        UserError: wrong length, a class that does not exist, or a weight that is not a positive number.
    """
    if not isinstance(given, str):
        return per_class_values("weighted_ce.weights", given, task)
    counts = class_counts("weighted_ce.weights", task)
    if given == "effective":
        raw = [(1 - beta) / (1 - beta**count) for count in counts]
        return [weight * task.outputs / sum(raw) for weight in raw]
    return [sum(counts) / (task.outputs * count) for count in counts]


@frozen
class LogitAdjustmentConfig:
    """Options of `logit_adjustment`.

    Attributes:
        tau: factor on the logarithm of each class's frequency in the training images, >= 0; 0 is plain cross-entropy.
    """

    tau: float = field(default=1.0, validator=validators.ge(0.0))


class LogitAdjustment:
    """Cross-entropy of outputs + tau log(prior), so that rare classes win by a margin (Menon et al. 2021, eq. 10).

    The prior is the class frequency in the training images. Metrics and predictions use the unadjusted outputs; the
    validation loss is adjusted. Do not combine it with `balanced_sampling`, or rare classes count twice.
    """

    Config = LogitAdjustmentConfig

    def __init__(self, config: LogitAdjustmentConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        from .modules import LogitAdjustedLoss

        counts = class_counts("logit_adjustment", task)
        priors = [count / sum(counts) for count in counts]
        loss = LogitAdjustedLoss([self.config.tau * math.log(prior) for prior in priors])
        return Loss(
            loss,
            tables=(class_table("logit_adjustment", task, "prior", priors),),
            soft_targets=True,
            favours_rare=self.config.tau > 0 and min(counts) < max(counts),
        )


def class_counts(option: str, task: Classification | Multilabel) -> tuple[int, ...]:
    """Return the number of training images of each class or with each label, all > 0."""
    if len(task.counts) != task.outputs or min(task.counts) <= 0:
        raise UserError(
            f"{option} needs the number of training images of each class {', '.join(task.names)}; the data has "
            f"{', '.join(map(str, task.counts)) or 'none'}"
        )
    return task.counts


def per_class_values(option: str, given: tuple[float, ...] | dict[str, float], task: Task) -> list[float]:
    """Return one number a class or label, in the order of `task.names`; those that a table does not name have 1.

    Raises:
        UserError: wrong length, a name that does not exist, or what is not a positive number.
    """
    kind, kinds = task.noun
    known = ", ".join(task.names)
    if isinstance(given, tuple):
        if len(given) != task.outputs:
            raise UserError(f"{option} has {len(given)} numbers for {task.outputs} {kinds} ({known})")
        given = dict(zip(task.names, given, strict=True))
    for name, number in given.items():
        if name not in task.names:
            raise UserError(f"{option}: no {kind} {name!r}{did_you_mean(name, task.names)}; there are: {known}")
        if not (number > 0 and math.isfinite(number)):
            raise UserError(f"{option}: the value of {name!r} must be a positive number, got {number}")
    return [given.get(name, 1.0) for name in task.names]


def favours_rare(task: Classification | Multilabel, factors: Sequence[float]) -> bool:
    """Whether the rarest class or label counts more than the most frequent one."""
    counts = task.counts
    return bool(counts) and factors[counts.index(min(counts))] > factors[counts.index(max(counts))]


def class_table(title: str, task: Classification | Multilabel, what: str, numbers: Sequence[float]) -> Table:
    """Show one number a class or label, beside its images in the training split."""
    counts = task.counts or ("",) * task.outputs
    rows = tuple((n, str(c), f"{number:.4g}") for n, c, number in zip(task.names, counts, numbers, strict=True))
    return Table(title, (task.noun[0], "images", what), rows)
