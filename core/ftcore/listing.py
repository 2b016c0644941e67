"""Every installed plugin in a row, without importing any."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .discover import default_module, discover, static_hooks
from .plugins import resolve

if TYPE_CHECKING:
    from .config import RunConfig


def plugin_rows(config: RunConfig) -> list[dict[str, Any]]:
    """Return name, distribution, version, hooks and state of every installed plugin, and of each hooks file named."""
    available = discover()
    references = [resolve(named, available) for named in config.plugins]
    active = {reference.name: reference for reference in references}
    defaults = set(import_module(default_module()).PLUGINS) - set(config.without)
    rows = []
    for plugin in available:
        chosen = plugin.name in active and active[plugin.name].target == plugin.target
        default = plugin.distribution == "ftcore" and plugin.name in defaults
        hooks = static_hooks(plugin.target)
        rows.append(
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "hooks": "source not found" if hooks is None else ", ".join(hooks),
                "active": "yes" if chosen else "default" if default else "no",
            }
        )
    return rows
