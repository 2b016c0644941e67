"""What does not learn."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from attrs import frozen

from ftcore import FreezePlan, UserError, hookimpl, listed, nearest
from ftcore.freezing import is_under

if TYPE_CHECKING:
    from torch import nn


class FreezeNothing:
    """Everything learns."""

    @hookimpl
    def freeze(self) -> FreezePlan:
        """Answer with an empty plan."""
        return FreezePlan()


class FreezeBackbone:
    """Only the new head learns; nothing else changes, not even running statistics."""

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...]) -> FreezePlan:
        """Freeze all parameters outside the heads, and hold all modules there in eval mode."""
        frozen_names = {name for name, _ in model.named_parameters() if not is_under(name, heads)}
        return FreezePlan(frozenset(frozen_names), frozenset(_outside(model, heads)))


def _outside(model: nn.Module, heads: tuple[str, ...]) -> set[str]:
    """Names of the modules that neither are in a head nor hold one."""
    return {
        name
        for name, _ in model.named_modules()
        if not is_under(name, heads) and not any(is_under(head, [name]) for head in heads)
    }


@frozen
class FreezeModulesConfig:
    """Options of `freeze_modules`.

    Attributes:
        types: class names of modules whose own parameters do not learn, e.g. ``["Conv2d"]``.
        names: paths of modules or parameters, globs per segment; ``layer1`` covers ``layer1.0``, not ``layer10``.
    """

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class FreezeModules:
    """Freezes by type and by name."""

    Config = FreezeModulesConfig

    def __init__(self, config: FreezeModulesConfig) -> None:
        self.config = config

    @hookimpl
    def freeze(self, model: nn.Module) -> FreezePlan:
        """Freeze what matches; a pattern that matches nothing is an error."""
        if not self.config.types and not self.config.names:
            raise UserError("freeze_modules needs types or names, e.g. --set freeze_modules.types='[\"Conv2d\"]'")
        modules = dict(model.named_modules())
        typed = {name for wanted in self.config.types for name in _of_type(wanted, modules)}
        parameters = [name for name, _ in model.named_parameters()]
        roots = {name for pattern in self.config.names for name in _matching(pattern, [*modules, *parameters])}
        names = {name for name in parameters if name.rpartition(".")[0] in typed or is_under(name, roots)}
        held = {name for name in modules if name in typed or is_under(name, roots)}
        return FreezePlan(frozenset(names), frozenset(held))


def _of_type(wanted: str, modules: dict[str, nn.Module]) -> list[str]:
    """Names of the modules with parameters of their own whose class, or a base of it, is called `wanted`."""
    owners = {name: module for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))}
    found = [name for name, module in owners.items() if wanted in {base.__name__ for base in type(module).__mro__}]
    if not found:
        types = {type(module).__name__ for module in owners.values()}
        raise UserError(
            f"freeze_modules.types: no module with parameters of its own is a {wanted!r}"
            f"{nearest(wanted, types)}; there are {listed(types)}"
        )
    return found


def _matching(pattern: str, names: list[str]) -> list[str]:
    """Names that a dotted pattern matches, segment by segment."""
    segments = pattern.split(".")
    found = [name for name in names if name and _fits(segments, name.split("."))]
    if not found:
        tops = {name for name in names if name and name.count(".") <= pattern.count(".")}
        raise UserError(
            f"freeze_modules.names: {pattern!r} matches no module or parameter{nearest(pattern, tops)}; "
            f"top level: {', '.join(sorted(name for name in names if name and '.' not in name))}"
        )
    return found


def _fits(segments: list[str], name: list[str]) -> bool:
    return len(segments) == len(name) and all(map(fnmatchcase, name, segments))
