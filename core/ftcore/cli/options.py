"""What several commands share: options, the start of the log, how a result is printed."""

from __future__ import annotations

import os
import sys
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ftcore.distributed.ranks import rank_and_world_size
from ftcore.errors import UserError
from ftcore.types.table import Table

from .errors import traceback_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.config.schema import RunConfig
    from ftcore.plots import Plot


F = TypeVar("F", bound="Callable[..., Any]")

PATH = click.Path(path_type=Path)


class LoggedCommand(click.Command):
    """Starts the log, which is the context's object, before it does anything; takes --traceback as `ftcore` does."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        traceback_option(self)

    def invoke(self, ctx: click.Context) -> Any:
        """Start the log, then do what the command does."""
        from ftcore.runs.log import RunLog

        ctx.obj = RunLog()
        return super().invoke(ctx)


run_argument = click.argument("run", type=PATH)
runs_argument = click.argument("runs", nargs=-1, required=True, type=PATH)
tta_option = click.option("--tta", is_flag=True, help="average over each picture and its mirror image")
out_option = click.option("--out", required=True, type=PATH, metavar="FOLDER", help="the folder to write")
json_option = partial(click.option, "--json", "as_json", is_flag=True, help="print one JSON object")
tables_json_option = json_option(help="print one JSON object: title of a table -> its rows")
plugin_option = partial(
    click.option, "--plugin", "plugins", multiple=True, metavar="PLUGIN", help="NAME, module[:Class] or file.py"
)
without_option = partial(
    click.option, "--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default"
)
set_option = partial(
    click.option, "--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. train.epochs=3 or sgd.lr=0.1"
)


def run_options(command: F) -> F:
    """Add the arguments that say what to run."""
    decorators = [
        click.argument("config", required=False, type=PATH),
        click.option("--model", metavar="PROVIDER/NETWORK", help="model.name, e.g. timm/resnet50"),
        click.option("--data", metavar="SOURCE", help="data.source: a folder per class, or a data set by name"),
        plugin_option(),
        without_option(),
        set_option(),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def rank_options(command: F) -> F:
    """Add the options that start several processes; they are started with the same arguments, and train."""

    @wraps(command)
    def launched(*arguments: Any, nproc: int | None, max_restarts: int, **named: Any) -> Any:
        started, ctx = rank_and_world_size() is not None, click.get_current_context()
        there = os.environ.get("LOCAL_WORLD_SIZE")
        if started and nproc and there != str(nproc):
            raise UserError(
                f"--nproc {nproc}, but another launcher has started {there or 'this process'}; leave it out"
            )
        if max_restarts and not (started or nproc):
            raise UserError("--max-restarts needs --nproc")
        if nproc and not started:
            from ftcore.distributed.launch import launch

            ctx.exit(launch(ctx.find_root().obj, nproc, max_restarts))
        return command(*arguments, **named)

    nproc = click.option("--nproc", type=click.IntRange(1), metavar="N", help="train in N processes on this machine")
    text = "start them again after one has failed, so often"
    restarts = click.option("--max-restarts", default=0, type=click.IntRange(0), metavar="R", help=text)
    return cast("F", nproc(restarts(launched)))


def quiet_option(command: F) -> F:
    """Add the option that shows nothing but warnings and errors."""

    @wraps(command)
    def quiet_or_not(*arguments: Any, quiet: bool, **named: Any) -> Any:
        from ftcore.console import suppress_output

        with suppress_output(quiet=quiet):
            return command(*arguments, **named)

    text = "show nothing but warnings and errors; all is in the run folder"
    return cast("F", click.option("--quiet", "-q", is_flag=True, help=text)(quiet_or_not))


def load(config: Path | None = None, model: str | None = None, data: str | None = None, **flags: Any) -> RunConfig:
    """Read a configuration file, and put what the options say over it.

    Raises:
        UserError: as `ftcore.config.load.load_config`.
    """
    from ftcore.config.load import CliOverrides, load_config

    return load_config(config, CliOverrides(model, data, **flags))


def print_result(*shown: Table | Plot | str, values: Any = None, as_json: bool = False) -> None:
    """Print what a command has found on standard output: for people, or as one line of JSON.

    Args:
        shown: for people, in this order.
        values: the same as plain data; by default the tables: title -> rows, each by column.
        as_json: print the values instead.
    """
    if as_json:
        from ftcore.checkpoints import to_json

        click.echo(to_json(_table_values(shown) if values is None else values))
        return
    for part in shown:
        click.echo(part) if isinstance(part, str) else _print_table(part) if isinstance(part, Table) else _draw(part)


def _table_values(shown: tuple[Table | Plot | str, ...]) -> dict[str, list[dict[str, str]]]:
    tables = [part for part in shown if isinstance(part, Table)]
    return {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}


def _print_table(table: Table) -> None:
    from ftcore.console import console, print_table

    out = console(sys.stdout)
    print_table(out, table)
    out.print()


def _draw(plot: Plot) -> None:
    from ftcore.plots import render_text, to_encoding

    click.echo(to_encoding(render_text(plot, colour=sys.stdout.isatty()), sys.stdout.encoding or "utf-8"))
