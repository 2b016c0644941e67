"""Learning-rate schedules, one step per optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import Schedule, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@frozen
class ConstantConfig:
    """Options of `constant`.

    Attributes:
        warmup: share of all steps in which the rate rises linearly from 0, in [0, 1).
    """

    warmup: float = field(default=0.0, validator=[validators.ge(0), validators.lt(1)])


@frozen
class CosineConfig(ConstantConfig):
    """Options of `cosine`.

    Attributes:
        warmup: as in `constant`.
        final: last rate over first rate, in [0, 1].
    """

    warmup: float = field(default=0.05, validator=[validators.ge(0), validators.lt(1)])
    final: float = field(default=0.0, validator=[validators.ge(0), validators.le(1)])


class Constant:
    """The optimizer's rate throughout, perhaps after a warm-up."""

    Config = ConstantConfig

    def __init__(self, config: ConstantConfig) -> None:
        self.config = config

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """Answer always."""
        return _per_step(optimizer, warm_up(lambda _: 1.0, epochs * steps_per_epoch, self.config.warmup))


class Cosine:
    """Half a cosine from the optimizer's rate to `final` times that (Loshchilov and Hutter 2017, eq. 5, one cycle)."""

    Config = CosineConfig

    def __init__(self, config: CosineConfig) -> None:
        self.config = config

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """Answer always."""
        final = self.config.final

        def half_cosine(share: float) -> float:
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

        return _per_step(optimizer, warm_up(half_cosine, epochs * steps_per_epoch, self.config.warmup))


def warm_up(curve: Callable[[float], float], steps: int, share: float) -> Callable[[int], float]:
    """Put a linear rise before a curve.

    Args:
        curve: share of the remaining steps done, in [0, 1) -> factor.
        steps: optimizer steps in the run.
        share: of the steps that warm up, rounded to whole steps.

    Returns:
        Step from 0 -> factor on the learning rate. Step k of w warm-up steps has (k + 1) / (w + 1).
    """
    rising = round(steps * share)
    if steps <= rising:
        raise UserError(f"a warm-up of {rising} steps leaves nothing of a run of {steps} steps")

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return curve(min(1.0, (step - rising) / (steps - rising)))

    return factor


def _per_step(optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> Schedule:
    from torch.optim.lr_scheduler import LambdaLR

    return Schedule(LambdaLR(optimizer, factor), per="step")
