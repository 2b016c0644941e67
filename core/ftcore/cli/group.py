"""The commands. A `UserError` is one message on standard error and exit code 2."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ftcore.distributed.ranks import PeerFailed, rank_and_world_size
from ftcore.errors import UserError
from ftcore.system.signals import StoppedBySignal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.inference.model import Model
    from ftcore.inference.predict import Prediction
    from ftcore.plots import Plot
    from ftcore.types.table import Table


F = TypeVar("F", bound="Callable[..., Any]")


class _Commands(click.Group):
    """Prints a `UserError` instead of a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            Path.cwd()
        except FileNotFoundError:
            click.echo("ftcore: the folder that you are in is not there any more; go to another", err=True)
            sys.exit(2)
        return super().main(*args, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = tuple(args)  # for processes that do the same
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PeerFailed as elsewhere:
            ctx.exit(elsewhere.code)
        except (UserError, MemoryError, OSError, ImportError) as error:
            message = str(error) if isinstance(error, UserError) else _resource_limit_message(error)
            if not message:
                raise
            click.echo(f"ftcore: {message}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("\nftcore: interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)  # as of a process that the signal killed; click's is that of any failure
        except StoppedBySignal as stopped:
            click.echo(f"ftcore: {stopped}", err=True)
            ctx.exit(stopped.code)


def _resource_limit_message(error: MemoryError | OSError | ImportError) -> str:
    """Say which limit was met, if an error is about one that no part of a run has an answer to."""
    unmapped = "failed to map segment" in str(error)  # how the loader of libraries says it: glibc, dl-map-segments.h
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or unmapped:
        return f"no memory is left: {error}; fewer train.workers, a smaller train.batch_size or data.cache_gb take less"
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{error}; `ulimit -n` shows how many, and raises it; fewer train.workers take less"
    return ""


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


def _rank_options(command: F) -> F:
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


def _quiet_option(command: F) -> F:
    """Add the option that shows nothing but warnings and errors."""

    @wraps(command)
    def quiet_or_not(*arguments: Any, quiet: bool, **named: Any) -> Any:
        from ftcore.console import suppress_output

        with suppress_output(quiet=quiet):
            return command(*arguments, **named)

    text = "show nothing but warnings and errors; all is in the run folder"
    return cast("F", click.option("--quiet", "-q", is_flag=True, help=text)(quiet_or_not))


def _print_report(report: Mapping[str, Any]) -> None:
    """Print a report as JSON: in the first process alone."""
    from ftcore.checkpoints.atomic import to_json

    place = rank_and_world_size()
    if place is None or place[0] == 0:
        click.echo(to_json(report))


def _load(config: Path | None, model: str | None, data: str | None, **flags: tuple[str, ...]) -> RunConfig:
    from ftcore.config.load import CliOverrides, load_config

    return load_config(config, CliOverrides(model, data, **flags))


@main.command()
@_run_options
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="RUN", help="repeat the run of this folder")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="RUN", help="as ftcore resume RUN")
@click.option("--allow-drift", is_flag=True, help="with those: also where plugins, libraries or data have changed")
@click.option("--json", "as_json", is_flag=True, help="print the report as one JSON object on standard output")
@_quiet_option
@_rank_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    config: Path | None,
    source: Path | None,
    resumed: Path | None,
    *,
    allow_drift: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune, as CONFIG (a TOML file) and the flags say; flags win.

    With --from, as the config.toml of a run folder says, in a new folder.
    """
    if resumed:
        given = [name for name, value in (options | {"config": config, "from": source}).items() if value]
        if set(given) - {"sets"}:
            raise UserError(f"--resume {resumed} goes on with that run as it was begun; leave out {', '.join(given)}")
        sets = options["sets"]
        ctx.invoke(resume, run=resumed, sets=sets, allow_drift=allow_drift, as_json=as_json)
        return
    from ftcore.runs.log import RunLog
    from ftcore.runs.run import fit

    if source and config:
        raise UserError(f"--from {source} already says what to run; leave out {config}, or use flags to change it")
    if allow_drift and not source:
        raise UserError("--allow-drift needs --from RUN")
    asked, like = _load(source / "config.toml" if source else config, **options), None
    if source:
        from ftcore.config.load import refuse_code_in_run_folder
        from ftcore.runs.manifest import drop_run_folder, read_manifest

        refuse_code_in_run_folder(asked.plugins, source)
        asked, like = drop_run_folder(asked, source), None if allow_drift else read_manifest(source)
    log = RunLog()
    report = fit(asked, [log.observe], expected_manifest=like)
    if as_json:
        _print_report(report)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="what changes no result, e.g. train.workers=4")
@click.option("--allow-drift", is_flag=True, help="also where config, plugins, libraries or data have changed")
@click.option("--json", "as_json", is_flag=True, help="print the report as one JSON object on standard output")
@_quiet_option
@_rank_options
def resume(run: Path, sets: tuple[str, ...], *, allow_drift: bool, as_json: bool) -> None:
    """Go on with RUN, a run folder, where it was stopped or killed; it ends as it would have without that."""
    from ftcore.runs.log import RunLog
    from ftcore.runs.run import resume as resume_run

    report = resume_run(run, sets, [RunLog().observe], allow_drift=allow_drift)
    if as_json:
        _print_report(report)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def replay(run: Path, *, as_json: bool) -> None:
    """Do the step of RUN again that was not finite: say whether it is the same, and where it goes wrong first."""
    from ftcore.checkpoints.atomic import to_json
    from ftcore.runs.log import RunLog
    from ftcore.runs.run import replay as replay_run
    from ftcore.training import nonfinite

    RunLog()
    found = replay_run(run)
    if as_json:
        click.echo(to_json(nonfinite.as_json(found)))
        return
    _print_tables([nonfinite.table(found)])


@main.command()
@_run_options
@click.option("--static", is_flag=True, help="only who would be asked: reads no data and builds no network")
@click.option("--devices", type=click.IntRange(1), metavar="N", help="what a step takes of memory, on one and on N")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: title of a table -> its rows")
def explain(*, static: bool, devices: int | None, as_json: bool, **options: Any) -> None:
    """Say who answers which hook and why, what is frozen, the parameter groups and their learning rates over the run.

    Same arguments as run.
    """
    from ftcore.reports import explain as explaining
    from ftcore.runs.log import RunLog

    RunLog()
    if static and devices:
        raise UserError("--devices counts the memory of the network, which --static does not build; leave one out")
    config = _load(**options)
    tables, rates = (
        (explaining.explain_without_building(config), None) if static else explaining.explain(config, devices)
    )
    if as_json:
        click.echo(json.dumps(explaining.as_json(tables)))
        return
    _print_tables(tables)
    if rates:
        from ftcore.reports.lr_preview import plot

        _print_plot(plot(rates))


def _print_tables(tables: Sequence[Table]) -> None:
    from ftcore.console import console, print_table

    out = console(sys.stdout)
    for table in tables:
        print_table(out, table)
        out.print()


def _print_plot(plot: Plot) -> None:
    from ftcore.plots import render_text, to_encoding

    click.echo(to_encoding(render_text(plot, colour=sys.stdout.isatty()), sys.stdout.encoding or "utf-8"))


@main.command()
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--where", multiple=True, metavar="KEY=PATTERN", help="e.g. model.name=timm/*, plugins=ema, state=failed")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
def runs(folder: Path, where: tuple[str, ...], *, as_json: bool) -> None:
    """List the runs in FOLDER and below it: how they stand, their best epoch, what they are."""
    from ftcore.runs import listing

    found = listing.find(folder, where)
    if as_json:
        click.echo(json.dumps([listing.as_json(run) for run in found]))
    else:
        _print_tables([listing.table(found)])


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data", "source", metavar="SOURCE", help="measure all on this; by default on their own validation split"
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="write a page, beside what is printed")
def compare(runs: tuple[Path, ...], source: str | None, *, as_json: bool, html: Path | None) -> None:
    """Compare RUNS with the first: what differs in them, and whether their answers differ by more than chance."""
    from ftcore.checkpoints.atomic import to_json, wrap_write_errors
    from ftcore.reports.comparison import compare as compared
    from ftcore.reports.comparison_page import render_html
    from ftcore.runs.log import RunLog

    RunLog()
    if html and html.exists():
        raise UserError(f"{html} exists, and nothing is overwritten; --html names another file")
    tables, values = compared(runs, source)
    if html:
        with wrap_write_errors(html.parent):
            html.write_text(render_html(values), encoding="utf-8")
    if as_json:
        click.echo(to_json(values))
    else:
        _print_tables(tables)


@main.group()
def find() -> None:
    """Try real steps of a run: for a learning rate, the largest batch, faster settings; nothing is kept of them."""


@find.command()
@_run_options
@click.option("--from", "lowest", type=float, default=1e-7, show_default=True, help="first learning rate")
@click.option("--to", "highest", type=float, default=10.0, show_default=True, help="last learning rate")
@click.option("--steps", type=int, default=100, show_default=True, help="optimizer steps from the one to the other")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="also draw the curve to a PNG file")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, without the drawing")
def lr(*, lowest: float, highest: float, steps: int, png: Path | None, as_json: bool, **options: Any) -> None:
    """Let the learning rate grow from step to step and watch the loss (Smith 2017); same arguments as run.

    The steps are those of the run, but for its schedule, and they end when the loss is 4 times its best.
    """
    from rich.progress import track

    from ftcore import plots
    from ftcore.checkpoints.atomic import to_json
    from ftcore.console import console
    from ftcore.runs.log import RunLog
    from ftcore.tuning import lr_finder
    from ftcore.tuning import trial as tuning_trial

    RunLog()
    lr_finder.check(lowest, highest, steps)
    if png:
        plots.check_png(png)
    ready, err = tuning_trial.prepare(_load(**options)), console(sys.stderr)
    rates = lr_finder.exponential_lrs(lowest, highest, steps)
    test = lr_finder.lr_range_test(
        ready.assembly, rates, lambda rates: track(rates, "steps", console=err, disable=not err.is_terminal)
    )
    if png:
        plots.save_png(lr_finder.plot(test), png)
    if as_json:
        click.echo(to_json(lr_finder.as_json(ready, test)))
        return
    _print_plot(lr_finder.plot(test))
    click.echo(f"{lr_finder.summary(ready, test)}\n")
    if test.suggestions():
        _print_tables([lr_finder.table(ready, test)])


@find.command()
@_run_options
@click.option("--max", "most", type=int, metavar="N", help="most images in a batch; by default the training split")
@click.option("--memory", type=float, default=0.9, show_default=True, help="share of the free memory that may be used")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def batch(*, most: int | None, memory: float, as_json: bool, **options: Any) -> None:
    """Double the batch until memory is full, and time a step with each size; same arguments as run.

    On a CPU no size is tried that is expected to take more than --memory of what is free.
    """
    from ftcore.checkpoints.atomic import to_json
    from ftcore.runs.log import RunLog
    from ftcore.tuning import trial as tuning_trial

    RunLog()
    ready = tuning_trial.prepare(_load(**options))

    from ftcore.tuning import batch_size as tuning_batch_size

    found = tuning_batch_size.find_batch_size(ready.assembly, most, memory)
    if as_json:
        click.echo(to_json(tuning_batch_size.as_json(found)))
        return
    _print_tables(tuning_batch_size.tables(found))
    click.echo(tuning_batch_size.accumulation_hint(found, ready.assembly.parts.train_config))


@find.command()
@_run_options
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="of steps")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def speed(*, seconds: float, as_json: bool, plugins: Sequence[str], sets: Sequence[str], **options: Any) -> None:
    """Try settings that may be faster, each beside the best so far, and print the flags; same arguments as run.

    channels_last, bf16, compile, threads and loader processes, with the run's own network and data.
    """
    from ftcore.checkpoints.atomic import to_json
    from ftcore.runs.log import RunLog
    from ftcore.tuning import speed as tuning_speed

    RunLog()
    trials = []
    for trial in tuning_speed.find_faster_settings(
        lambda more, others: _load(**options, plugins=(*plugins, *more), sets=(*sets, *others)), seconds
    ):
        trials.append(trial)
        click.echo(f"{trial.setting.name}: {tuning_speed.result_text(trial)}", err=True)
    if as_json:
        click.echo(to_json(tuning_speed.as_json(trials)))
        return
    _print_tables([tuning_speed.table(trials)])
    click.echo(
        f"to use: {' '.join(tuning_speed.flags(trials))}" if tuning_speed.flags(trials) else "as it is, it is fastest"
    )


@main.group(invoke_without_command=True)
@click.option("--config", type=click.Path(path_type=Path), help="a TOML file that names plugins")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="NAME, module[:Class] or file.py")
@click.option("--without", multiple=True, metavar="NAME", help="leave out a plugin of the config or a default")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
@click.pass_context
def plugins(ctx: click.Context, /, *, as_json: bool, config: Path | None, **options: Any) -> None:
    """List every installed plugin, and which of them a run with these options would activate; imports none."""
    from ftcore.plugins.describe import list_plugins

    if ctx.invoked_subcommand:
        return
    rows = list_plugins(_load(config, None, None, **options))
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
    from ftcore.config.schema import PluginRef
    from ftcore.plugins.describe import describe_plugin
    from ftcore.reports import explain as explaining

    tables = describe_plugin(PluginRef(name, f"plugins show {name}", Path.cwd()))
    if as_json:
        click.echo(json.dumps(explaining.as_json(tables)))
        return
    _print_tables(tables)


@plugins.command("check")
@click.argument("name")
@click.option("--model", metavar="PROVIDER/NETWORK", help="by default the first that it lists, or that of the demo")
@click.option("--data", metavar="SOURCE", help="by default its own, called as it is, or that of the demo")
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="named beside it in all runs")
@click.option("--without", multiple=True, metavar="NAME", help="leave out a default plugin")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. data.task=regression")
@click.option("--but", multiple=True, metavar="CHECK", help="leave out a check, such as ranks")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
@click.pass_context
def check_plugin(ctx: click.Context, /, name: str, *, as_json: bool, **options: Any) -> None:
    """Check that a plugin keeps its contracts.

    NAME, or module:Class, or file.py, is imported and run in a process of its own. A line for each check: ok, failed
    and what to change, or not applicable and why. Exit code 2 if one has failed.
    """
    from attrs import asdict

    from ftcore.authoring.check import run_checks_in_subprocess
    from ftcore.authoring.plugin_under_test import CheckRequest

    found = []
    for finding in run_checks_in_subprocess(CheckRequest(name, **options)):
        found.append(finding)
        if not as_json:
            click.echo(str(finding))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    ctx.exit(2 if any(finding.state == "failed" for finding in found) else 0)


@plugins.command()
@click.argument("name")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    required=True,
    metavar="HOOK",
    help="a hook that it answers, e.g. make_loss; one or more",
)
@click.option("--in-house", is_flag=True, help="write one file, hooks.py, instead of a package")
def new(name: str, hooks: tuple[str, ...], *, in_house: bool) -> None:
    """Write a plugin to begin with.

    Into the current folder: a package NAME with options, tests and types, or hooks.py. It works as it is, and each hook
    has an example as its body, to be replaced.
    """
    from ftcore.authoring import scaffold

    write, after = (
        (scaffold.write_hooks_file, scaffold.NEXT_STEPS_FILE)
        if in_house
        else (scaffold.write_package, scaffold.NEXT_STEPS_PACKAGE)
    )
    for path in write(name, hooks, Path.cwd()):
        click.echo(str(path.relative_to(Path.cwd())))
    click.echo(after.format(name=name, cls=scaffold.class_name(name)), err=True)


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

    from ftcore.config.load import CliOverrides, load_config
    from ftcore.console import console, print_table
    from ftcore.model import catalog
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    if measure and not pattern:
        raise UserError("--measure needs a PATTERN: it builds and runs each network, which takes seconds")
    limit = None if max_params is None else catalog.parse_count(max_params)
    known = HookCalls(activate(load_config(None, CliOverrides(plugins=plugins)))).list_models()
    found = catalog.filter_models(known, pattern) if pattern else known
    rows = catalog.rows_from_cache([info for info in found if info.weights or not pretrained])
    if pattern or limit is not None:
        err = console(sys.stderr)
        rows = catalog.count_parameters(rows, lambda todo: track(todo, "counting", console=err, disable=len(todo) < 20))
    rows = catalog.sort_by_size([row for row in rows if limit is None or (row.parameters or 0) <= limit])
    rows = [catalog.measure_latency(row) for row in rows] if measure else rows
    if as_json:
        click.echo(json.dumps([catalog.as_json(row) for row in rows]))
    else:
        print_table(console(sys.stdout), catalog.table(rows))


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
    from ftcore.reports.model_summary import summarize_model

    is_file = model.endswith(".toml")
    config = _load(Path(model) if is_file else None, None if is_file else model, None, **options)
    _print_tables(summarize_model(config, classes, depth))


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
    from ftcore.reports import explain as explaining
    from ftcore.reports.data_quality import check as check_data
    from ftcore.runs.log import RunLog

    RunLog()
    is_config = data.endswith(".toml")
    found = check_data(_load(Path(data) if is_config else None, None, None if is_config else data, **options))
    if as_json:
        click.echo(json.dumps(explaining.as_json(found.tables)))
    else:
        _print_tables(found.tables)
    ctx.exit(1 if found.errors else 0)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tta", is_flag=True, help="average over each picture and its mirror image")
@click.option("--why", type=click.Path(path_type=Path), metavar="FOLDER", help="draw there where each was seen")
@click.option("--top", type=click.IntRange(1), metavar="N", help="the N most probable classes of each picture")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a picture")
@click.option("--csv", "as_csv", is_flag=True, help="print a table, a line a picture")
def predict(
    run: Path, pictures: tuple[Path, ...], *, tta: bool, why: Path | None, top: int | None, **forms: bool
) -> None:
    """Say what RUN (a run, an ensemble, a soup) sees in PICTURES (files and folders): class and probability."""
    from ftcore.inference.load import load
    from ftcore.inference.output import PredictionWriter
    from ftcore.inference.predict import Prediction
    from ftcore.inference.predict import predict as predict_all
    from ftcore.runs.log import RunLog
    from ftcore.system.cpu import retain_freed_memory

    RunLog()
    retain_freed_memory()
    model, bad, good = load(run), [], 0
    spelling = PredictionWriter(model.task, top, **forms)
    drawings = _heatmap_writer(model, why)
    if spelling.header:
        click.echo(spelling.header)
    for answer in predict_all(model, pictures, tta=tta):
        if isinstance(answer, Prediction):
            good += 1
            click.echo(spelling.line(answer))
            drawings(answer)
        else:
            bad.append(str(answer))
    if bad:
        raise UserError("\n".join([*bad, f"{len(bad)} of {good + len(bad)} could not be read"]))


def _heatmap_writer(model: Model, folder: Path | None) -> Callable[[Prediction], None]:
    """Return what draws why a prediction is what it is, into a folder, if one is given."""
    if folder is None:
        return lambda _: None
    from ftcore.inference.gradcam import HeatMapWriter

    return HeatMapWriter(model, folder).draw


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="where to listen; 0.0.0.0 is everywhere")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one")
@click.option("--max-mb", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="of a picture")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="pictures at a time, at most")
@click.option("--tta", is_flag=True, help="average over each picture and its mirror image")
def serve(run: Path, *, host: str, port: int, max_mb: float, batch_size: int, tta: bool) -> None:
    """Answer over HTTP what RUN (a run, an ensemble, a soup) sees: POST /predict, and a page to drop pictures on."""
    from ftcore.inference.load import load
    from ftcore.runs.log import RunLog
    from ftcore.system.cpu import retain_freed_memory

    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'ftcore[serve]'")
    from ftcore.inference import serve as inference_serve

    RunLog()
    retain_freed_memory()
    model = load(run)
    if tta and model.is_text_model:
        raise UserError(f"--tta looks at the mirror image of each picture, and {run} reads texts")
    listening = inference_serve.bind(host, port)
    if not inference_serve.is_loopback(host):
        click.echo(f"ftcore: warning: whoever reaches {host} can use this model, without a password", err=True)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{run} answers at http://{shown}:{listening.getsockname()[1]}; Ctrl-C ends it", err=True)
    limits = inference_serve.Limits(round(max_mb * 1_000_000), batch_size)
    inference_serve.serve(inference_serve.application(model, limits, tta=tta), listening)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["safetensors", "torch", "onnx", "hf"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="by default named after the run")
@click.option("--int8", is_flag=True, help="of an ONNX file: compute in 8-bit integers, and measure what that costs")
def export(run: Path, kind: str, out: Path | None, *, int8: bool) -> None:
    """Write the model of RUN into a file that needs no ftcore, and try it against the run's own."""
    from ftcore.inference import export as exporting
    from ftcore.runs.log import RunLog

    RunLog()
    file = out or Path(f"{run.resolve().name}{'.int8' * int8}{exporting.SUFFIXES[kind]}")
    found = exporting.export(run, kind, file, int8=int8)
    before = " before it was quantised" if int8 else ""
    tried = f"{exporting.N_CHECK_INPUTS} inputs{before}"
    click.echo(f"{found.file}: at most {found.difference:.1g} from the run's model on {tried}", err=True)
    for line in found.quantisation_report:
        click.echo(line, err=True)
    for line in found.usage_code:
        click.echo(line)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "source", metavar="SOURCE", help="measure on other data than the run's own")
@click.option("--split", type=click.Choice(["train", "val", "all"]), default="val", show_default=True)
@click.option("--tta", is_flag=True, help="average over each picture and its mirror image")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def evaluate(run: Path, source: str | None, split: str, *, tta: bool, as_json: bool) -> None:
    """Measure RUN (a run, an ensemble, a soup) with the loss and metrics of its config, on its validation split.

    Other data may have fewer classes than RUN; one that RUN does not know is an error.
    """
    from ftcore.checkpoints.atomic import to_json
    from ftcore.inference import evaluate as evaluating
    from ftcore.runs.log import RunLog

    RunLog()
    evaluation = evaluating.prepare(run, source, split)
    metrics = evaluating.compute_metrics(evaluation, tta=tta)
    if as_json:
        click.echo(to_json(evaluating.report(run, evaluation, metrics, tta=tta)))
    else:
        _print_tables(evaluating.tables(evaluation, metrics))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--why", is_flag=True, help="draw where in each picture of the page the network saw what it said")
def report(run: Path, *, why: bool) -> None:
    """Write the report.html of RUN, a run folder, again: with what its epochs left, and this version of ftcore."""
    from ftcore.reports.redraw import rewrite_reports
    from ftcore.runs.log import RunLog

    RunLog()
    for page in rewrite_reports(run, why=why):
        click.echo(str(page))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="the folder to write")
@click.option("--weights", metavar="W,W,...", help="how much each run counts, > 0; by default the same")
def ensemble(runs: tuple[Path, ...], out: Path, weights: str | None) -> None:
    """Join RUNS into one folder for predict and evaluate, whose answer is the mean of their probabilities.

    They must know the same classes; networks, input sizes and normalisations may differ.
    """
    from ftcore.inference.ensemble import create_ensemble, parse_weights
    from ftcore.runs.log import RunLog

    RunLog()
    create_ensemble(runs, out, None if weights is None else parse_weights(weights))
    click.echo(str(out))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="the folder to write")
@click.option("--uniform", is_flag=True, help="take every checkpoint; by default only those that do no harm")
def soup(runs: tuple[Path, ...], out: Path, *, uniform: bool) -> None:
    """Average the weights of the checkpoints of RUNS into one network, in a folder for predict and evaluate.

    From the best checkpoint down, each stays if the mean with it is no worse on the validation split of the first
    run. `run.keep` says how many checkpoints a run leaves.
    """
    from ftcore.inference.soup import make_soup
    from ftcore.runs.log import RunLog

    RunLog()
    _print_tables([make_soup(runs, out, uniform=uniform)])
