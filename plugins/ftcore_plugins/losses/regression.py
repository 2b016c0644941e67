"""Losses of numbers, all of torch; targets are standardised, so a loss of 1 is about one standard deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import Loss, hookimpl
from ftcore_plugins.tasks import Regression

if TYPE_CHECKING:
    from ftcore import Task


class MeanSquaredError:
    """`torch.nn.MSELoss` on standardised targets."""

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for regression."""
        if not isinstance(task, Regression):
            return None
        from torch.nn.functional import mse_loss

        return Loss(mse_loss)


class MeanAbsoluteError:
    """`torch.nn.L1Loss` on standardised targets: predicts the median, so it is robust to outliers."""

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for regression."""
        if not isinstance(task, Regression):
            return None
        from torch.nn.functional import l1_loss

        return Loss(l1_loss)


@frozen
class HuberConfig:
    """Options of `huber`.

    Attributes:
        delta: threshold between squared and absolute error; > 0, in standard deviations of the target
            over the training split.
    """

    delta: float = field(default=1.0, validator=validators.gt(0.0))


class Huber:
    """`torch.nn.HuberLoss` on standardised targets (Huber 1964): squared for small errors, absolute for large ones."""

    Config = HuberConfig

    def __init__(self, config: HuberConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task) -> Loss | None:
        """Answer for regression."""
        if not isinstance(task, Regression):
            return None
        import torch

        return Loss(torch.nn.HuberLoss(delta=self.config.delta))
