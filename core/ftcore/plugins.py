"""From a plugin's name to a plugin that is imported, linted and configured."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from . import config as configuration
from .discover import Available, select
from .errors import UserError, nearest
from .hooks import HOOK_API
from .ledger import watched
from .lint import Implementation, implementations, is_plugin, problems
from .structure import structure

if TYPE_CHECKING:
    from types import ModuleType

    from .config import Named, RunConfig

NAME = re.compile(r"[a-z][a-z0-9_]*")
_ENTRY = re.compile(rf"({NAME.pattern})(?:@([A-Za-z0-9._-]+))?")
_IMPORT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?::([A-Za-z_]\w*))?")


@frozen
class Reference:
    """What a plugin's written form means; decided by the form alone, never by trial.

    Attributes:
        name: the plugin's name in options, messages and the manifest.
        module: module to import.
        attribute: class in it, or ``""`` for the module itself.
        source: what provides it: ``ftcore 0.1.0`` or a file.
        written: the form that means the same from any folder.
        file: the hooks file, for the file form.
        distribution: what pip calls the package, for the entry-point form.
    """

    name: str
    module: str
    attribute: str
    source: str
    written: str
    file: Path | None = None
    distribution: str | None = None

    @property
    def target(self) -> str:
        """``module:Class`` or ``module``."""
        return f"{self.module}:{self.attribute}" if self.attribute else self.module


@frozen(eq=False)
class Plugin:
    """An activated plugin.

    Attributes:
        reference: where it comes from.
        origin: where the user named it, or ``default``.
        config: its options, an attrs object, or None if it has none.
        hooks: its implementations.
        read: names of the options that have been read.
        is_recipe: whether it names other plugins.
        owner: the object or module that implements the hooks.
    """

    reference: Reference
    origin: str
    config: Any
    hooks: tuple[Implementation, ...]
    read: set[str] = field(factory=set, repr=False)
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

    def place(self, impl: Implementation) -> str:
        """Say where one of its implementations is: in which distribution, if it is in one, and in which line."""
        distribution = self.reference.distribution and f"{self.reference.source}, "
        return f"{self.name}.{impl.hook} ({distribution or ''}{impl.where})"


def resolve(named: Named, available: tuple[Available, ...]) -> Reference:
    """Say what a written plugin means; imports nothing."""
    reference = _reference(named, available)
    may_have_options = reference.attribute or _ENTRY.fullmatch(named.text)
    if may_have_options and (not NAME.fullmatch(reference.name) or reference.name in configuration.RESERVED):
        raise UserError(
            f"{reference.source} has a plugin called {reference.name!r}: a plugin's name is a-z, 0-9 and _, "
            f"starts with a letter and is none of {', '.join(sorted(configuration.RESERVED))}"
        )
    return reference


def _reference(named: Named, available: tuple[Available, ...]) -> Reference:
    text = named.text
    path, _, attribute = text.partition(".py:")
    if text.endswith(".py") or attribute or "/" in text or "\\" in text:
        return _file(Path(f"{path}.py" if attribute else text), attribute, named)
    if match := _ENTRY.fullmatch(text):
        return _entry(select(match[1], match[2], available), text)
    if match := _IMPORT.fullmatch(text):
        module, attribute = match[1], match[2] or ""
        name = _snake(attribute or module.rsplit(".", 1)[-1])
        return Reference(name, module, attribute, source=f"module {module}", written=text)
    raise UserError(
        f"cannot parse plugin {text!r} ({named.origin}): "
        "expected NAME, NAME@DISTRIBUTION, package.module[:Class] or path/to/file.py"
    )


def _entry(plugin: Available, written: str) -> Reference:
    module, _, attribute = plugin.target.partition(":")
    return Reference(plugin.name, module, attribute, plugin.source, written, distribution=plugin.distribution)


def _file(path: Path, attribute: str, named: Named) -> Reference:
    """A hooks file is imported by its stem, so that spawned workers can import it too."""
    full = path if path.is_absolute() else named.base / path
    if not full.is_file():
        raise UserError(f"plugin file not found: {named.text} ({named.origin}; looked at {full})")
    full, stem = full.resolve(), path.stem
    if not stem.isidentifier():
        raise UserError(f"plugin file {full} cannot be imported: {stem!r} is no Python name; rename the file")
    taken = importlib.util.find_spec(stem)
    if taken:
        _check_same(full, stem, taken.origin)
    written = f"{full}:{attribute}" if attribute else str(full)
    return Reference(_snake(attribute or stem), stem, attribute, str(full), written, file=full)


def _check_same(file: Path, stem: str, found: str | None) -> None:
    """Refuse a hooks file whose stem already means another module."""
    if found is None or Path(found).resolve() != file:
        raise UserError(
            f"plugin file {file} cannot be imported as {stem!r}: that name is already {found}; rename the file"
        )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def activate(reference: Reference, origin: str, config: RunConfig) -> Plugin:
    """Import, lint and configure one plugin.

    Raises:
        UserError: the import fails, a hook implementation is wrong, or an option does not fit.
    """
    target = load(reference)
    if not is_plugin(target):  # and is not called: a configuration may name any class that can be imported
        _check(target, reference, origin)
    _check_api(getattr(target, "FTCORE_API", HOOK_API), reference)
    options, plugin, read = configured(target, reference, config)
    _check(plugin, reference, origin)
    recipe = getattr(plugin, "recipe", None)
    if recipe:
        recipe()  # what it sets is set already; which of its options it reads is noted
    hooks = tuple(implementations(plugin))
    return Plugin(reference, origin, options, hooks, read, is_recipe=recipe is not None, owner=plugin)


def _check(plugin: object, reference: Reference, origin: str) -> None:
    faults = problems(plugin)
    if faults:
        lines = "\n".join(f"  {line}" for line in faults)
        raise UserError(f"plugin {reference.name!r} ({reference.source}, {origin}) cannot be used:\n{lines}")


def _check_api(needed: Any, reference: Reference) -> None:
    """Refuse a plugin that was written for other specs: another major version, or a later minor one."""
    who = f"plugin {reference.name!r} (from {reference.source})"
    if not isinstance(needed, tuple) or [type(part) for part in needed] != [int, int]:
        raise UserError(f"{who}: FTCORE_API is {needed!r}; expected the version that it needs, e.g. {HOOK_API}")
    if needed[0] != HOOK_API[0] or needed[1] > HOOK_API[1]:
        older = "ftcore" if needed > HOOK_API else reference.distribution or reference.name
        raise UserError(
            f"{who} needs hook API {needed[0]}.{needed[1]}; this is ftcore {metadata.version('ftcore')} with hook API "
            f"{HOOK_API[0]}.{HOOK_API[1]}: get a newer {older}"
        )


def load(reference: Reference) -> Any:
    """Import what a reference means: a class, or a module.

    Raises:
        UserError: the import fails, or it is neither.
    """
    return _attribute(_import(reference), reference)


def _import(reference: Reference) -> ModuleType:
    if reference.file and str(reference.file.parent) not in sys.path:
        sys.path.append(str(reference.file.parent))
    try:
        module = importlib.import_module(reference.module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a third party's module raises on import is its fault
        raise UserError(
            f"plugin {reference.name!r} (from {reference.source}) failed to import {reference.module}: "
            f"{type(error).__name__}: {error}\nnothing was run; `python -c 'import {reference.module}'` "
            "shows the traceback"
        ) from error
    if reference.file:
        _check_same(reference.file, reference.module, module.__file__)
    return module


def _attribute(module: ModuleType, reference: Reference) -> Any:
    if not reference.attribute:
        return module
    found = getattr(module, reference.attribute, None)
    if found is None:
        hint = nearest(reference.attribute, vars(module))
        raise UserError(f"plugin {reference.name!r}: {reference.module} has no {reference.attribute!r}{hint}")
    if not inspect.isclass(found):
        raise UserError(
            f"plugin {reference.name!r}: {reference.target} is {type(found).__name__}; expected a module or a class"
        )
    return found


def configured(target: Any, reference: Reference, config: RunConfig) -> tuple[Any, object, set[str]]:
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
        return None, _made(target, reference) if inspect.isclass(target) else target, set()
    if not attrs.has(cls):
        raise UserError(f"plugin {reference.name!r} ({reference.source}): {reference.target}.Config is no attrs class")
    options = structure(values, cls, f"plugin.{reference.name}", config.origins)
    seen, read = watched(options)
    return options, _made(target, reference, seen), read


def _made(cls: type, reference: Reference, *options: Any) -> object:
    """Make the plugin; its class takes its options and nothing else."""
    try:
        inspect.signature(cls).bind(*options)
    except TypeError as error:
        wanted = "one argument, its Config" if options else "no argument, for it has no Config"
        raise UserError(
            f"plugin {reference.name!r} ({reference.source}): {reference.target} must take {wanted}: {error}"
        ) from None
    try:
        return cls(*options)
    except Exception as error:
        if not isinstance(error, UserError):
            error.add_note(f"raised by plugin {reference.name!r} ({reference.source}) when {reference.target} was made")
        raise


def activate_all(config: RunConfig, available: tuple[Available, ...], defaults: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Activate the plugins that the user named, in their order, then the defaults.

    Raises:
        UserError: as `activate`; a plugin named twice; options or ``--without`` for a plugin that is not there.
    """
    references = [(resolve(named, available), named.origin) for named in config.plugins]
    _check_twice(references)
    named = {reference.name for reference, _ in references}
    builtin = tuple(plugin for plugin in available if plugin.distribution == "ftcore")
    others = [_entry(select(name, None, builtin), name) for name in defaults if name not in named]
    _check_without(config.without, named, {reference.name for reference in others})
    references = [pair for pair in references if pair[0].name not in config.without]
    references += [(reference, "default") for reference in others if reference.name not in config.without]
    _check_options(config, {reference.name for reference, _ in references}, available)
    return tuple(activate(reference, origin, config) for reference, origin in references)


def _check_twice(references: list[tuple[Reference, str]]) -> None:
    origins: dict[str, str] = {}
    for reference, origin in references:
        if reference.name in origins:
            raise UserError(f"plugin {reference.name!r} is named twice ({origins[reference.name]}, {origin})")
        origins[reference.name] = origin


def _check_without(without: tuple[str, ...], named: set[str], defaults: set[str]) -> None:
    for name in without:
        if name not in named | defaults:
            present = f"named: {', '.join(sorted(named)) or 'none'}; defaults: {', '.join(sorted(defaults))}"
            raise UserError(f"--without {name}: not among the plugins{nearest(name, named | defaults)} ({present})")


def _check_options(config: RunConfig, present: set[str], available: tuple[Available, ...]) -> None:
    for name, values in config.options.items():
        if name in present:
            continue
        origin = config.origin(f"plugin.{name}.{next(iter(values))}") if values else f"[plugin.{name}]"
        installed = {plugin.name for plugin in available}
        if name in installed:
            raise UserError(
                f"plugin {name!r} has options but was not named, so nothing would read them ({origin}): "
                f"add --plugin {name}, or remove them"
            )
        known = present | installed | set(configuration.SECTIONS)
        raise UserError(f"{name!r} is neither a section nor a plugin{nearest(name, known)} ({origin})")
