"""What several commands share: options, the start of the log, how a result is printed."""

from __future__ import annotations

import os
import sys
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ftcore.distributed.ranks import rank_and_world_size
from ftcore.errors import UnknownOptionError, UserError
from ftcore.system.text import printable
from ftcore.types.table import Table

from .errors import traceback_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def _complete_plugin(_ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of an installed plugin in a shell, or of a recipe."""
    from ftcore.plugins.discovery import discover, static_facts

    names = [plugin for plugin in discover() if plugin.name.startswith(incomplete)]
    return [plugin.name for plugin in names if param.name != "recipe" or static_facts(plugin.target).is_recipe]


run_argument = click.argument("run", type=PATH)
runs_argument = click.argument("runs", nargs=-1, required=True, type=PATH)
tta_option = click.option("--tta", is_flag=True, help="average predictions over each image and its mirror image")
out_option = click.option("--out", required=True, type=PATH, metavar="FOLDER", help="output folder")
json_option = partial(click.option, "--json", "as_json", is_flag=True, help="print one JSON object")
tables_json_option = json_option(help="print one JSON object: title of a table -> its rows")
plugin_option = partial(
    click.option,
    "--plugin",
    "plugins",
    multiple=True,
    metavar="PLUGIN",
    shell_complete=_complete_plugin,
    help="NAME, module[:Class] or file.py; several: A,B",
)


def _allow(ctx: click.Context, _option: click.Parameter, given: Sequence[str]) -> None:
    from ftcore.plugins.trust import allow

    ctx.with_resource(allow(split_names(given)))


run_plugin_option = plugin_option(
    expose_value=False, callback=_allow, help="code of yours that RUN names: file.py or module[:Class]"
)
"""Of commands that read a run: whose code they may load, beside what is trusted."""

without_option = partial(
    click.option, "--without", multiple=True, metavar="NAME", help="disable a plugin of the config, or a default plugin"
)
set_option = partial(
    click.option, "--set", "sets", multiple=True, metavar="KEY=VALUE", help="setting, e.g. train.epochs=3 or sgd.lr=0.1"
)


def run_options(command: F) -> F:
    """Add the arguments that say what to run."""
    decorators = [
        click.argument("config", required=False, type=PATH, metavar="[CONFIG.toml | DATA]"),
        click.option("--model", metavar="PROVIDER/NETWORK", help="network, e.g. timm/resnet50"),
        click.option(
            "--data", metavar="SOURCE", help="folder with one subfolder per class, table (.csv), or PROVIDER:NAME"
        ),
        click.option(
            "--recipe",
            metavar="NAME",
            shell_complete=_complete_plugin,
            help="recipe, e.g. lp_ft; `ftcore plugins --kind recipe`",
        ),
        plugin_option(),
        without_option(),
        *(click.option(f"--{name}", metavar=kind, help=f"{text}{_default(name)}") for name, kind, text in _FLAGS),
        set_option(),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _default(flag: str) -> str:
    """Spell the default of the option that a flag is, if it is a number."""
    import attrs

    from ftcore.config.schema import FLAGS, SECTIONS

    section, _, key = FLAGS.get(flag.replace("-", "_"), "").partition(".")
    default = getattr(attrs.fields(SECTIONS[section]), key).default if section else None
    return f"  [default: {default}]" if isinstance(default, int) else ""


_FLAGS = (
    ("epochs", "N", "passes over the training images"),
    ("lr", "RATE", "learning rate of the optimizer (default: set by the optimizer or recipe)"),
    ("batch-size", "N", "images per forward pass"),
    ("image-size", "PIXELS", "input height and width in pixels (default: from the weights)"),
    ("weights", "FILE", "default, none, an entry of the provider, or a .safetensors or .pth file"),
    ("seed", "N", "random seed of head initialisation, sample order and augmentation"),
    ("workers", "N", "number of loader processes; does not affect results"),
    ("device", "NAME", "cuda, cuda:1, mps or cpu (default: the first available)"),
    ("out", "FOLDER", "new run folder (default: runs/TIME-...)"),
)

split_option = click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="split to evaluate (default: val; all of --data if it has no splits)",
)


def rank_options(command: F) -> F:
    """Add the options that start several processes; they are started with the same arguments, and train."""

    @wraps(command)
    def launched(*arguments: Any, nproc: int | None, max_restarts: int, **named: Any) -> Any:
        started, ctx = rank_and_world_size() is not None, click.get_current_context()
        there = os.environ.get("LOCAL_WORLD_SIZE")
        if started and nproc and there != str(nproc):
            raise UserError(
                f"--nproc {nproc}, but another launcher already started {there or 'this process'}; leave it out"
            )
        if max_restarts and not (started or nproc):
            raise UserError("--max-restarts needs --nproc")
        if nproc and not started:
            from ftcore.distributed.launch import launch

            ctx.exit(launch(ctx.find_root().obj, nproc, max_restarts))
        return command(*arguments, **named)

    nproc = click.option("--nproc", type=click.IntRange(1), metavar="N", help="train in N processes on this machine")
    text = "restart all processes up to R times after a failure"
    restarts = click.option("--max-restarts", default=0, type=click.IntRange(0), metavar="R", help=text)
    return cast("F", nproc(restarts(launched)))


def quiet_option(command: F) -> F:
    """Add the option that shows nothing but warnings and errors."""

    @wraps(command)
    def quiet_or_not(*arguments: Any, quiet: bool, **named: Any) -> Any:
        from ftcore.console import suppress_output

        with suppress_output(quiet=quiet):
            return command(*arguments, **named)

    text = "show only warnings and errors; the run folder has the full log"
    return cast("F", click.option("--quiet", "-q", is_flag=True, help=text)(quiet_or_not))


def load(
    config: Path | None = None, model: str | None = None, data: str | None = None, *, trusted: bool = True, **flags: Any
) -> RunConfig:
    """Read a configuration file, and put what the options say over it.

    Args:
        config: a TOML file; of another name, it is `data`.
        model: as its flag, as all others.
        data: likewise.
        trusted: see `ftcore.config.load.load_config`.
        flags: those of `run_options`, None where one was not given.

    Raises:
        UserError: as `ftcore.config.load.load_config`.
    """
    from ftcore.config.load import CliOverrides, load_config

    recipe, sets = flags.pop("recipe", None), flags.pop("sets", ())
    if config and config.suffix != ".toml":
        _check_is_data(config, data, sets)
        config, data = None, str(config)
    named = (*split_names(flags.pop("plugins", ())), *((recipe,) if recipe else ()))
    without = tuple(name.replace("-", "_") for name in split_names(flags.pop("without", ())))
    given = {name: text for name, text in flags.items() if text is not None}
    try:
        loaded = load_config(config, CliOverrides(model, data, named, without, sets, given), trusted=trusted)
    except UnknownOptionError as error:
        from . import hints

        raise UserError("\n".join([str(error), *hints.for_options(error.names, named)])) from None
    if recipe:
        from ftcore.plugins.recipes import check_recipe

        check_recipe(loaded.plugins[-1])
    return loaded


def _check_is_data(path: Path, data: str | None, sets: Sequence[str]) -> None:
    """Refuse a word that stands alone, and is neither a configuration nor data, with what may have been meant."""
    half = next((text for text in sets if "=" not in text), None)
    if half:
        raise UserError(f"--set {half} {path}: expected KEY=VALUE; type --set {half}={path}")
    if data is not None:
        raise UserError(f"{path} and --data {data} both set the data; remove one (a configuration file ends in .toml)")
    if not path.exists() and ":" not in str(path):
        raise UserError(
            f"{path} does not exist (looked at {path.absolute()}); expected CONFIG.toml, or data: a folder or a table"
        )


def split_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Take names apart that are joined by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


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
        click.echo(printable(part, lines=True)) if isinstance(part, str) else _print_table(part) if isinstance(
            part, Table
        ) else _draw(part)


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
