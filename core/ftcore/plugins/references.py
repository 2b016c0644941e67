"""What a plugin is named by: an entry point, an import path or a file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ftcore.config import schema as configuration
from ftcore.errors import UserError

from . import trust
from .discovery import InstalledPlugin, find_installed

if TYPE_CHECKING:
    from ftcore.config.schema import PluginRef


NAME = re.compile(r"[a-z][a-z0-9_]*")

_ENTRY = re.compile(rf"({NAME.pattern})(?:@([A-Za-z0-9._-]+))?")

_HYPHENATED = re.compile(r"[a-z][a-z0-9_]*(?:-[a-z0-9_]+)+")

_IMPORT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?::([A-Za-z_]\w*))?")


@frozen
class PluginReference:
    """What a plugin's written form means; decided by the form alone, never by trial.

    Attributes:
        name: the plugin's name in options, messages and the manifest.
        module: module to import.
        attribute: class in it, or ``""`` for the module itself.
        source: what provides it: ``ftcore 0.1.0`` or a file.
        canonical: the form that means the same from any folder.
        file: the hooks file, for the file form.
        distribution: what pip calls the package, for the entry-point form.
        trusted: whether the user's word names it; else it is a run's, and on the user's list of what he trusts.
    """

    name: str
    module: str
    attribute: str
    source: str
    canonical: str
    file: Path | None = None
    distribution: str | None = None
    trusted: bool = True

    @property
    def target(self) -> str:
        """``module:Class`` or ``module``."""
        return f"{self.module}:{self.attribute}" if self.attribute else self.module


def resolve(named: PluginRef, available: tuple[InstalledPlugin, ...]) -> PluginReference:
    """Say what a written plugin means; imports nothing.

    Raises:
        UserError: there is no such plugin; or a run names it, and `trust.check` refuses it.
    """
    named = named if named.trusted else trust.users_own(named)
    reference = _reference(named, available)
    if not (named.trusted or reference.distribution):
        trust.check(named, reference.file, reference.module)
        reference = evolve(reference, trusted=False)
    taken = importlib.util.find_spec(reference.module) if reference.file else None
    if reference.file and taken:
        _check_same(reference.file, reference.module, taken.origin)
    may_have_options = reference.attribute or reference.distribution
    if may_have_options and (not NAME.fullmatch(reference.name) or reference.name in configuration.RESERVED):
        raise UserError(
            f"{reference.source} has an invalid plugin name {reference.name!r}: use a-z, 0-9 and _, "
            f"start with a letter, and use none of {', '.join(sorted(configuration.RESERVED))}"
        )
    return reference


def _reference(named: PluginRef, available: tuple[InstalledPlugin, ...]) -> PluginReference:
    text = named.text
    path, _, attribute = text.partition(".py:")
    if text.endswith(".py") or attribute or "/" in text or "\\" in text:
        return _file(Path(f"{path}.py" if attribute else text), attribute, named)
    if match := _ENTRY.fullmatch(text.replace("-", "_") if _HYPHENATED.fullmatch(text) else text):
        return _entry(find_installed(match[1], named.distribution or match[2], available), match[0])
    if match := _IMPORT.fullmatch(text):
        module, attribute = match[1], match[2] or ""
        name = _snake(attribute or module.rsplit(".", 1)[-1])
        return PluginReference(name, module, attribute, source=f"module {module}", canonical=text)
    raise UserError(
        f"cannot parse plugin {text!r} ({named.origin}): "
        "expected NAME, NAME@DISTRIBUTION, package.module[:Class] or path/to/file.py"
    )


def _entry(plugin: InstalledPlugin, written: str) -> PluginReference:
    module, _, attribute = plugin.target.partition(":")
    return PluginReference(plugin.name, module, attribute, plugin.source, written, distribution=plugin.distribution)


def _file(path: Path, attribute: str, named: PluginRef) -> PluginReference:
    """A hooks file is imported by its stem, so that spawned workers can import it too."""
    full = path if path.is_absolute() else named.base / path
    if not full.is_file():
        raise UserError(f"plugin file not found: {named.text} ({named.origin}; looked at {full})")
    full, stem = full.resolve(), path.stem
    if not stem.isidentifier():
        raise UserError(f"plugin file {full} cannot be imported: {stem!r} is not a Python identifier; rename the file")
    written = f"{full}:{attribute}" if attribute else str(full)
    return PluginReference(_snake(attribute or stem), stem, attribute, str(full), written, file=full)


def _check_same(file: Path, stem: str, found: str | None) -> None:
    """Refuse a hooks file whose stem already means another module."""
    if found is None or Path(found).resolve() != file:
        raise UserError(
            f"plugin file {file} cannot be imported as {stem!r}: that name is already {found}; rename the file"
        )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
