"""From installed packages to called hooks: discovery, activation, lint, and typed calls."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .activation import Plugin, activate_all
    from .calls import HookCalls
    from .describe import describe_plugin, list_plugins, option_rows
    from .discovery import InstalledPlugin, discover, static_hooks
    from .host import Host
    from .startup import activate

__all__ = [
    "HookCalls",
    "Host",
    "InstalledPlugin",
    "Plugin",
    "activate",
    "activate_all",
    "describe_plugin",
    "discover",
    "list_plugins",
    "option_rows",
    "static_hooks",
]

__getattr__ = lazy(
    __name__,
    {
        "activation": "Plugin activate_all",
        "calls": "HookCalls",
        "describe": "describe_plugin list_plugins option_rows",
        "discovery": "InstalledPlugin discover static_hooks",
        "host": "Host",
        "startup": "activate",
    },
)
