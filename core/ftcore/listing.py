"""Every installed plugin in a row, without importing any."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .discover import default_module, discover, file_hooks, static_hooks
from .plugins import resolve

if TYPE_CHECKING:
    from .config import RunConfig
    from .plugins import Reference


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
        rows.append(
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "hooks": _spelt(static_hooks(plugin.target)),
                "active": "yes" if chosen else "default" if default else "no",
            }
        )
    return rows + [_file_row(reference) for reference in references if reference.file]


def _file_row(reference: Reference) -> dict[str, Any]:
    """Describe a hooks file that was named."""
    hooks = file_hooks(reference.file, reference.attribute) if reference.file else None
    return {
        "name": reference.name,
        "distribution": reference.source,
        "version": "",
        "hooks": _spelt(hooks),
        "active": "yes",
    }


def _spelt(hooks: tuple[str, ...] | None) -> str:
    return "source not found" if hooks is None else ", ".join(hooks)
