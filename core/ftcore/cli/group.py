"""The command `ftcore`, which has all the others. A `UserError` is one message on standard error and exit code 2."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from ftcore.console import escape_what_cannot_be_encoded
from ftcore.distributed.ranks import PeerFailed
from ftcore.system.signals import StoppedBySignal
from ftcore.system.text import printable

from . import errors
from .data import check, init
from .find import find
from .inference import ensemble, evaluate, export, predict, serve, soup
from .models import inspect, models
from .plugins import plugins
from .run import explain, replay, resume, run
from .runs import compare, report, runs
from .series import folds
from .trust import trust

_SECTIONS = {
    "Train": (run, folds, resume, explain, find, replay),
    "Data and networks": (check, init, models, inspect),
    "Evaluate and use": (evaluate, predict, serve, export, report, trust),
    "Compare and combine": (runs, compare, ensemble, soup),
    "Extend": (plugins,),
}


def _keep_lines(text: str | None) -> str | None:
    r"""Turn each ``\b`` into the character by which click knows lines that it must not join."""
    return text and text.replace(r"\b", "\b")


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(click.Group):
    """Prints a `UserError` instead of a traceback, and says what an unknown command or flag may have meant."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process with its exit code."""
        escape_what_cannot_be_encoded()
        try:
            Path.cwd()
        except FileNotFoundError:
            click.echo("ftcore: the current folder no longer exists; cd to another one", err=True)
            sys.exit(2)
        return super().main(*args, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as the context's object."""
        ctx.obj = tuple(args)  # for processes that do the same
        return super().parse_args(ctx, args)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.help = _keep_lines(self.help)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, whose examples stay a line each."""
        cmd.help = _keep_lines(cmd.help)
        super().add_command(cmd, name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that was named."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            from . import hints

            ctx.fail(f"No such command {args[0]!r}{hints.for_command(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by what they are for."""
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(one.name), one.get_short_help_str(limit=200)) for one in commands])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; turn errors that it expects into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            from . import hints

            hint = hints.for_flag(error.option_name, (error.ctx or ctx).command, ctx.obj)
            raise click.UsageError(f"No such option: {error.option_name}{hint}", error.ctx) from None
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
            click.echo(f"ftcore: {printable(message, lines=True)}", err=True)
            ctx.exit(2)


@click.group(cls=Group, context_settings=_SETTINGS)
@click.version_option(package_name="ftcore")
@errors.traceback_option
def main() -> None:
    r"""Fine-tune an image network on your own images; every step can be replaced by a plugin.

    \b
    Examples:
      ftcore run photos/ --model timm/mobilenetv3_large_100 --epochs 20
      ftcore predict runs/FOLDER new/ --csv
      ftcore plugins --kind loss
    """


for section in _SECTIONS.values():
    for command in section:
        main.add_command(command)
