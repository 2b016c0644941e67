"""A schedule that looks at the monitored metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import asdict, field, frozen, validators

from ftcore import Schedule, UserError, hookimpl

from .curves import HALF_OPEN_UNIT_INTERVAL, warmup_steps

if TYPE_CHECKING:
    from torch.optim import Optimizer


NOT_NEGATIVE = validators.ge(0.0)


@frozen
class PlateauConfig:
    """Options of `plateau`, as in `torch.optim.lr_scheduler.ReduceLROnPlateau`; the monitored metric sets its mode.

    Attributes:
        factor: factor on the learning rate at each reduction, in (0, 1).
        patience: epochs without improvement to tolerate, >= 0; the next one lowers the rate.
        threshold: minimum improvement of the metric, >= 0.
        threshold_mode: whether `threshold` is relative to the best value (``rel``) or absolute (``abs``).
        cooldown: epochs to wait after a reduction, >= 0.
        min_lr: minimum learning rate of any group, >= 0.
        eps: minimum change of a learning rate, >= 0.
        warmup: fraction of all steps for a linear warm-up from 0, in [0, 1).
    """

    factor: float = field(default=0.1, validator=(validators.gt(0.0), validators.lt(1.0)))
    patience: int = field(default=10, validator=validators.ge(0))
    threshold: float = field(default=1e-4, validator=NOT_NEGATIVE)
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = field(default=0, validator=validators.ge(0))
    min_lr: float = field(default=0.0, validator=NOT_NEGATIVE)
    eps: float = field(default=1e-8, validator=NOT_NEGATIVE)
    warmup: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)


class Plateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau` on the monitored metric."""

    Config = PlateauConfig

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config

    @hookimpl
    def make_schedule(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        higher_is_better: bool,  # noqa: FBT001 (as the hook's)
    ) -> Schedule:
        """Answer always."""
        from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

        self._check(optimizer, epochs)
        options = asdict(self.config)
        rising = warmup_steps(epochs * steps_per_epoch, options.pop("warmup"))
        plateau = ReduceLROnPlateau(optimizer, "max" if higher_is_better else "min", **options)
        warmup = LinearLR(optimizer, 1 / (rising + 1), total_iters=rising) if rising else None
        return Schedule(plateau, interval="metric", warmup=warmup)

    def _check(self, optimizer: Optimizer, epochs: int) -> None:
        """Refuse what can never lower a rate: the first epoch is the best so far, and the last changes nothing."""
        patience = self.config.patience
        if patience + 2 >= epochs:
            raise UserError(
                f"plateau.patience = {patience} cannot lower a rate within train.epochs = {epochs}: that takes "
                f"{patience + 2} epochs, plus one to use it; train for at least {patience + 3} or lower the patience"
            )
        highest = max(group["lr"] for group in optimizer.param_groups)
        if self.config.min_lr >= highest:
            raise UserError(f"plateau.min_lr = {self.config.min_lr} must be less than the highest rate, {highest}")
