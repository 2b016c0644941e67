"""Which libraries the plugins of a run compute with: what they gave is not that of another version."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING

from .discovery import discover, load_defaults, static_hooks
from .references import resolve

if TYPE_CHECKING:
    from ftcore.config.schema import RunConfig

    from .references import PluginReference


def library_versions(config: RunConfig) -> dict[str, str]:
    """Return distribution -> version: those that the defaults declare, and the others of the plugins that were named.

    Those are the plugin's own distribution and all that it requires. A plugin that is named by a module or a file has
    none, and one that only watches computes nothing.
    """
    available = discover()
    named = [resolve(plugin, available) for plugin in config.plugins]
    others = {reference.distribution for reference in named if not _only_watches(reference)} - {None, "ftcore"}
    found = {name: metadata.version(name) for name in load_defaults().LIBRARIES}
    for distribution in sorted(filter(None, others)):
        found |= {distribution: metadata.version(distribution)} | _required_versions(distribution)
    return found


def _only_watches(reference: PluginReference) -> bool:
    return static_hooks(reference.target) == ("make_observers",)


def _required_versions(distribution: str) -> dict[str, str]:
    """Return the versions of what a distribution requires, but for its extras and what this platform does not need."""
    required = [text for text in metadata.requires(distribution) or () if "extra ==" not in text]
    found = {}
    for name in (re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
