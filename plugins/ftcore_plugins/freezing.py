"""What does not learn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen, validators

from ftcore import FreezePlan, UserError, did_you_mean, format_names, hookimpl
from ftcore.model import is_submodule_of, match_modules, modules_holding_only, named_tensors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from torch import nn

    from ftcore import Backbone, RunConfig


class FreezeNothing:
    """Trains everything."""

    @hookimpl
    def freeze(self) -> FreezePlan:
        """Answer with an empty plan."""
        return FreezePlan()


@frozen
class FreezeBackboneConfig:
    """Options of `freeze_backbone`.

    Attributes:
        but: what else is trainable: paths and globs as in `freeze_modules`; ``"bias"`` for all biases; ``"norm"``
            for all norm layers.
        stages: trainable stages, in addition to the head: 0 is the stem, -1 the last stage.
    """

    but: tuple[str, ...] = ()
    stages: tuple[int, ...] = ()


class FreezeBackbone:
    """Trains only the new head and the exceptions; everything else is frozen, including running statistics."""

    Config = FreezeBackboneConfig

    def __init__(self, config: FreezeBackboneConfig) -> None:
        self.config = config

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone) -> FreezePlan:
        """Freeze all parameters and saved buffers outside the heads, and hold all modules there in eval mode.

        A module that is excepted by name, type or stage leaves eval mode; a parameter alone, such as a bias, does not
        take its module along.
        """
        paths = {name for name, _ in model.named_modules()}
        staged = {name for stage in self.config.stages for name in _of_stage(stage, backbone)}
        modules = {*heads, *modules_holding_only(model, staged)}
        singles = set(staged)
        for name in self.config.but:
            if name == "bias":
                singles |= _require_any({n for n, _ in model.named_parameters() if _is_bias(n)}, "biases")
            elif name == "norm":
                modules |= _require_any({n for n, module in model.named_modules() if _is_norm(module)}, "norm layers")
            else:
                found = set(match_modules(name, model, "freeze_backbone.but"))
                modules, singles = modules | found & paths, singles | found - paths
        saved = model.state_dict().keys()
        frozen = {
            n for n in named_tensors(model) if n in saved and n not in singles and not is_submodule_of(n, modules)
        }
        return FreezePlan(frozenset(frozen), frozenset(_outside(model, tuple(modules))))


def _require_any(names: set[str], what: str) -> set[str]:
    if not names:
        raise UserError(f"freeze_backbone.but: the network has no {what}")
    return names


def _is_bias(parameter: str) -> bool:
    """Whether a parameter is a bias by its name: ``bias``, ``q_bias``, ``bias_ih_l0``; no ``position_bias_table``."""
    words = parameter.rpartition(".")[2].split("_")
    return "bias" in {words[0], words[-1]}


def _of_stage(stage: int, backbone: Backbone) -> set[str]:
    """Names of the tensors in a stage; -1 is the last."""
    count = max(backbone.stages.values(), default=-1) + 1
    number = stage + count if stage < 0 else stage
    if not 0 <= number < count:
        raise UserError(
            f"freeze_backbone.stages: no stage {stage}; the architecture has stages 0 (the stem) to {count - 1}"
        )
    return {name for name, of in backbone.stages.items() if of == number}


def _outside(model: nn.Module, heads: tuple[str, ...]) -> set[str]:
    """Names of the modules that neither are in a head nor hold one."""
    return {
        name
        for name, _ in model.named_modules()
        if not is_submodule_of(name, heads) and not any(is_submodule_of(head, [name]) for head in heads)
    }


@frozen
class FreezeModulesConfig:
    """Options of `freeze_modules`; modules that match any of them are frozen.

    Attributes:
        types: class names of modules whose own parameters are frozen, e.g. ``["Conv2d"]``.
        names: paths of modules or parameters, globs per segment; ``layer1`` covers ``layer1.0``, not ``layer10``.
        stages: number of stages to freeze after the stem, which is frozen too; 0 freezes only the stem.
    """

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    stages: int | None = field(default=None, validator=validators.optional(validators.ge(0)))


class FreezeModules:
    """Freezes modules by type, by name and by depth."""

    Config = FreezeModulesConfig

    def __init__(self, config: FreezeModulesConfig) -> None:
        self.config = config

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone) -> FreezePlan:
        """Freeze what matches, but no new head by its type; a pattern that matches nothing is an error."""
        if not self.config.types and not self.config.names and self.config.stages is None:
            raise UserError("freeze_modules needs types, names or stages, e.g. --set freeze_modules.stages=2")
        modules = dict(model.named_modules())
        typed = {name for wanted in self.config.types for name in _of_type(wanted, modules)}
        roots = {name for p in self.config.names for name in match_modules(p, model, "freeze_modules.names")}
        deep = _first_stages(self.config.stages, backbone, model)
        typed = {name for name in typed if not is_submodule_of(name, heads)}
        first = {id(parameter): name for name, parameter in model.named_parameters()}  # shared ones have one name
        every = model.named_parameters(remove_duplicate=False)
        names = {first[id(p)] for n, p in every if _owner(n) in typed or is_submodule_of(n, roots) or n in deep}
        held = {n for n in modules if n in typed or is_submodule_of(n, roots)} | modules_holding_only(model, deep)
        return FreezePlan(frozenset(names), frozenset(held))


def _owner(parameter: str) -> str:
    """Return the module that a parameter belongs to; one that is parametrised keeps its tensors in submodules."""
    return re.sub(r"(^|\.)(parametrizations\..*|[^.]*)$", "", parameter)


def _first_stages(count: int | None, backbone: Backbone, model: nn.Module) -> set[str]:
    """Names of the tensors in the stem and in the first stages behind it."""
    if count is None:
        return set()
    last = max(backbone.stages.values(), default=0)
    if count > last:
        raise UserError(f"freeze_modules.stages = {count}: the architecture has {last} stages after its stem")
    return {name for name in named_tensors(model) if backbone.stages.get(name, count + 1) <= count}


def _of_type(wanted: str, modules: dict[str, nn.Module]) -> set[str]:
    """Names of the modules with parameters of their own whose class, or a base of it, is called `wanted`."""
    owners = {_owner(name) for name, _ in modules[""].named_parameters()}
    found = {name for name in owners if wanted in {base.__name__ for base in type(modules[name]).__mro__}}
    if not found:
        types = {type(modules[name]).__name__ for name in owners}
        raise UserError(
            f"freeze_modules.types: no module with its own parameters is a {wanted!r}"
            f"{did_you_mean(wanted, types)}; the types are {format_names(types)}"
        )
    return found


@frozen
class FreezeNormConfig:
    """Options of `freeze_norm`.

    Attributes:
        types: class names (or base classes) of the layers to freeze; by default all norm layers.
    """

    types: tuple[str, ...] = ()


class FreezeNorm:
    """Also freezes the norm layers of the backbone: scales, shifts and running statistics."""

    Config = FreezeNormConfig

    def __init__(self, config: FreezeNormConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def freeze(self, model: nn.Module, heads: tuple[str, ...]) -> Generator[None, FreezePlan, FreezePlan]:
        """Add them to the plan that another plugin makes; nothing that the plan releases later frees them."""
        plan = yield
        norms = {
            name: module
            for name, module in model.named_modules()
            if _is_norm(module) and not is_submodule_of(name, heads) and "parametrizations" not in name.split(".")
        }
        found = {name for name, module in norms.items() if self._wanted(module)}
        if not found:
            types = {type(module).__name__ for module in norms.values()}
            wanted = f" of type {format_names(self.config.types)}" if self.config.types else ""
            raise UserError(f"freeze_norm: the network has no norm layers{wanted}; it has {format_names(types)}")
        return evolve(plan, never_unfreeze=plan.never_unfreeze | found)

    def _wanted(self, module: nn.Module) -> bool:
        return not self.config.types or not _class_names(module).isdisjoint(self.config.types)


def _class_names(module: nn.Module) -> set[str]:
    return {base.__name__ for base in type(module).__mro__}


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: by its class's name, if all of its tensors are its own.

    That leaves out `ConvNormAct` and `NormFreeBlock`, which hold convolutions.
    """
    own, inside = ([*module.parameters(recurse=deep), *module.buffers(recurse=deep)] for deep in (False, True))
    return 0 < len(own) == len(inside) and any("Norm" in name for name in _class_names(module))


@frozen
class GradualUnfreezeConfig:
    """Options of `gradual_unfreeze`.

    Attributes:
        at: epoch (from 0) -> what is unfrozen there: ``"head"`` (the new heads), ``"all"``, or paths and globs as
            in `freeze_modules`, one or a list of them. Anything else stays frozen.
    """

    at: dict[str, tuple[str, ...] | str] = field(
        factory=lambda: {"0": "head", "1": "all"}, validator=lambda _, __, at: _check_epochs(at)
    )


def _check_epochs(at: Mapping[str, object]) -> None:
    wrong = [epoch for epoch in at if not epoch.isdecimal() or str(int(epoch)) != epoch]
    if wrong:
        raise ValueError(f"an epoch must be an integer >= 0, not {wrong[0]!r}")
    if "0" not in at:
        raise ValueError('something must be trainable from epoch 0 on, e.g. {0 = "head", 3 = "all"}')


class GradualUnfreeze:
    """Gradual unfreezing: parts of the network are frozen until given epochs, running statistics too."""

    Config = GradualUnfreezeConfig

    def __init__(self, config: GradualUnfreezeConfig) -> None:
        self.config = config

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...], config: RunConfig) -> FreezePlan:
        """Freeze everything, and say what is released when; a release that changes nothing is an error."""
        releases = {int(epoch): self._resolve_names(what, model, heads) for epoch, what in self.config.at.items()}
        waiting = {name for name, _ in model.named_parameters()}
        for epoch, roots in sorted(releases.items()):
            released = {name for name in waiting if is_submodule_of(name, roots)}
            if epoch >= config.train.epochs:
                raise UserError(
                    f"gradual_unfreeze.at: epoch {epoch} (from 0) is beyond train.epochs = {config.train.epochs} "
                    f"({config.origin('plugin.gradual_unfreeze.at')}; {config.origin('train.epochs')})"
                )
            if not released:
                raise UserError(f"gradual_unfreeze.at: in epoch {epoch} everything it names is already trainable")
            waiting -= released
        return FreezePlan(
            frozen=frozenset(name for name, _ in model.named_parameters()),
            eval_modules=frozenset(_outside(model, tuple(releases[0]))),
            unfreeze_at=releases,
        )

    def _resolve_names(self, what: tuple[str, ...] | str, model: nn.Module, heads: tuple[str, ...]) -> frozenset[str]:
        special: Mapping[str, Iterable[str]] = {"head": heads, "all": ("",)}
        names = (what,) if isinstance(what, str) else what
        return frozenset(
            root for name in names for root in special.get(name) or match_modules(name, model, "gradual_unfreeze.at")
        )
