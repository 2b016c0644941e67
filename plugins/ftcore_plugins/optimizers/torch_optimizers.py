"""Optimizers of torch: stochastic gradient descent, the Adam family, RMSprop; `adaptive` has the others.

Options have torch's names and defaults. Left out of all are maximize, differentiable and capturable, which are for
other uses of an optimizer, and foreach, which torch chooses by itself.

Left out are `torch.optim.LBFGS`, which needs the loss several times a step; SparseAdam, as no image network has sparse
gradients; Rprop, which needs the gradient of all data; and Muon, which takes matrices alone: that of timm
(``timm_optim.name=muon``) takes the other parameters along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen, validators

from ftcore import UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ftcore import ParamGroup


POSITIVE = validators.gt(0.0)

NOT_NEGATIVE = validators.ge(0.0)

HALF_OPEN_UNIT_INTERVAL = validators.and_(validators.ge(0.0), validators.lt(1.0))

SHARES = validators.deep_iterable(HALF_OPEN_UNIT_INTERVAL)

FUSED_WITH_DTENSOR = frozenset({"Adam", "AdamW"})
"""Whose fused kernel takes parameters that are spread over processes."""


def torch_groups(groups: Sequence[ParamGroup], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Spell groups as torch's optimizers take them."""
    return [
        {
            "params": list(group.params.values()),
            "lr": lr * group.lr_scale,
            "weight_decay": weight_decay if group.weight_decay else 0.0,
        }
        for group in groups
    ]


class TorchOptimizer:
    """An optimizer of `torch.optim` with its options under torch's own names.

    Attributes:
        torch_name: of the class in `torch.optim`.
        fused_on: devices with a fused kernel in every torch that ftcore supports.
    """

    torch_name: str
    fused_on: tuple[str, ...] = ("cpu", "cuda")

    def __init__(self, config: Any) -> None:
        self.config = config

    @hookimpl
    def make_optimizer(self, param_groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """Answer always."""
        import torch

        options = attrs.asdict(self.config)
        groups = torch_groups(param_groups, options.pop("lr"), options.pop("weight_decay"))
        if "fused" in options:
            options["fused"] = self.use_fused(param_groups)
        optimizer: torch.optim.Optimizer = getattr(torch.optim, self.torch_name)(groups, **options)
        return optimizer

    def use_fused(self, groups: Sequence[ParamGroup]) -> bool:
        """Whether to use the fused kernel: as asked for, by default where all parameters can be given to it."""
        from ftcore.distributed import is_sharded

        params = [parameter for group in groups for parameter in group.params.values()]
        can = all(p.is_floating_point() and p.device.type in self.fused_on for p in params)
        can = can and (self.torch_name in FUSED_WITH_DTENSOR or not any(map(is_sharded, params)))
        if self.config.fused and not can:
            where = sorted({f"{p.dtype} on {p.device.type}{', spread' * is_sharded(p)}" for p in params})
            raise UserError(
                f"{type(self).__name__.lower()}.fused = true: the kernel takes real parameters on "
                f"{' or '.join(self.fused_on)}, not {', '.join(where)}; remove the option or set it to false"
            )
        return can if self.config.fused is None else bool(self.config.fused)


@frozen
class SgdConfig:
    """Options of `sgd`, as in `torch.optim.SGD`.

    Attributes:
        lr: learning rate, > 0; torch's 0.001 is low for plain SGD.
        momentum: in [0, 1); torch's 0.0 is rarely used for networks.
        dampening: dampening of the momentum, in [0, 1); needs momentum, without nesterov.
        nesterov: needs momentum.
        weight_decay: L2 penalty, >= 0.
        fused: use the fused kernel, which is the fastest and in float32 gives the same result; by default if all
            parameters are real and on a CPU or a CUDA device.
    """

    lr: float = field(default=0.01, validator=POSITIVE)
    momentum: float = field(default=0.9, validator=HALF_OPEN_UNIT_INTERVAL)
    dampening: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)
    nesterov: bool = False
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)
    fused: bool | None = None

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum > 0")
        if self.dampening and (self.nesterov or not self.momentum):
            raise ValueError(f"dampening = {self.dampening} needs momentum > 0 and nesterov = false")


class Sgd(TorchOptimizer):
    """`torch.optim.SGD`."""

    Config = SgdConfig
    torch_name = "SGD"

    def use_fused(self, groups: Sequence[ParamGroup]) -> bool:
        """As for the others, but where a parameter learns later: the kernel wants the momentum of all, or of none."""
        later = [name for group in groups for name, p in group.params.items() if not p.requires_grad]
        if not (later and self.config.momentum):
            return super().use_fused(groups)
        if self.config.fused:
            raise UserError(
                f"sgd.fused = true: with momentum, the kernel does not support parameters that are unfrozen later, "
                f"such as "
                f"{later[0]}; remove the option or set it to false"
            )
        return False


@frozen
class _Betas:
    """What all of the Adam family has."""

    lr: float = field(default=0.001, validator=POSITIVE)
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=SHARES)
    eps: float = field(default=1e-8, validator=POSITIVE)
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)


@frozen
class AdamConfig(_Betas):
    """Options of `adam`, as in `torch.optim.Adam`; its decoupled_weight_decay is `adamw`.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the two running means, each in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
        amsgrad: divide by the largest mean of squares so far (Reddi et al. 2018, algorithm 2).
        fused: use the fused kernel, which is the fastest and in float32 gives the same result; by default if all
            parameters are real and on a CPU or a CUDA device.
    """

    amsgrad: bool = False
    fused: bool | None = None


class Adam(TorchOptimizer):
    """`torch.optim.Adam` (Kingma and Ba 2015)."""

    Config = AdamConfig
    torch_name = "Adam"


@frozen
class AdamWConfig(AdamConfig):
    """Options of `adamw`, as in `torch.optim.AdamW`: those of `adam`, with decoupled weight decay.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the two running means, each in [0, 1).
        eps: > 0.
        weight_decay: >= 0; a step shrinks each parameter by lr * weight_decay.
        amsgrad: as in `adam`.
        fused: as in `adam`.
    """

    weight_decay: float = field(default=0.01, validator=NOT_NEGATIVE)


class AdamW(TorchOptimizer):
    """`torch.optim.AdamW` (Loshchilov and Hutter 2019)."""

    Config = AdamWConfig
    torch_name = "AdamW"


@frozen
class RAdamConfig(_Betas):
    """Options of `radam`, as in `torch.optim.RAdam`.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the two running means, each in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
        decoupled_weight_decay: use decoupled weight decay, as in `adamw`; needs weight_decay > 0.
    """

    decoupled_weight_decay: bool = False

    def __attrs_post_init__(self) -> None:
        if self.decoupled_weight_decay and not self.weight_decay:
            raise ValueError("decoupled_weight_decay = true needs weight_decay > 0")


class RAdam(TorchOptimizer):
    """`torch.optim.RAdam`: Adam with a rectified start (Liu et al. 2020)."""

    Config = RAdamConfig
    torch_name = "RAdam"


@frozen
class NAdamConfig(RAdamConfig):
    """Options of `nadam`, as in `torch.optim.NAdam`.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the two running means, each in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
        decoupled_weight_decay: use decoupled weight decay, as in `adamw`; needs weight_decay > 0.
        momentum_decay: of the first of `betas`, >= 0.
    """

    lr: float = field(default=0.002, validator=POSITIVE)
    momentum_decay: float = field(default=0.004, validator=NOT_NEGATIVE)


class NAdam(TorchOptimizer):
    """`torch.optim.NAdam`: Adam with Nesterov momentum (Dozat 2016)."""

    Config = NAdamConfig
    torch_name = "NAdam"


@frozen
class AdamaxConfig(_Betas):
    """Options of `adamax`, as in `torch.optim.Adamax`.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the running mean and of the running maximum, each in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
    """

    lr: float = field(default=0.002, validator=POSITIVE)


class Adamax(TorchOptimizer):
    """`torch.optim.Adamax`: Adam with the infinity norm (Kingma and Ba 2015, section 7.1)."""

    Config = AdamaxConfig
    torch_name = "Adamax"


@frozen
class RMSpropConfig:
    """Options of `rmsprop`, as in `torch.optim.RMSprop`.

    Attributes:
        lr: learning rate, > 0; torch's 0.01 is high for a pre-trained network.
        alpha: decay of the running mean of squares, in [0, 1).
        momentum: in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0.
        centered: whether to normalise by the variance instead of the mean of squares.
    """

    lr: float = field(default=0.001, validator=POSITIVE)
    alpha: float = field(default=0.99, validator=HALF_OPEN_UNIT_INTERVAL)
    momentum: float = field(default=0.0, validator=HALF_OPEN_UNIT_INTERVAL)
    eps: float = field(default=1e-8, validator=POSITIVE)
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)
    centered: bool = False


class RMSprop(TorchOptimizer):
    """`torch.optim.RMSprop`."""

    Config = RMSpropConfig
    torch_name = "RMSprop"
