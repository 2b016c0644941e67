"""Optimizers of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen, validators

from ftcore import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ftcore import ParamGroup

_positive = validators.gt(0.0)
_not_negative = validators.ge(0.0)
_share = validators.and_(validators.ge(0.0), validators.lt(1.0))


def torch_groups(groups: Sequence[ParamGroup], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Spell groups as torch's optimizers take them."""
    return [
        {
            "params": list(group.params.values()),
            "lr": lr * group.lr_scale,
            "weight_decay": weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]


class _Optimizer:
    """An optimizer of `torch.optim` with its options under torch's own names."""

    torch_name: str

    def __init__(self, config: Any) -> None:
        self.config = config

    @hookimpl
    def make_optimizer(self, param_groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """Answer always."""
        import torch

        options = attrs.asdict(self.config)
        groups = torch_groups(param_groups, options.pop("lr"), options.pop("weight_decay"))
        optimizer: torch.optim.Optimizer = getattr(torch.optim, self.torch_name)(groups, **options)
        return optimizer


@frozen
class SgdConfig:
    """Options of `sgd`, as in `torch.optim.SGD`.

    Attributes:
        lr: learning rate, > 0.
        momentum: in [0, 1).
        nesterov: needs momentum.
        weight_decay: L2 penalty, >= 0.
    """

    lr: float = field(default=0.01, validator=_positive)
    momentum: float = field(default=0.9, validator=_share)
    nesterov: bool = False
    weight_decay: float = field(default=0.0, validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum > 0")


class Sgd(_Optimizer):
    """`torch.optim.SGD`."""

    Config = SgdConfig
    torch_name = "SGD"


@frozen
class AdamConfig:
    """Options of `adam`, as in `torch.optim.Adam`.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the two running means, each in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
    """

    lr: float = field(default=0.001, validator=_positive)
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=validators.deep_iterable(_share))
    eps: float = field(default=1e-8, validator=_positive)
    weight_decay: float = field(default=0.0, validator=_not_negative)


class Adam(_Optimizer):
    """`torch.optim.Adam`."""

    Config = AdamConfig
    torch_name = "Adam"


@frozen
class AdamWConfig(AdamConfig):
    """Options of `adamw`, as in `torch.optim.AdamW`: those of `adam`, with decoupled weight decay."""

    weight_decay: float = field(default=0.01, validator=_not_negative)


class AdamW(_Optimizer):
    """`torch.optim.AdamW`."""

    Config = AdamWConfig
    torch_name = "AdamW"


@frozen
class RMSpropConfig:
    """Options of `rmsprop`, as in `torch.optim.RMSprop`.

    Attributes:
        lr: learning rate, > 0.
        alpha: decay of the running mean of squares, in [0, 1).
        momentum: in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0.
        centered: whether the mean is taken off the mean of squares.
    """

    lr: float = field(default=0.001, validator=_positive)
    alpha: float = field(default=0.99, validator=_share)
    momentum: float = field(default=0.0, validator=_share)
    eps: float = field(default=1e-8, validator=_positive)
    weight_decay: float = field(default=0.0, validator=_not_negative)
    centered: bool = False


class RMSprop(_Optimizer):
    """`torch.optim.RMSprop`."""

    Config = RMSpropConfig
    torch_name = "RMSprop"
