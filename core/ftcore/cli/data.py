"""Look at data before a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ftcore.errors import UserError

from .options import (
    PATH,
    LoggedCommand,
    load,
    plugin_option,
    print_result,
    set_option,
    split_names,
    tables_json_option,
    without_option,
)


@click.command(cls=LoggedCommand)
@click.argument("data")
@click.option("--model", metavar="PROVIDER/NETWORK", help="network, e.g. timm/resnet50 (default: a small one)")
@click.option("--out", type=PATH, default="config.toml", show_default=True, metavar="FILE", help="output file")
@plugin_option()
@without_option()
@set_option(help="setting to write to the file, e.g. table.target=label")
def init(data: str, model: str | None, out: Path, **options: Any) -> None:
    r"""Write a commented configuration that suits a data set.

    DATA is a folder or a table. A recipe is suggested based on its number of images.

    \b
    Examples:
      ftcore init photos/
      ftcore init labels.csv --set table.target=label --out label.toml
    """
    from ftcore.checkpoints.atomic import wrap_write_errors
    from ftcore.reports.starter_config import suggest

    if out.exists():
        raise UserError(f"{out} already exists and will not be overwritten; choose another file with --out")
    found = suggest(load(model=model, data=data, **options))
    with wrap_write_errors(out.parent):
        out.write_text(found.text, encoding="utf-8")
    print_result(*found.summary, f"wrote {out}; start with: ftcore run {out}")


@click.command(cls=LoggedCommand)
@click.argument("data")
@plugin_option()
@without_option()
@set_option(help="e.g. table.target=label")
@tables_json_option
@click.pass_context
def check(ctx: click.Context, /, data: str, *, as_json: bool, **options: Any) -> None:
    """Decode every image of a data set and report what is wrong.

    DATA is a folder, a table, or a config.toml.
    Reports unreadable, duplicate and unusual images, images in two splits or with two labels, and missing
    classes. The exit code is 1 if an image cannot be read, is in two splits, or has two labels. Results are
    cached until the file changes. Code that a config names is not loaded unless --plugin names it here or it is
    trusted.
    """
    from ftcore.plugins.trust import allow
    from ftcore.reports.data_quality import check as check_data

    named = {"config": Path(data)} if data.endswith(".toml") else {"data": data}
    with allow(split_names(options["plugins"])):
        found = check_data(load(**named, **options, trusted=False))
    print_result(*found.tables, as_json=as_json)
    ctx.exit(1 if found.errors else 0)
