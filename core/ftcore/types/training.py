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
class Moment:
    """Where a run is; after a resume the same as without.

    A loss, a step and its terms, batch transforms and penalties with a method ``at(now: Moment) -> None`` receive it on
    every rank, before each optimizer step and before each evaluation, perhaps the same moment twice.

    Attributes:
        epoch: that is trained, or was and is evaluated, from 0.
        step: optimizer steps done in the whole run.
        epochs: that are to be trained.
        steps_per_epoch: optimizer steps in each, > 0.
    """

    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int


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
    """The result of `make_loss`.

    Attributes:
        function: (outputs (N, K) float32, targets) -> scalar, a mean. Targets are (N,) int64 for classification, else
            (N, K) float32: 0 or 1 per label, or standardised numbers.
        denominator: targets -> what that mean was divided by, a float or a scalar tensor. Means over several
            batches (accumulation, ranks, an epoch) are combined with it. Default: the number of samples.
        tables: shown at the start of the run.
        soft_targets: for classification, whether both functions also take probabilities (N, K) float32.
        favours_rare: whether it weights rare classes or labels more than frequent ones.
        chance_level: its value for uniform predictions; None if unknown.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    denominator: Callable[[Tensor], Tensor | float] = sample_count
    tables: tuple[Table, ...] = ()
    soft_targets: bool = False
    favours_rare: bool = False
    chance_level: float | None = None


@frozen
class Recipe:
    """The result of a plugin's `recipe`: plugins to enable and their settings. Settings of the user take precedence.

    Attributes:
        plugins: plugins to enable after those of the user; as in ``--plugin``.
        settings: as in ``--set``: ``train.epochs`` or ``sgd.lr`` -> value.
        derived: settings that follow from an option of the recipe -> that option, for messages.
    """

    plugins: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(factory=dict)
    derived: Mapping[str, str] = field(factory=dict)


@frozen(eq=False)
class ForwardPass:
    """One forward pass in training, as the terms of a `Step` receive it.

    Attributes:
        images: (N, C, H, W) float32, normalised, as given to the network.
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
    """The result of `make_step`: how an optimizer step extends the plain one.

    Attributes:
        terms: name -> loss term, a scalar mean over the samples of a pass; reported separately.
        wrap_backward: called once per step with a function that adds the gradient of all micro-batches to the
            parameters (there is none before) and returns its terms; returns what that returns. Sharpness-aware
            minimisation calls it twice. None calls it once.
        soft_targets: for classification, whether every term also takes targets (N, K) float32.
    """

    terms: Mapping[str, Callable[[ForwardPass], Tensor]] = field(factory=dict)
    wrap_backward: Callable[[Callable[[], Any]], Any] | None = None
    soft_targets: bool = True

    def run_backward(self, backward: Callable[[], Any]) -> Any:
        """Call such a function as this step does; for wrappers of another plugin's step."""
        return self.wrap_backward(backward) if self.wrap_backward else backward()


@frozen
class Regularizer:
    """A penalty on the parameters, added once per optimizer step.

    Attributes:
        name: shown next to the loss term; unique.
        penalty: () -> scalar float32, differentiable.
    """

    name: str
    penalty: Callable[[], Tensor]


@frozen(eq=False)
class WeightAverage:
    """The result of `make_average`: a second network that follows the first; it is evaluated and saved instead.

    Attributes:
        name: shown to users, e.g. ``ema``.
        network: on the network's device, with the same names of parameters and buffers.
        update: (the trained network, number of updates before this one) -> None.
        interval: whether it is updated after each optimizer step or after each epoch.
        start: first epoch, from 0, that updates it; before it is done the network itself is evaluated and saved.
        recompute_bn: whether to recompute the running statistics of trainable norm layers in one pass over the training
            images before each evaluation.
        initial_share: number of updates so far -> fraction of `network` that is still from the first one, from 0 to 1;
            None if not applicable.
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
    """The result of `precision_context`.

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
    """The result of `make_schedule`.

    Attributes:
        scheduler: any scheduler of `torch.optim.lr_scheduler`.
        interval: whether it steps after each optimizer step, after each epoch, or after each epoch with the monitored
            metric (`ReduceLROnPlateau`).
        warmup: a chainable scheduler (`LinearLR`) that steps after each optimizer step, for a scheduler that does not;
            None for none.
    """

    scheduler: torch.optim.lr_scheduler.LRScheduler
    interval: Literal["step", "epoch", "metric"]
    warmup: torch.optim.lr_scheduler.LRScheduler | None = None
