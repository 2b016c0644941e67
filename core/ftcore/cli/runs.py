"""Look at runs: a list of them, a comparison, the page of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftcore.errors import UserError

from .options import (
    PATH,
    LoggedCommand,
    json_option,
    print_result,
    run_argument,
    run_plugin_option,
    runs_argument,
    split_option,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", default="runs", type=PATH)
@click.option(
    "--where", multiple=True, metavar="KEY=PATTERN", help="filter, e.g. model.name=timm/*, plugins=ema, state=failed"
)
@json_option(help="print a JSON list")
def runs(folder: Path, where: tuple[str, ...], *, as_json: bool) -> None:
    r"""List runs: status, best epoch, network, data, plugins.

    FOLDER is searched recursively.

    \b
    Examples:
      ftcore runs
      ftcore runs experiments/ --where "model.name=timm/*" --where state=finished
    """
    from ftcore.runs import listing

    found = listing.find(folder, where)
    print_result(listing.table(found), values=[listing.to_dict(run) for run in found], as_json=as_json)


@click.command(cls=LoggedCommand)
@runs_argument
@run_plugin_option
@click.option(
    "--data", "source", metavar="SOURCE", help="evaluate all runs on this data (default: their own validation split)"
)
@split_option
@json_option(help="print a JSON object")
@click.option("--html", type=PATH, metavar="FILE", help="also write an HTML page")
def compare(runs: tuple[Path, ...], source: str | None, split: str | None, *, as_json: bool, html: Path | None) -> None:
    r"""Compare runs with the first: settings, metrics, significance.

    Shows which settings differ and whether predictions on the same images differ significantly. Runs are
    evaluated as by `ftcore evaluate`.

    \b
    Examples:
      ftcore compare runs/first runs/second --html comparison.html
    """
    from ftcore.checkpoints.atomic import wrap_write_errors
    from ftcore.reports.comparison import compare as compare_runs
    from ftcore.reports.comparison_page import render_html

    if html and html.exists():
        raise UserError(f"{html} already exists and will not be overwritten; choose another file with --html")
    tables, values = compare_runs(runs, source, split)
    if html:
        with wrap_write_errors(html.parent):
            html.write_text(render_html(values), encoding="utf-8")
    print_result(*tables, values=values, as_json=as_json)


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.option("--why", is_flag=True, help="add a Grad-CAM overlay to each image")
@click.option("--open", "browse", is_flag=True, help="open it in the browser")
def report(run: Path, *, why: bool, browse: bool) -> None:
    r"""Regenerate the report.html of a run with this version of ftcore.

    \b
    Examples:
      ftcore report runs/first --open
    """
    from ftcore.reports.redraw import rewrite_reports

    for page in rewrite_reports(run, why=why):
        click.echo(str(page))
        if browse:
            click.launch(str(page))
