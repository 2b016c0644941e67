"""A second network that is an average of what the first has been."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators

from ftcore import UserError, WeightAverage, hookimpl

if TYPE_CHECKING:
    from torch import nn


@frozen
class EmaConfig:
    """Options of `ema`, as in `timm.utils.ModelEmaV3`.

    Attributes:
        decay: decay of the average at each step, in [0, 1).
        warmup: whether the decay rises from 0 as 1 - (1 + step / gamma) ** -power until it reaches `decay`, so
            that early steps do not dominate; needed in short runs.
        gamma: > 0; by default 1.
        power: > 0; by default 2/3, at which the decay is 0.99 after 1,000 steps and 0.999 after 31,600.
        start: first epoch, from 0.
    """

    decay: float = field(default=0.9998, validator=[validators.ge(0), validators.lt(1)])
    warmup: bool = True
    gamma: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    power: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    start: int = field(default=0, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if not self.warmup and (self.gamma, self.power) != (None, None):
            raise ValueError("gamma and power set the warm-up, but warmup = false disables it")


class Ema:
    """Exponential moving average of parameters and running statistics, updated after each step."""

    Config = EmaConfig

    def __init__(self, config: EmaConfig) -> None:
        self.config = config

    @hookimpl
    def make_average(self, model: nn.Module, epochs: int) -> WeightAverage:
        """Answer always; half-precision parameters are averaged in float32."""
        import torch
        from timm.utils.model_ema import ModelEmaV3

        from ftcore.distributed import is_sharded

        config = self.config
        _check_start("ema", config.start, epochs)
        halves = any(p.dtype in {torch.bfloat16, torch.float16} for p in model.parameters())
        wide: Any = {"dtype": torch.float32} if halves else {}
        average = ModelEmaV3(
            model,
            decay=config.decay,
            use_warmup=config.warmup,
            warmup_gamma=config.gamma or 1.0,
            warmup_power=config.power or 2 / 3,
            foreach=not any(map(is_sharded, model.parameters())),  # which mixes them with running statistics
            **wide,
        )

        def initial_share(updates: int) -> float:
            """Multiply the decays of all updates behind the first; before it, all is the start."""
            return float(math.prod(average.get_decay(step) for step in range(2, updates + 1)))

        # timm counts steps from 1, and takes the network itself at the first
        return WeightAverage(
            "ema",
            average.module,
            lambda network, count: average.update(network, count + 1),
            start=config.start,
            initial_share=initial_share,
        )


@frozen
class SwaConfig:
    """Options of `swa`.

    Attributes:
        start: first epoch (from 0) to average at its end; by default after three quarters of the run, as in the paper.
    """

    start: int | None = field(default=None, validator=validators.optional(validators.ge(0)))


class Swa:
    """Stochastic weight averaging: the mean over the last epochs (Izmailov et al. 2018, arXiv:1803.05407).

    Its running statistics are recomputed in one pass over the training images before each evaluation. Use it with
    a learning rate that does not decay to 0: `constant`, or `cosine.final`.
    """

    Config = SwaConfig

    def __init__(self, config: SwaConfig) -> None:
        self.config = config

    @hookimpl
    def make_average(self, model: nn.Module, epochs: int) -> WeightAverage:
        """Answer always."""
        from torch.optim.swa_utils import AveragedModel

        start = epochs * 3 // 4 if self.config.start is None else self.config.start
        _check_start("swa", start, epochs)
        average = AveragedModel(model)

        def update(network: nn.Module, count: int) -> None:
            average.n_averaged.fill_(count)  # a run that is resumed has a new object
            average.update_parameters(network)

        return WeightAverage(
            "swa",
            average.module,
            update,
            interval="epoch",
            start=start,
            recompute_bn=True,
        )


def _check_start(name: str, start: int, epochs: int) -> None:
    if start >= epochs:
        raise UserError(f"{name}.start = {start} (from 0) is beyond train.epochs = {epochs}")
