"""A loss of classes that have an order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

from ftcore import Loss, Table, UserError, did_you_mean, hookimpl
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from ftcore import Context, Task


@frozen
class OrdinalConfig:
    """Options of `ordinal`.

    Attributes:
        order: names of all classes from low to high, e.g. ``["none", "mild", "severe"]``; None: the usual
            order of classes, by value if all are numbers, else as strings.
    """

    order: tuple[str, ...] | None = None


class Ordinal:
    """Squared Earth Mover's Distance for ordered classes: errors are weighted by their distance in rank.

    sum_k (CDF_k(p) - CDF_k(y))^2, a mean over images (Hou, Yu and Samaras 2016, arXiv:1611.05916).
    """

    Config = OrdinalConfig

    def __init__(self, config: OrdinalConfig) -> None:
        self.config = config

    @hookimpl
    def make_loss(self, task: Task, ctx: Context) -> Loss | None:
        """Answer for classification."""
        if not isinstance(task, Classification):
            return None
        from .modules import SquaredEarthMoversDistance

        order = task.names if self.config.order is None else self.config.order
        check_order(order, task)
        if self.config.order is None and list(order) != sorted(order, key=_natural_key):
            ctx.log.warning(
                "classes are sorted as strings; set another order with ordinal.order", order=", ".join(order)
            )
        rows = tuple((str(place), name) for place, name in enumerate(order, start=1))
        loss = SquaredEarthMoversDistance([order.index(name) for name in task.names])
        return Loss(loss, tables=(Table("ordinal, from low to high", ("place", "class"), rows),), soft_targets=True)


def _natural_key(name: str) -> list[str | int]:
    """Return what sorts ``grade 2`` before ``grade 10``."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def check_order(order: tuple[str, ...], task: Task) -> None:
    """Refuse an order that does not name each class once.

    Raises:
        UserError: a name that is no class, is missing, or is there twice.
    """
    known = f"list each class once, from low to high: {', '.join(task.names)}"
    for name in order:
        if name not in task.names:
            raise UserError(f"ordinal.order: no class {name!r}{did_you_mean(name, task.names)}; {known}")
        if order.count(name) > 1:
            raise UserError(f"ordinal.order has {name!r} {order.count(name)} times; {known}")
    missing = [name for name in task.names if name not in order]
    if missing:
        raise UserError(f"ordinal.order lacks {', '.join(map(repr, missing))}; {known}")
