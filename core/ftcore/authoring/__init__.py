"""For those who write plugins: templates, and checks that a plugin keeps its contracts."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .check import CheckResult, run_checks_in_subprocess
    from .plugin_under_test import CheckRequest
    from .scaffold import render_module, write_hooks_file, write_package

__all__ = [
    "CheckRequest",
    "CheckResult",
    "render_module",
    "run_checks_in_subprocess",
    "write_hooks_file",
    "write_package",
]

__getattr__ = lazy(
    __name__,
    {
        "check": "CheckResult run_checks_in_subprocess",
        "plugin_under_test": "CheckRequest",
        "scaffold": "render_module write_hooks_file write_package",
    },
)
