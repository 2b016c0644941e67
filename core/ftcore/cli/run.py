"""Train: a new run, one that goes on, a step of one; and what a run would be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.distributed.ranks import rank_and_world_size
from ftcore.errors import UserError

from .options import (
    PATH,
    LoggedCommand,
    json_option,
    load,
    print_result,
    quiet_option,
    rank_options,
    run_argument,
    run_options,
    run_plugin_option,
    set_option,
    split_names,
    tables_json_option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.runs.log import RunLog


report_json_option = json_option(help="print the report as one JSON object on standard output")


@click.command(cls=LoggedCommand)
@run_options
@click.option("--from", "source", type=PATH, metavar="RUN", help="repeat this run in a new folder")
@click.option("--resume", "resumed", type=PATH, metavar="RUN", help="same as `ftcore resume RUN`")
@click.option("--allow-drift", is_flag=True, help="with --from or --resume: allow changed plugins, libraries or data")
@click.option("--seeds", type=click.IntRange(2, 1000), metavar="N", help="train N runs with seeds that count up")
@report_json_option
@quiet_option
@rank_options
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
    r"""Fine-tune a network on your images.

    CONFIG is a TOML file; flags override it. DATA is a folder with one subfolder per class, or a table. Without
    either, a small network is trained on digits. Any configuration option can be set with --set.

    \b
    Examples:
      ftcore run photos/ --model timm/mobilenetv3_large_100 --epochs 20
      ftcore run photos/ --recipe lp_ft --set lp_ft.probe_epochs=5
      ftcore run labels.csv --plugin weighted_ce,ema --lr 0.001
      ftcore run config.toml --seed 1 --out runs/seed1
    """
    seeds = options.pop("seeds")
    if resumed:
        others = {"config": config, "from": source, "seeds": seeds}
        given = [name for name, value in (options | others).items() if value]
        if set(given) - {"sets"}:
            raise UserError(
                f"--resume {resumed} continues that run with its original settings; remove {', '.join(given)}"
            )
        sets = options["sets"]
        ctx.invoke(resume, run=resumed, sets=sets, allow_drift=allow_drift, as_json=as_json)
        return
    from ftcore.plugins.trust import allow
    from ftcore.runs.run import fit

    if source and config:
        raise UserError(f"--from {source} already defines the run; remove {config}, or change settings with flags")
    if allow_drift and not source:
        raise UserError("--allow-drift needs --from RUN")
    if seeds:
        if source:
            raise UserError(f"--seeds {seeds} trains new runs, but --from {source} repeats one; remove one of them")
        _train_seeds(load(config, **options), seeds, as_json=as_json)
        return
    ctx.with_resource(allow(split_names(options["plugins"]) if source else ()))
    asked, like = load(source / "config.toml" if source else config, **options), None
    if source:
        from attrs import evolve

        from ftcore.config.load import recorded_class_names
        from ftcore.runs.manifest import drop_run_folder, read_manifest

        asked = evolve(drop_run_folder(asked, source), class_names=recorded_class_names(source))
        like = None if allow_drift else read_manifest(source)
    _print_report(fit(asked, [ctx.obj.observe], expected_manifest=like), as_json=as_json)


def _train_seeds(config: RunConfig, count: int, *, as_json: bool) -> None:
    from ftcore.reports.series import of_seeds

    from .series import train_all

    train_all(config, of_seeds(config, count), as_json=as_json)


def run_config(arguments: Sequence[str]) -> RunConfig:
    """Return the configuration that arguments of `ftcore run` mean, without ``--from`` and ``--resume``.

    Raises:
        UserError: as `ftcore.config.load_config`.
        click.UsageError: there is no such flag.
    """
    given = run.make_context("ftcore run", [*arguments]).params
    own = {"source", "resumed", "allow_drift", "seeds", "as_json", "quiet", "nproc", "max_restarts"}
    return load(**{name: value for name, value in given.items() if name not in own})


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@set_option(help="setting that does not affect results, e.g. train.workers=4")
@click.option("--allow-drift", is_flag=True, help="allow changed plugins, libraries or data")
@report_json_option
@quiet_option
@rank_options
@click.pass_obj
def resume(log: RunLog, /, run: Path, sets: tuple[str, ...], *, allow_drift: bool, as_json: bool) -> None:
    r"""Resume a run that was stopped or killed.

    RUN is a run folder. The result is bitwise identical to that of an uninterrupted run.

    \b
    Examples:
      ftcore resume runs/first
      ftcore resume runs/first --set train.workers=4
    """
    from ftcore.runs.run import resume as resume_run

    _print_report(resume_run(run, sets, [log.observe], allow_drift=allow_drift), as_json=as_json)


def _print_report(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a report as JSON, if asked to, in the first process alone."""
    place = rank_and_world_size()
    if place is None or place[0] == 0:
        _warn_if_not_loadable(Path(report["folder"]))
        print_result(values=report, as_json=as_json)


def _warn_if_not_loadable(folder: Path) -> None:
    """Say at the end of a run, and not when it is used, that a plugin that wrapped its network keeps it from that."""
    from ftcore.inference import load as loading

    if any(saved.description.get("wrapped_by") for saved in loading.read_saved(folder)):
        try:
            loading.load(folder)
        except UserError as error:
            click.echo(f"ftcore: warning: predict, serve and export will reject this run: {error}", err=True)


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@json_option()
def replay(run: Path, *, as_json: bool) -> None:
    """Replay the step of a run that produced NaN or Inf.

    Reports whether the replay reproduces the result and which module produced the first non-finite value.
    """
    from ftcore.runs.run import replay as replay_run
    from ftcore.training import nonfinite

    found = replay_run(run)
    print_result(nonfinite.table(found), values=nonfinite.to_dict(found), as_json=as_json)


@click.command(cls=LoggedCommand)
@run_options
@click.option("--static", is_flag=True, help="list the plugins per hook without reading data or building the network")
@click.option(
    "--devices",
    type=click.IntRange(1),
    metavar="N",
    help="estimate memory per step on one device and on each of N",
)
@tables_json_option
def explain(*, static: bool, devices: int | None, as_json: bool, **options: Any) -> None:
    r"""Show what a run would do: plugins, frozen parameters, learning rates.

    Takes the arguments of `ftcore run` but does not train. With --static, code that CONFIG names is not loaded
    unless --plugin names it here or it is trusted.

    \b
    Examples:
      ftcore explain photos/ --recipe lp_ft
      ftcore explain --static --plugin ddp
    """
    from ftcore.plugins.trust import allow
    from ftcore.reports import explain as explaining

    if static and devices:
        raise UserError("--devices needs the network, which --static does not build; remove one")
    if static:
        with allow(split_names(options["plugins"])):
            tables = explaining.explain_without_building(load(**options, trusted=False))
        print_result(*tables, as_json=as_json)
        return
    from ftcore.reports.lr_preview import plot

    tables, rates = explaining.explain(load(**options), devices)
    print_result(*tables, plot(rates), as_json=as_json)
