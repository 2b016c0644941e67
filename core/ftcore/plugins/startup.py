"""From a configuration to active plugins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.config.load import apply_demo_defaults

from . import activation, discovery, hook_options
from .discovery import load_defaults
from .host import Host
from .recipes import expand_recipes

if TYPE_CHECKING:
    from ftcore.config.schema import RunConfig
    from ftcore.distributed.ranks import ProcessInfo


def activate(config: RunConfig, folder: Path = Path(), ranks: ProcessInfo | None = None) -> Host:
    """Import, lint and configure the plugins of a run.

    Raises:
        UserError: what `ftcore.plugins.activation.activate_all` raises.
    """
    defaults = load_defaults()
    available = discovery.discover()
    config = expand_recipes(apply_demo_defaults(config, defaults.DEMO_CONFIG), available)
    config = hook_options.assign(config, available, defaults.PLUGINS)
    return Host(config, activation.activate_all(config, available, defaults.PLUGINS), folder, ranks)
