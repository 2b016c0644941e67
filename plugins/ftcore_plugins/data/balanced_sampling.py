"""See rare classes more often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, field, frozen, validators

from ftcore import Table, UserError, hookimpl
from ftcore.data import ImageSplit
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Generator

    from ftcore import Context, Data


@frozen
class BalancedSamplingConfig:
    """Options of `balanced_sampling`.

    Attributes:
        power: a class with n images is drawn in proportion to n ** (1 - power), in (0, 1]: 1 gives every class the same
            frequency, 0.5 the square root of its frequency (Mikolov et al. 2013, arXiv:1310.4546; Mahajan et al. 2018,
            arXiv:1805.00932).
    """

    power: float = field(default=1.0, validator=[validators.gt(0), validators.le(1)])


class BalancedSampling:
    """Oversamples rare classes: draws training images with replacement, evenly over the classes; wraps `build_data`."""

    Config = BalancedSamplingConfig

    def __init__(self, config: BalancedSamplingConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_loss(self, ctx: Context) -> Generator[None, Any, Any]:
        """Look at whatever loss is made, and leave it as it is."""
        loss = yield
        if getattr(loss, "favours_rare", False):  # a bare callable says nothing of it
            ctx.log.warning("rare classes count twice: they are sampled more often and weighted more in the loss")
        return loss

    @hookimpl(wrapper=True)
    def build_data(self) -> Generator[None, Data, Data]:
        """Set the weights of whatever data is built."""
        data = yield
        if data is None:
            return data
        if not isinstance(data.task, Classification) or not isinstance(data.train, ImageSplit):
            raise UserError(
                f"balanced_sampling needs classification data of type ftcore.data.ImageSplit; this is "
                f"{data.task.name} with {type(data.train).__name__}"
            )
        counts = np.array(data.task.counts, dtype=np.float64)
        weights = counts**-self.config.power
        shares = counts * weights / (counts * weights).sum()
        rows = tuple((name, f"{share:.1%}") for name, share in zip(data.task.names, shares, strict=True))
        table = Table("balanced_sampling", ("class", "fraction of an epoch"), rows)
        return evolve(data, weights=weights[data.train.targets], tables=(*data.tables, table))
