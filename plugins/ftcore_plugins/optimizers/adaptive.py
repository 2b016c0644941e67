"""More optimizers of torch, as in `optimizers`: with rates that adapt without Adam's means, or averaging."""

from __future__ import annotations

from attrs import field, frozen, validators

from .torch_optimizers import HALF_OPEN_UNIT_INTERVAL, NOT_NEGATIVE, POSITIVE, TorchOptimizer


@frozen
class AdagradConfig:
    """Options of `adagrad`, as in `torch.optim.Adagrad`.

    Attributes:
        lr: learning rate, > 0.
        lr_decay: step k has lr / (1 + (k - 1) * lr_decay), >= 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
        initial_accumulator_value: of the sum of squares, >= 0.
        eps: > 0.
        fused: use the fused kernel, which is the fastest and in float32 gives the same result; by default if all
            parameters are real and on a CPU.
    """

    lr: float = field(default=0.01, validator=POSITIVE)
    lr_decay: float = field(default=0.0, validator=NOT_NEGATIVE)
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)
    initial_accumulator_value: float = field(default=0.0, validator=NOT_NEGATIVE)
    eps: float = field(default=1e-10, validator=POSITIVE)
    fused: bool | None = None


class Adagrad(TorchOptimizer):
    """`torch.optim.Adagrad` (Duchi, Hazan and Singer 2011)."""

    Config = AdagradConfig
    torch_name = "Adagrad"
    fused_on = ("cpu",)  # the kernel for CUDA is younger than torch 2.6


@frozen
class AdadeltaConfig:
    """Options of `adadelta`, as in `torch.optim.Adadelta`.

    Attributes:
        lr: factor on the step size, > 0.
        rho: decay of the two running means of squares, in [0, 1).
        eps: > 0.
        weight_decay: L2 penalty, >= 0, added to the gradient.
    """

    lr: float = field(default=1.0, validator=POSITIVE)
    rho: float = field(default=0.9, validator=HALF_OPEN_UNIT_INTERVAL)
    eps: float = field(default=1e-6, validator=POSITIVE)
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)


class Adadelta(TorchOptimizer):
    """`torch.optim.Adadelta` (Zeiler 2012)."""

    Config = AdadeltaConfig
    torch_name = "Adadelta"


@frozen
class AdafactorConfig:
    """Options of `adafactor`, as in `torch.optim.Adafactor`.

    Attributes:
        lr: > 0; the step size of step k is min(lr, 1 / sqrt(k)) times the size of the parameter (see `eps`).
        beta2_decay: decay of the mean of squares at step k is 1 - k ** beta2_decay, < 0.
        eps: minimum mean of squares, > 0 (None: the machine epsilon), and minimum size (root mean square) of a
            parameter, > 0.
        d: maximum root mean square of an update before the learning rate, >= 1; larger ones are scaled down.
        weight_decay: decoupled, >= 0.
    """

    lr: float = field(default=0.01, validator=POSITIVE)
    beta2_decay: float = field(default=-0.8, validator=validators.lt(0.0))
    eps: tuple[float | None, float] = field(
        default=(None, 0.001), validator=validators.deep_iterable(validators.optional(POSITIVE))
    )
    d: float = field(default=1.0, validator=validators.ge(1.0))
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)


class Adafactor(TorchOptimizer):
    """`torch.optim.Adafactor`: means of squares per row and column only (Shazeer and Stern 2018)."""

    Config = AdafactorConfig
    torch_name = "Adafactor"


@frozen
class AsgdConfig:
    """Options of `asgd`, as in `torch.optim.ASGD`.

    Attributes:
        lr: learning rate, > 0.
        lambd: decay, >= 0: the learning rate of step k is lr / (1 + lambd * lr * k) ** alpha, and parameters decay by
            lambd times that.
        alpha: see `lambd`, >= 0.
        t0: step at which averaging starts, >= 0. torch stores these averages but does not use them; for averages
            that are evaluated and saved, use `swa` or `ema`.
        weight_decay: L2 penalty, >= 0, added to the gradient.
    """

    lr: float = field(default=0.01, validator=POSITIVE)
    lambd: float = field(default=0.0001, validator=NOT_NEGATIVE)
    alpha: float = field(default=0.75, validator=NOT_NEGATIVE)
    t0: float = field(default=1e6, validator=NOT_NEGATIVE)
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)


class Asgd(TorchOptimizer):
    """`torch.optim.ASGD` (Polyak and Juditsky 1992)."""

    Config = AsgdConfig
    torch_name = "ASGD"
