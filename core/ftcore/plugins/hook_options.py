"""Options of whichever plugin answers a hook: `--lr` is the learning rate of the run's optimizer, whatever that is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import attrs
from attrs import evolve

from ftcore.config.structure import CliValue
from ftcore.errors import UserError, did_you_mean

from .activation import load
from .discovery import find_installed
from .lint import implementations
from .references import _entry, resolve

if TYPE_CHECKING:
    from ftcore.config.schema import HookOption, RunConfig

    from .discovery import InstalledPlugin
    from .references import PluginReference


def assign(config: RunConfig, available: tuple[InstalledPlugin, ...], defaults: tuple[str, ...]) -> RunConfig:
    """Turn `RunConfig.hook_options` into options of the plugins that answer those hooks; recipes are expanded before.

    Raises:
        UserError: several named plugins answer the hook, or the one that does has no such option, or it is set twice.
    """
    for asked in config.hook_options:
        plugin = answering_plugin(asked.hook, config, available, defaults)
        names = option_names(load(plugin))
        if asked.option not in names:
            raise UserError(
                f"{asked.origin}: {plugin.name}, which implements {asked.hook}, has no option {asked.option!r}"
                f"{did_you_mean(asked.option, names)} (its options: {', '.join(names) or 'none'})"
            )
        config = _set(config, plugin.name, asked)
    return evolve(config, hook_options=())


def _set(config: RunConfig, plugin: str, asked: HookOption) -> RunConfig:
    key = f"plugin.{plugin}.{asked.option}"
    before = config.options.get(plugin, {})
    if isinstance(before.get(asked.option), CliValue) and before[asked.option] != asked.value:
        raise UserError(f"{plugin}.{asked.option} is set twice: {asked.origin}, {config.origin(key)}; remove one")
    options = {**config.options, plugin: {**before, asked.option: asked.value}}
    return evolve(config, options=options, origins={**config.origins, key: asked.origin})


def answering_plugin(
    hook: str, config: RunConfig, available: tuple[InstalledPlugin, ...], defaults: tuple[str, ...]
) -> PluginReference:
    """Return the plugin whose answer a hook takes: the one that was named, or else the first default that has the hook.

    Raises:
        UserError: there are several, and ``[hooks]`` has no order for them.
    """
    named = [resolve(named, available) for named in config.plugins]
    names = {reference.name for reference in named}
    builtin = tuple(plugin for plugin in available if plugin.distribution == "ftcore")
    others = [_entry(find_installed(name, None, builtin), name) for name in defaults if name not in names]
    named, others = ([r for r in found if r.name not in config.without] for found in (named, others))
    answering = [reference for reference in named if _answers(hook, reference)]
    first = next(iter(config.hooks.get(hook, ())), None)
    answering = [reference for reference in answering if reference.name == first] or answering
    if len(answering) > 1:
        both = " and ".join(reference.name for reference in answering)
        raise UserError(f"{both} both implement {hook}, but only one may; disable one with --without")
    return answering[0] if answering else next(reference for reference in others if _answers(hook, reference))


def _answers(hook: str, reference: PluginReference) -> bool:
    return any(impl.hook == hook and not impl.wrapper for impl in implementations(load(reference)))


def option_names(target: Any) -> tuple[str, ...]:
    """Return the names of the options of a plugin's class, or of none for a module."""
    cls = getattr(target, "Config", None) if inspect.isclass(target) else None
    return tuple(option.name for option in attrs.fields(cls)) if cls is not None and attrs.has(cls) else ()
