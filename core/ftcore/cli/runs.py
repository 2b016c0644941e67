"""Look at runs: a list of them, a comparison, the page of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftcore.errors import UserError

from .options import PATH, LoggedCommand, json_option, print_result, run_argument, runs_argument, split_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", default="runs", type=PATH)
@click.option("--where", multiple=True, metavar="KEY=PATTERN", help="e.g. model.name=timm/*, plugins=ema, state=failed")
@json_option(help="print a JSON list")
def runs(folder: Path, where: tuple[str, ...], *, as_json: bool) -> None:
    """List the runs in FOLDER and below it: how they stand, their best epoch, what they are."""
    from ftcore.runs import listing

    found = listing.find(folder, where)
    print_result(listing.table(found), values=[listing.to_dict(run) for run in found], as_json=as_json)


@click.command(cls=LoggedCommand)
@runs_argument
@click.option(
    "--data", "source", metavar="SOURCE", help="measure all on this; by default on their own validation split"
)
@split_option
@json_option(help="print a JSON object")
@click.option("--html", type=PATH, metavar="FILE", help="write a page, beside what is printed")
def compare(runs: tuple[Path, ...], source: str | None, split: str | None, *, as_json: bool, html: Path | None) -> None:
    """Compare RUNS with the first: what differs in them, and whether their answers differ by more than chance.

    They are measured as `evaluate` measures them.
    """
    from ftcore.checkpoints.atomic import wrap_write_errors
    from ftcore.reports.comparison import compare as compare_runs
    from ftcore.reports.comparison_page import render_html

    if html and html.exists():
        raise UserError(f"{html} exists, and nothing is overwritten; --html names another file")
    tables, values = compare_runs(runs, source, split)
    if html:
        with wrap_write_errors(html.parent):
            html.write_text(render_html(values), encoding="utf-8")
    print_result(*tables, values=values, as_json=as_json)


@click.command(cls=LoggedCommand)
@run_argument
@click.option("--why", is_flag=True, help="draw where in each picture of the page the network saw what it said")
def report(run: Path, *, why: bool) -> None:
    """Write the report.html of RUN, a run folder, again: with what its epochs left, and this version of ftcore."""
    from ftcore.reports.redraw import rewrite_reports

    for page in rewrite_reports(run, why=why):
        click.echo(str(page))
