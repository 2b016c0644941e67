"""Look at data before a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    LoggedCommand,
    load,
    plugin_option,
    print_result,
    set_option,
    tables_json_option,
    without_option,
)


@click.command(cls=LoggedCommand)
@click.argument("data")
@plugin_option()
@without_option()
@set_option(help="e.g. table.target=label")
@tables_json_option
@click.pass_context
def check(ctx: click.Context, /, data: str, *, as_json: bool, **options: Any) -> None:
    """Decode every image of DATA (a folder, a table, or a config.toml) and report what is wrong with it.

    Unreadable, duplicate and unusual images, the same picture in both splits or with two labels, classes that are
    missing. Exit code 1 if an image cannot be read, is in both splits, or has two labels. What was decoded is
    remembered until the file changes.
    """
    from ftcore.reports.data_quality import check as check_data

    named = {"config": Path(data)} if data.endswith(".toml") else {"data": data}
    found = check_data(load(**named, **options))
    print_result(*found.tables, as_json=as_json)
    ctx.exit(1 if found.errors else 0)
