"""Apply a `FreezePlan`; only the host does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from .parts import FreezePlan


def is_under(name: str, roots: Iterable[str]) -> bool:
    """Whether a dotted name is one of `roots` or below one: ``layer1.0`` is under ``layer1``, ``layer10`` is not."""
    return any(name == root or name.startswith(f"{root}.") or not root for root in roots)


def thawed(plan: FreezePlan, epoch: int) -> set[str]:
    """Names of the modules and parameters that the plan has released by `epoch` (from 0)."""
    return {name for start, names in plan.unfreeze_at.items() if start <= epoch for name in names}


def ever_learning(model: nn.Module, plan: FreezePlan) -> dict[str, nn.Parameter]:
    """Return the parameters that learn in some epoch, by name."""
    released = thawed(plan, max(plan.unfreeze_at, default=0))
    return {name: p for name, p in model.named_parameters() if name not in plan.frozen or is_under(name, released)}


def apply(model: nn.Module, plan: FreezePlan, epoch: int) -> None:
    """Set ``requires_grad`` for an epoch (from 0)."""
    released = thawed(plan, epoch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in plan.frozen or is_under(name, released))


def hold(model: nn.Module, plan: FreezePlan, epoch: int) -> None:
    """Put the frozen modules in eval mode, after everything was put in train mode."""
    modules = dict(model.named_modules())
    for name in plan.held:
        modules[name].eval()
    for name in thawed(plan, epoch) & modules.keys():
        modules[name].train()
