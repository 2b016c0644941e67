"""Plugins: a list, one of them in full, checks, a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    PATH,
    json_option,
    load,
    plugin_option,
    print_result,
    set_option,
    tables_json_option,
    without_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@click.group(invoke_without_command=True)
@click.option("--config", type=PATH, help="a TOML file that names plugins")
@plugin_option()
@without_option()
@json_option(help="print a JSON list")
@click.pass_context
def plugins(ctx: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """List every installed plugin, and which of them a run with these options would activate; imports none."""
    from ftcore.plugins.describe import list_plugins

    if ctx.invoked_subcommand:
        return
    rows = list_plugins(load(**options))
    print_result(*_lines(rows), values=rows, as_json=as_json)


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Put rows below each other, under the names of their columns."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


@plugins.command()
@click.argument("name")
@tables_json_option
def show(name: str, *, as_json: bool) -> None:
    """Describe the plugin NAME (or module:Class, or file.py): hooks, options with types and defaults, source."""
    from ftcore.config.schema import PluginRef
    from ftcore.plugins.describe import describe_plugin

    print_result(*describe_plugin(PluginRef(name, f"plugins show {name}", Path.cwd())), as_json=as_json)


@plugins.command()
@click.argument("name")
@click.option("--model", metavar="PROVIDER/NETWORK", help="by default the first that it lists, or that of the demo")
@click.option("--data", metavar="SOURCE", help="by default its own, called as it is, or that of the demo")
@plugin_option(help="named beside it in all runs")
@without_option(help="leave out a default plugin")
@set_option(help="e.g. data.task=regression")
@click.option("--but", multiple=True, metavar="CHECK", help="leave out a check, such as ranks")
@json_option(help="print a JSON list")
@click.pass_context
def check(ctx: click.Context, /, name: str, *, as_json: bool, **options: Any) -> None:
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
            click.echo(str(finding))  # as soon as it is made: some take a minute
    print_result(values=[asdict(finding) for finding in found], as_json=as_json)
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
