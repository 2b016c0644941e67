"""What is shown of an error: one message where a user can mend it, of a plugin's own error the plugin's frames."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

import click

from ftcore.errors import UserError, is_plugin_error

if TYPE_CHECKING:
    from types import TracebackType

_CALLERS = frozenset({"ftcore", "click", "pluggy", "attr", "attrs", "torch", "", *sys.stdlib_module_names})
"""Packages whose frames lie above those of a plugin when something of it is called; code of attrs may have none."""

_SHOW_ALL = "ftcore.traceback"


def message(error: Exception) -> str:
    """Return the message for an error that a user can correct, or nothing."""
    if isinstance(error, UserError):
        return str(error)
    return _resource_limit_message(error) if isinstance(error, MemoryError | OSError | ImportError) else ""


def _resource_limit_message(error: MemoryError | OSError | ImportError) -> str:
    """Say which limit was met, if an error is about one that no part of a run has an answer to."""
    unmapped = "failed to map segment" in str(error)  # how the loader of libraries says it: glibc, dl-map-segments.h
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or unmapped:
        return f"out of memory: {error}; reduce train.workers, train.batch_size or data.cache_gb"
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{error}; raise the limit with `ulimit -n`, or reduce train.workers"
    return ""


def _show_all(ctx: click.Context, _option: click.Parameter, given: Any) -> None:
    if given:
        ctx.meta[_SHOW_ALL] = True


traceback_option = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    callback=_show_all,
    help="show ftcore's frames in tracebacks of plugin errors",
)
"""Adds the option that shows an error whole."""


def shorten_traceback(error: Exception, ctx: click.Context) -> None:
    """Hide the frames above the plugin in the traceback of a plugin error, unless all are requested."""
    if is_plugin_error(error) and not ctx.meta.get(_SHOW_ALL):
        sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that ends the process."""
    shown = _plugin_frames(trace) if is_plugin_error(error) else None
    if not shown:
        sys.__excepthook__(kind, error, trace)
        return
    sys.__excepthook__(kind, error.with_traceback(shown), shown)
    click.echo("ftcore: frames above the plugin's are hidden; show them with --traceback", err=True)


def _plugin_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the plugin's first frame on; None where ftcore met the error itself."""
    while trace and _package(trace) != "ftcore":  # whatever started the command
        trace = trace.tb_next
    while trace and _package(trace) in _CALLERS:
        trace = trace.tb_next
    return trace


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
