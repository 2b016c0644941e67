"""Losses, steps, optimizer groups, precision and averages. Importing this module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from .table import Table


@frozen
class ParamGroup:
    """Parameters that share their optimizer settings.

    Attributes:
        name: shown by `explain`; unique.
        params: parameter name -> parameter.
        lr_scale: factor on the optimizer's learning rate; >= 0.
        weight_decay: whether the optimizer's weight decay applies.
    """

    name: str
    params: Mapping[str, nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: bool = True


def sample_count(targets: Tensor) -> float:
    """Return the number of samples: what a plain mean is divided by."""
    return float(len(targets))


@frozen
class Loss:
    """The answer of `make_loss`.

    Attributes:
        function: (outputs (N, K) float32, targets) -> scalar, a mean. Targets are (N,) int64 for classification, else
            (N, K) float32: 0 or 1 a label, or standardised.
        denominator: targets -> what that mean was divided by, a float or a scalar tensor. Means over several
            batches (accumulation, ranks, an epoch) are combined with it. Default: the number of samples.
        tables: shown at the start of the run.
        soft_targets: for classification, whether both functions also take probabilities (N, K) float32.
        favours_rare: whether rare classes or labels count for more in it than frequent ones.
        chance_level: its value where all answers are held for equally likely; None where that is not known.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    denominator: Callable[[Tensor], Tensor | float] = sample_count
    tables: tuple[Table, ...] = ()
    soft_targets: bool = False
    favours_rare: bool = False
    chance_level: float | None = None


@frozen
class Recipe:
    """The answer of a plugin's `recipe`: other plugins' choices. What the user sets himself beats it.

    Attributes:
        plugins: named as if by the user, behind his own; as in ``--plugin``.
        settings: as in ``--set``: ``train.epochs`` or ``sgd.lr`` -> value.
        derived: of those, ones that follow from an option of the recipe -> that option, for messages.
    """

    plugins: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(factory=dict)
    derived: Mapping[str, str] = field(factory=dict)


@frozen(eq=False)
class ForwardPass:
    """One forward pass in training, as the terms of a `Step` see it.

    Attributes:
        images: (N, C, H, W) float32, normalised, as the network saw them.
        targets: as the loss takes them.
        outputs: (N, K) float32, of the network's first output.
        forward: such images -> such outputs, in another pass; of this network, with its precision and devices.
    """

    images: Tensor
    targets: Tensor
    outputs: Tensor
    forward: Callable[[Tensor], Tensor]


@frozen
class Step:
    """The answer of `make_step`: what an optimizer step does beside the loss.

    Attributes:
        terms: name -> what is added to the loss, a scalar mean over the samples of a pass; shown beside the loss.
        wrap_backward: called once a step with a function that adds the gradient of the whole window to the parameters
            (there is none before) and returns its terms; returns what that returns. Sharpness-aware minimisation calls
            it twice. None calls it once.
        soft_targets: for classification, whether every term also takes targets (N, K) float32.
    """

    terms: Mapping[str, Callable[[ForwardPass], Tensor]] = field(factory=dict)
    wrap_backward: Callable[[Callable[[], Any]], Any] | None = None
    soft_targets: bool = True

    def run_backward(self, backward: Callable[[], Any]) -> Any:
        """Call such a function as this step does: for what goes round the step of another plugin."""
        return self.wrap_backward(backward) if self.wrap_backward else backward()


@frozen
class Regularizer:
    """A penalty on the parameters, added once per optimizer step.

    Attributes:
        name: shown beside the loss; unique.
        penalty: () -> scalar float32, differentiable.
    """

    name: str
    penalty: Callable[[], Tensor]


@frozen(eq=False)
class WeightAverage:
    """The answer of `make_average`: a second network that follows the first; it is evaluated and saved in its place.

    Attributes:
        name: for people: ``ema``.
        network: on the network's device, with the same names of parameters and buffers.
        update: (the network that learns, number of updates before this one) -> None.
        interval: whether it is updated after each optimizer step or after each epoch.
        start: first epoch, from 0, that updates it; before it is done the network itself is evaluated and saved.
        recompute_bn: whether the running statistics of norm layers that learn are measured anew, in one pass over the
            training images, before each evaluation.
        initial_share: number of updates so far -> how much of `network` is still that of the first one, from 0 to 1;
            None where that is no question.
    """

    name: str
    network: nn.Module
    update: Callable[[nn.Module, int], None]
    interval: Literal["step", "epoch"] = "step"
    start: int = 0
    recompute_bn: bool = False
    initial_share: Callable[[int], float] | None = None


@frozen
class Precision:
    """The answer of `precision_context`.

    Attributes:
        name: ``fp32``, ``bf16``, ...
        autocast: makes the context that each forward pass and loss runs in.
        scaler: always present; ``enabled=False`` where no scaling is needed.
    """

    name: str
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler


@frozen
class Schedule:
    """The answer of `make_schedule`.

    Attributes:
        scheduler: any scheduler of `torch.optim.lr_scheduler`.
        interval: whether it steps after each optimizer step, after each epoch, or after each epoch with the monitored
            metric (`ReduceLROnPlateau`).
        warmup: a chainable scheduler (`LinearLR`) that steps after each optimizer step beside one that does not; None
            for none.
    """

    scheduler: torch.optim.lr_scheduler.LRScheduler
    interval: Literal["step", "epoch", "metric"]
    warmup: torch.optim.lr_scheduler.LRScheduler | None = None
