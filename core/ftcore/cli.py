"""The commands. A `UserError` is one message on standard error and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import RunConfig
    from .parts import Table

F = TypeVar("F", bound="Callable[..., Any]")


class _Commands(click.Group):
    """Prints a `UserError` instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"ftcore: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ftcore")
def main() -> None:
    """Fine-tune an image network; every decision is one plugin's answer to one hook."""


def _run_options(command: F) -> F:
    """Add the arguments that say what to run."""
    decorators = [
        click.argument("config", required=False, type=click.Path(path_type=Path)),
        click.option("--model", metavar="PROVIDER/NETWORK", help="model.name, e.g. timm/resnet50"),
        click.option("--data", metavar="SOURCE", help="data.source: a folder per class, or a data set by name"),
        click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="NAME, module[:Class] or file.py"),
        click.option("--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default"),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. train.epochs=3 or sgd.lr=0.1"),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _load(config: Path | None, model: str | None, data: str | None, **flags: tuple[str, ...]) -> RunConfig:
    from .config import Flags, load

    return load(config, Flags(model, data, **flags))


@main.command()
@_run_options
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="RUN", help="repeat the run of this folder")
@click.option("--allow-drift", is_flag=True, help="with --from: also where plugins, libraries or data have changed")
@click.option("--json", "as_json", is_flag=True, help="print the report as one JSON object on standard output")
def run(config: Path | None, source: Path | None, *, allow_drift: bool, as_json: bool, **options: Any) -> None:
    """Fine-tune, as CONFIG (a TOML file) and the flags say; flags win.

    With --from, as the config.toml of a run folder says, in a new folder.
    """
    from .log import RunLog
    from .run import run as run_config

    if source and config:
        raise UserError(f"--from {source} already says what to run; leave out {config}, or use flags to change it")
    if allow_drift and not source:
        raise UserError("--allow-drift needs --from RUN")
    asked, like = _load(source / "config.toml" if source else config, **options), None
    if source:
        from .provenance import in_new_folder, read_manifest

        asked, like = in_new_folder(asked, source), None if allow_drift else read_manifest(source)
    log = RunLog()
    report = run_config(asked, [log.observe], like=like)
    if as_json:
        from .checkpoint import to_json

        click.echo(to_json(report))


@main.command()
@_run_options
@click.option("--static", is_flag=True, help="only who would be asked: reads no data and builds no network")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: title of a table -> its rows")
def explain(*, static: bool, as_json: bool, **options: Any) -> None:
    """Say who answers which hook and why, what is frozen, and the parameter groups; same arguments as run."""
    from . import explain as explaining
    from .log import RunLog

    RunLog()
    config = _load(**options)
    tables = explaining.explain_statically(config) if static else explaining.explain(config)
    if as_json:
        click.echo(json.dumps(explaining.as_json(tables)))
        return
    _show(tables)


def _show(tables: Sequence[Table]) -> None:
    from .console import console, show_table

    out = console(sys.stdout)
    for table in tables:
        show_table(out, table)
        out.print()


@main.group(invoke_without_command=True)
@click.option("--config", type=click.Path(path_type=Path), help="a TOML file that names plugins")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="NAME, module[:Class] or file.py")
@click.option("--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
@click.pass_context
def plugins(ctx: click.Context, /, *, as_json: bool, config: Path | None, **options: Any) -> None:
    """List every installed plugin, and which of them a run with these options would activate; imports none."""
    from .listing import plugin_rows

    if ctx.invoked_subcommand:
        return
    rows = plugin_rows(_load(config, None, None, **options))
    if as_json:
        click.echo(json.dumps(rows))
        return
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: title of a table -> its rows")
def show(name: str, *, as_json: bool) -> None:
    """Describe the plugin NAME (or module:Class, or file.py): hooks, options with types and defaults, source."""
    from . import explain as explaining
    from .config import Named
    from .listing import describe

    tables = describe(Named(name, f"plugins show {name}", Path.cwd()))
    if as_json:
        click.echo(json.dumps(explaining.as_json(tables)))
        return
    _show(tables)


@main.command()
@click.argument("pattern", required=False)
@click.option("--max-params", metavar="N", help="at most so many parameters, e.g. 10M")
@click.option("--pretrained", is_flag=True, help="only networks with pre-trained weights")
@click.option("--measure", is_flag=True, help="time a forward pass of one image on this machine")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="also ask this plugin for networks")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
def models(
    pattern: str | None,
    max_params: str | None,
    plugins: tuple[str, ...],
    *,
    pretrained: bool,
    measure: bool,
    as_json: bool,
) -> None:
    """List networks, smallest first: all, or those that match PATTERN (a glob, or a part of the name).

    Parameters are counted where PATTERN or --max-params asks for it, about 0.15 s a network, and remembered; a bare
    list shows those that are known.
    """
    from rich.progress import track

    from . import models as listing
    from .calls import Calls
    from .config import Flags, load
    from .console import console, show_table
    from .run import activate

    if measure and not pattern:
        raise UserError("--measure needs a PATTERN: it builds and runs each network, which takes seconds")
    limit = None if max_params is None else listing.parse_count(max_params)
    known = Calls(activate(load(None, Flags(plugins=plugins)))).list_models()
    found = listing.matching(known, pattern) if pattern else known
    rows = listing.known_rows([info for info in found if info.weights or not pretrained])
    if pattern or limit is not None:
        err = console(sys.stderr)
        rows = listing.count(rows, lambda todo: track(todo, "counting", console=err, disable=len(todo) < 20))
    rows = listing.ordered([row for row in rows if limit is None or (row.parameters or 0) <= limit])
    rows = [listing.measure(row) for row in rows] if measure else rows
    if as_json:
        click.echo(json.dumps([listing.as_json(row) for row in rows]))
    else:
        show_table(console(sys.stdout), listing.table(rows))


@main.command()
@click.argument("model")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="e.g. freeze_backbone, to see what it does")
@click.option("--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. freeze_modules.stages=2")
@click.option("--classes", default=10, show_default=True, type=click.IntRange(1), help="outputs of the new head")
@click.option("--depth", default=2, show_default=True, type=click.IntRange(0), help="levels of modules")
def inspect(model: str, classes: int, depth: int, **options: tuple[str, ...]) -> None:
    """Show the modules of MODEL (PROVIDER/NETWORK, or a config.toml): shapes, parameters, head, what is frozen, groups.

    Needs no weights, no data and no memory for the network.
    """
    from .inspection import inspect as inspect_config

    is_file = model.endswith(".toml")
    config = _load(Path(model) if is_file else None, None if is_file else model, None, **options)
    _show(inspect_config(config, classes, depth))


@main.command()
@click.argument("data")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="NAME, module[:Class] or file.py")
@click.option("--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. table.target=label")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: title of a table -> its rows")
@click.pass_context
def check(ctx: click.Context, /, data: str, *, as_json: bool, **options: tuple[str, ...]) -> None:
    """Decode every image of DATA (a folder, a table, or a config.toml) and report what is wrong with it.

    Unreadable, duplicate and unusual images, the same picture in both splits or with two labels, classes that are
    missing. Exit code 1 if an image cannot be read, is in both splits, or has two labels. What was decoded is
    remembered until the file changes.
    """
    from . import explain as explaining
    from .log import RunLog
    from .quality import check as check_data

    RunLog()
    is_config = data.endswith(".toml")
    found = check_data(_load(Path(data) if is_config else None, None, None if is_config else data, **options))
    if as_json:
        click.echo(json.dumps(explaining.as_json(found.tables)))
    else:
        _show(found.tables)
    ctx.exit(1 if found.errors else 0)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a picture")
def predict(run: Path, pictures: tuple[Path, ...], *, as_json: bool) -> None:
    """Say what the network of the folder RUN sees in PICTURES (files and folders): class and probability."""
    from .log import RunLog
    from .predict import Prediction, load
    from .predict import predict as predict_all

    RunLog()
    model, bad = load(run), []
    for answer in predict_all(model, pictures):
        if not isinstance(answer, Prediction):
            bad.append(str(answer))
        elif as_json:
            labels = {"labels": answer.labels} if model.task.kind == "multilabel" else {}
            click.echo(json.dumps({"path": str(answer.path), "values": answer.values, **labels}))
        elif model.task.kind == "classification":
            name, probability = next(iter(answer.values.items()))
            click.echo(f"{answer.path}\t{name}\t{probability:.4f}")
        elif model.task.kind == "multilabel":
            found = [f"{name} {answer.values[name]:.4f}" for name in answer.labels]
            click.echo("\t".join([str(answer.path), *found]))
        else:
            click.echo("\t".join([str(answer.path), *(f"{n}={v:.6g}" for n, v in answer.values.items())]))
    if bad:
        raise UserError("\n".join(bad))
