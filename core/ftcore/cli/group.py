"""The command `ftcore`, which has all the others. A `UserError` is one message on standard error and exit code 2."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from ftcore.distributed.ranks import PeerFailed
from ftcore.system.signals import StoppedBySignal

from . import errors
from .data import check
from .find import find
from .inference import ensemble, evaluate, export, predict, serve, soup
from .models import inspect, models
from .plugins import plugins
from .run import explain, replay, resume, run
from .runs import compare, report, runs


class Group(click.Group):
    """Prints a `UserError` instead of a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process with its exit code."""
        try:
            Path.cwd()
        except FileNotFoundError:
            click.echo("ftcore: the folder that you are in is not there any more; go to another", err=True)
            sys.exit(2)
        return super().main(*args, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as the context's object."""
        ctx.obj = tuple(args)  # for processes that do the same
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; turn errors that it expects into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except PeerFailed as elsewhere:
            ctx.exit(elsewhere.code)
        except KeyboardInterrupt:
            click.echo("\nftcore: interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)  # as of a process that the signal killed; click's is that of any failure
        except StoppedBySignal as stopped:
            click.echo(f"ftcore: {stopped}", err=True)
            ctx.exit(stopped.code)
        except Exception as error:
            message = errors.message(error)
            if not message:
                errors.shorten_traceback(error, ctx)
                raise
            click.echo(f"ftcore: {message}", err=True)
            ctx.exit(2)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ftcore")
@errors.traceback_option
def main() -> None:
    """Fine-tune an image network; every decision is one plugin's answer to one hook."""


for command in (run, resume, replay, explain, runs, compare, find, plugins, models, inspect, check, predict, serve):
    main.add_command(command)
for command in (export, evaluate, report, ensemble, soup):
    main.add_command(command)
