"""Any optimizer of timm by its name there, with its own options."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators

from ftcore import UserError, did_you_mean, format_names, hookimpl

from .torch_optimizers import NOT_NEGATIVE, POSITIVE, torch_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.optim import Optimizer

    from ftcore import ParamGroup


LOOKAHEAD = "lookahead_"

LEFT_OUT = frozenset(
    {"params", "lr", "weight_decay", "maximize", "differentiable", "capturable", "foreach", "adamw_lr", "verbose"}
)
"""No options: set otherwise, for other uses of an optimizer, chosen well by itself, deprecated, or only talk."""

NOT_CHECKPOINTABLE = {
    "Kron": "keeps lists of tensors and its own random generator",
    "AdafactorBigVision": "keeps a dtype among its settings",
}
"""Class -> why no checkpoint, which holds tensors and plain values, can keep its state."""


@frozen
class TimmOptimizerConfig:
    """Options of `timm_optim`.

    Attributes:
        name: a name of `timm.optim.list_optimizers`, such as lamb, lion, muon, adopt, adan or mars; the prefix
            ``lookahead_`` adds Lookahead (Zhang et al. 2019).
        lr: learning rate, > 0; by default that of the optimizer.
        weight_decay: >= 0; its form depends on the optimizer.
        options: further options of the optimizer, ``{betas = [0.9, 0.99], caution = true}``; defaults as in
            `timm.optim.create_optimizer_v2`, with a momentum of 0.9 where supported.
    """

    name: str
    lr: float | None = field(default=None, validator=validators.optional(POSITIVE))
    weight_decay: float = field(default=0.0, validator=NOT_NEGATIVE)
    options: dict[str, Any] = field(factory=dict)


class TimmOptimizer:
    """`timm.optim.create_optimizer_v2`."""

    Config = TimmOptimizerConfig

    def __init__(self, config: TimmOptimizerConfig) -> None:
        self.config = config

    @hookimpl
    def make_optimizer(self, param_groups: Sequence[ParamGroup]) -> Optimizer:
        """Answer always."""
        from timm.optim import create_optimizer_v2, get_optimizer_class

        config = self.config
        check_name(config.name)
        base = config.name.removeprefix(LOOKAHEAD)
        takes = inspect.signature(get_optimizer_class(base, bind_defaults=False), eval_str=True).parameters
        options = _options(config, takes)
        lr = takes["lr"].default if config.lr is None else config.lr
        if not isinstance(lr, float):
            raise UserError(f"timm_optim.lr must be set: {config.name} has no default learning rate")
        groups = torch_groups(param_groups, lr, config.weight_decay)
        try:
            optimizer = create_optimizer_v2(groups, base, lr=lr, weight_decay=config.weight_decay, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"timm_optim.options = {config.options}: {base} rejects them: {error}") from None
        return look_ahead(optimizer) if config.name.startswith(LOOKAHEAD) else optimizer


def check_name(name: str) -> None:
    """Refuse what timm does not have, and what cannot be used here."""
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name.removeprefix(LOOKAHEAD) not in known:
        near = did_you_mean(name, [*known, *(LOOKAHEAD + each for each in known)])
        usable = format_names(each for each in known if not unusable(each))
        raise UserError(f"timm_optim.name = {name!r} is not an optimizer of timm{near} (available: {usable})")
    reason = unusable(name.removeprefix(LOOKAHEAD))
    if reason:
        raise UserError(f"timm_optim.name = {name!r} cannot be used: it {reason}")


def unusable(name: str) -> str:
    """Say why an optimizer of timm cannot be used here, or nothing."""
    from timm.optim import get_optimizer_info

    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):
        return f"needs {info.opt_class.partition('.')[0]}, which ftcore does not include"
    if info.second_order:
        return "needs second derivatives, which the training loop does not compute"
    reason = NOT_CHECKPOINTABLE.get(info.opt_class.__name__)
    return f"{reason}, which a checkpoint cannot store" if reason else ""


def _options(config: TimmOptimizerConfig, takes: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Check options against the optimizer's signature; lists become tuples."""
    known = [name for name in takes if name not in LEFT_OUT]
    options = {}
    for name, value in config.options.items():
        key = f"timm_optim.options.{name}"
        if name in {"lr", "weight_decay"}:
            raise UserError(f"{key} is set as timm_optim.{name}")
        if name not in known:
            raise UserError(
                f"{key}: {config.name} takes no {name!r}{did_you_mean(name, known)} (it takes {format_names(known)})"
            )
        options[name] = tuple(value) if isinstance(value, list) else value
        wanted = _mismatch(options[name], takes[name])
        if wanted:
            raise UserError(f"{key}: expected {wanted}, got {value!r}")
    return options


def _mismatch(value: Any, takes: inspect.Parameter) -> str:
    """Say what a parameter wants, by its annotation or else by its default, if it is not such a value."""
    default = takes.default
    kind = (
        takes.annotation if takes.annotation in {bool, int, float} else {int: float}.get(type(default), type(default))
    )
    length = len(default) if isinstance(default, tuple) else 0
    numbers = isinstance(value, tuple) and len(value) == length and all(_is_number(each) for each in value)
    checks = {
        bool: (isinstance(value, bool), "true or false"),
        int: (type(value) is int, "an integer"),
        float: (_is_number(value), "a finite number"),
        tuple: (numbers, f"{length} numbers"),
    }
    fits, wanted = checks.get(kind, (True, ""))
    return "" if fits else wanted


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def look_ahead(base: Optimizer) -> Optimizer:
    """Wrap an optimizer in timm's lookahead."""
    from timm.optim import Lookahead

    class SharedState(Lookahead):  # type: ignore[misc]
        """Shows the state of its base, where timm keeps the slow weights too: a checkpoint asks for ``state``."""

        @property
        def state(self) -> Any:
            """Parameter -> state, of the base."""
            return self._base_optimizer.state

        @state.setter
        def state(self, _: Any) -> None:
            """Ignore the empty one that timm makes."""

    optimizer: Optimizer = SharedState(base)
    return optimizer
