"""From a plugin's name to a plugin that is imported, linted and configured."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from contextlib import nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from ftcore.config import schema as configuration
from ftcore.config.structure import structure
from ftcore.distributed.ranks import rank_and_world_size
from ftcore.errors import UserError, blame_plugin, did_you_mean
from ftcore.hooks import HOOK_API
from ftcore.system.text import printable

from .discovery import InstalledPlugin, find_installed, without_working_folder
from .lint import Implementation, find_problems, implementations, is_plugin
from .option_usage import track_reads
from .references import _check_same, _entry, resolve

if TYPE_CHECKING:
    from types import ModuleType

    from ftcore.config.schema import RunConfig

    from .references import PluginReference


@frozen(eq=False)
class Plugin:
    """An activated plugin.

    Attributes:
        reference: where it comes from.
        origin: where the user named it, or ``default``.
        config: its options, an attrs object, or None if it has none.
        hooks: its implementations.
        options_read: names of the options that have been read.
        is_recipe: whether it names other plugins.
        owner: the object or module that implements the hooks.
    """

    reference: PluginReference
    origin: str
    config: Any
    hooks: tuple[Implementation, ...]
    options_read: set[str] = field(factory=set, repr=False)
    is_recipe: bool = False
    owner: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The plugin's one name."""
        return self.reference.name

    @property
    def is_default(self) -> bool:
        """Whether it only answers where no named plugin does."""
        return self.origin == "default"

    def __str__(self) -> str:
        """Name and source, for messages."""
        return f"{self.name} ({self.reference.source}, {self.origin})"

    def location(self, impl: Implementation) -> str:
        """Say where one of its implementations is: in which distribution, if it is in one, and in which line."""
        distribution = self.reference.distribution and f"{self.reference.source}, "
        return f"{self.name}.{impl.hook} ({distribution or ''}{impl.where})"


def activate(reference: PluginReference, origin: str, config: RunConfig) -> Plugin:
    """Import, lint and configure one plugin.

    Raises:
        UserError: the import fails, a hook implementation is wrong, or an option does not fit.
    """
    target = load(reference)
    if not is_plugin(target):  # and is not called: a configuration may name any class that can be imported
        _check(target, reference, origin)
    _check_api(getattr(target, "FTCORE_API", HOOK_API), reference)
    options, plugin, read = instantiate(target, reference, config)
    _check(plugin, reference, origin)
    recipe = getattr(plugin, "recipe", None)
    if recipe:
        recipe()  # what it sets is set already; which of its options it reads is noted
    hooks = tuple(implementations(plugin))
    return Plugin(reference, origin, options, hooks, read, is_recipe=recipe is not None, owner=plugin)


def _check(plugin: object, reference: PluginReference, origin: str) -> None:
    faults = find_problems(plugin)
    if faults:
        lines = "\n".join(f"  {line}" for line in faults)
        raise UserError(f"plugin {reference.name!r} ({reference.source}, {origin}) cannot be used:\n{lines}")


def _check_api(needed: Any, reference: PluginReference) -> None:
    """Refuse a plugin that was written for other specs: another major version, or a later minor one."""
    who = f"plugin {reference.name!r} (from {reference.source})"
    if not isinstance(needed, tuple) or [type(part) for part in needed] != [int, int]:
        raise UserError(f"{who}: FTCORE_API is {needed!r}; expected the required version, e.g. {HOOK_API}")
    if needed[0] != HOOK_API[0] or needed[1] > HOOK_API[1]:
        older = "ftcore" if needed > HOOK_API else reference.distribution or reference.name
        raise UserError(
            f"{who} needs hook API {needed[0]}.{needed[1]}; this is ftcore {metadata.version('ftcore')} with hook API "
            f"{HOOK_API[0]}.{HOOK_API[1]}: upgrade {older}"
        )


def load(reference: PluginReference) -> Any:
    """Import what a reference means: a class, or a module.

    Raises:
        UserError: the import fails, or it is neither.
    """
    return _attribute(_import(reference), reference)


def _import(reference: PluginReference) -> ModuleType:
    with nullcontext() if reference.trusted else without_working_folder():
        return _import_here(reference)


def _import_here(reference: PluginReference) -> ModuleType:
    if reference.file:
        if str(reference.file.parent) not in sys.path:
            sys.path.append(str(reference.file.parent))
        importlib.invalidate_caches()  # the file may be newer than what Python knows of its folder
        found = importlib.util.find_spec(reference.module)
        _check_same(reference.file, reference.module, found.origin if found else None)  # before any code
        _announce(reference)
    try:
        module = importlib.import_module(reference.module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a third party's module raises on import is its fault
        raise UserError(
            f"plugin {reference.name!r} (from {reference.source}) failed to import {reference.module}: "
            f"{type(error).__name__}: {error}\nshow the traceback with `python -c 'import {reference.module}'`"
        ) from error
    if reference.file:
        _check_same(reference.file, reference.module, module.__file__)
    return module


def _announce(reference: PluginReference) -> None:
    """Say in one line, in the first process, that a hooks file is executed."""
    place = rank_and_world_size()
    if reference.module not in sys.modules and (place is None or place[0] == 0):
        print(f"executes the hooks file {printable(str(reference.file))}", file=sys.stderr)  # noqa: T201 - no command may hide it


def _attribute(module: ModuleType, reference: PluginReference) -> Any:
    if not reference.attribute:
        return module
    found = getattr(module, reference.attribute, None)
    if found is None:
        hint = did_you_mean(reference.attribute, vars(module))
        raise UserError(f"plugin {reference.name!r}: {reference.module} has no {reference.attribute!r}{hint}")
    if not inspect.isclass(found):
        raise UserError(
            f"plugin {reference.name!r}: {reference.target} is {type(found).__name__}; expected a module or a class"
        )
    return found


def instantiate(target: Any, reference: PluginReference, config: RunConfig) -> tuple[Any, object, set[str]]:
    """Return the plugin's options, the object whose methods are its hooks, and the set of options that it reads.

    Raises:
        UserError: an option does not fit, or the class does not take its options.
    """
    values = config.options.get(reference.name, {})
    cls = getattr(target, "Config", None) if inspect.isclass(target) else None
    if cls is None and values:
        origin = config.origin(f"plugin.{reference.name}.{next(iter(values))}")
        raise UserError(f"plugin {reference.name!r} has no options, but {sorted(values)} were set ({origin})")
    if cls is None:
        return None, _construct(target, reference) if inspect.isclass(target) else target, set()
    if not attrs.has(cls):
        raise UserError(
            f"plugin {reference.name!r} ({reference.source}): {reference.target}.Config is not an attrs class"
        )
    options = structure(values, cls, f"plugin.{reference.name}", config.origins)
    seen, read = track_reads(options)
    return options, _construct(target, reference, seen), read


def _construct(cls: type, reference: PluginReference, *options: Any) -> object:
    """Make the plugin; its class takes its options and nothing else."""
    try:
        inspect.signature(cls).bind(*options)
    except TypeError as error:
        wanted = "one argument, its Config" if options else "no arguments, as it has no Config"
        raise UserError(
            f"plugin {reference.name!r} ({reference.source}): {reference.target} must take {wanted}: {error}"
        ) from None
    try:
        return cls(*options)
    except Exception as error:
        if not isinstance(error, UserError):
            note = f"raised by plugin {reference.name!r} ({reference.source}) when {reference.target} was made"
            blame_plugin(error, note)
        raise


def activate_all(
    config: RunConfig, available: tuple[InstalledPlugin, ...], defaults: tuple[str, ...]
) -> tuple[Plugin, ...]:
    """Activate the plugins that the user named, in their order, then the defaults.

    Raises:
        UserError: as `activate`; a plugin named twice; options or ``--without`` for a plugin that is not there.
    """
    own = [resolve(named, available) for named in config.plugins if named.trusted]
    resolved = [(resolve(named, available), named) for named in config.plugins]
    references = [(one, named.origin) for one, named in resolved if named.trusted or one not in own]
    _check_duplicates(references)
    named = {reference.name for reference, _ in references}
    builtin = tuple(plugin for plugin in available if plugin.distribution == "ftcore")
    others = [_entry(find_installed(name, None, builtin), name) for name in defaults if name not in named]
    _check_without(config.without, named, {reference.name for reference in others})
    references = [pair for pair in references if pair[0].name not in config.without]
    references += [(reference, "default") for reference in others if reference.name not in config.without]
    _check_options(config, {reference.name for reference, _ in references}, available)
    return tuple(activate(reference, origin, config) for reference, origin in references)


def _check_duplicates(references: list[tuple[PluginReference, str]]) -> None:
    origins: dict[str, str] = {}
    for reference, origin in references:
        if reference.name in origins:
            raise UserError(f"plugin {reference.name!r} is enabled twice ({origins[reference.name]}, {origin})")
        origins[reference.name] = origin


def _check_without(without: tuple[str, ...], named: set[str], defaults: set[str]) -> None:
    for name in without:
        if name not in named | defaults:
            present = f"enabled: {', '.join(sorted(named)) or 'none'}; defaults: {', '.join(sorted(defaults))}"
            raise UserError(
                f"--without {name}: no such plugin in this run{did_you_mean(name, named | defaults)} ({present})"
            )


def _check_options(config: RunConfig, present: set[str], available: tuple[InstalledPlugin, ...]) -> None:
    for name, values in config.options.items():
        if name in present:
            continue
        origin = config.origin(f"plugin.{name}.{next(iter(values))}") if values else f"[plugin.{name}]"
        installed = {plugin.name for plugin in available}
        if name in installed:
            raise UserError(
                f"plugin {name!r} has options but is not enabled, so nothing would read them ({origin}): add "
                f"--plugin {name}, or remove the options"
            )
        known = present | installed | set(configuration.SECTIONS)
        raise UserError(f"{name!r} is neither a section nor a plugin{did_you_mean(name, known)} ({origin})")
