"""Networks: a list of them, and one of them in full."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ftcore.errors import UserError

from .errors import traceback_option
from .options import json_option, load, plugin_option, print_result, set_option, without_option


@click.command()
@click.argument("pattern", required=False)
@click.option("--max-params", metavar="N", help="maximum number of parameters, e.g. 10M")
@click.option("--pretrained", is_flag=True, help="only networks with pre-trained weights")
@click.option("--measure", is_flag=True, help="time a forward pass of one image on this machine")
@plugin_option(help="also list networks of this plugin")
@json_option(help="print a JSON list")
@traceback_option
def models(
    pattern: str | None,
    max_params: str | None,
    plugins: tuple[str, ...],
    *,
    pretrained: bool,
    measure: bool,
    as_json: bool,
) -> None:
    """List networks, smallest first.

    Lists all networks, or those matching PATTERN, a glob or part of a name.

    With PATTERN or --max-params, parameters are counted (about 0.15 s per network) and cached; without them, only
    cached counts are shown.
    """
    from rich.progress import track

    from ftcore.console import console, print_table
    from ftcore.model import catalog
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    if measure and not pattern:
        raise UserError("--measure needs a PATTERN: it builds and runs each network, which takes seconds per network")
    limit = None if max_params is None else catalog.parse_count(max_params)
    known = HookCalls(activate(load(plugins=plugins))).list_models()
    found = catalog.filter_models(known, pattern) if pattern else known
    rows = catalog.rows_from_cache([info for info in found if info.weights or not pretrained])
    if pattern or limit is not None:
        err = console(sys.stderr)
        rows = catalog.count_parameters(rows, lambda todo: track(todo, "counting", console=err, disable=len(todo) < 20))
    rows = catalog.sort_by_size([row for row in rows if limit is None or (row.parameters or 0) <= limit])
    rows = [catalog.measure_latency(row) for row in rows] if measure else rows
    if not as_json:
        print_table(console(sys.stdout), catalog.table(rows))
    print_result(values=[catalog.to_dict(row) for row in rows], as_json=as_json)


@click.command()
@click.argument("model")
@plugin_option(help="plugin to apply, e.g. freeze_backbone")
@without_option()
@set_option(help="setting, e.g. freeze_modules.stages=2")
@click.option(
    "--classes", default=10, show_default=True, type=click.IntRange(1), help="number of outputs of the new head"
)
@click.option("--depth", default=2, show_default=True, type=click.IntRange(0), help="depth of the module tree to show")
@traceback_option
def inspect(model: str, classes: int, depth: int, **options: Any) -> None:
    """Show the modules of a network: shapes, parameters, head, what is frozen.

    MODEL is PROVIDER/NETWORK, or a config.toml. Needs no weights, no data and no memory for the network.
    """
    from ftcore.reports.model_summary import summarize_model

    named = {"config": Path(model)} if model.endswith(".toml") else {"model": model}
    print_result(*summarize_model(load(**named, **options), classes, depth))
