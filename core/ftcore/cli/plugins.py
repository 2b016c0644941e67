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


class _PluginsGroup(click.Group):
    """Takes a word that is no command for one to search for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a first word that is no command as `--search`."""
        words = [n for n, arg in enumerate(args) if not arg.startswith("-") and not _is_value(args, n)]
        if words and args[words[0]] not in self.commands:
            args = [*args[: words[0]], "--search", *args[words[0] :]]
        return super().parse_args(ctx, args)


def _is_value(args: Sequence[str], position: int) -> bool:
    return position > 0 and args[position - 1] in {"--config", "--plugin", "--without", "--kind", "--search"}


@click.group(cls=_PluginsGroup, invoke_without_command=True, subcommand_metavar="[WORD | COMMAND [ARGS]...]")
@click.option("--kind", metavar="KIND", help="only these, e.g. loss, optimizer, recipe")
@click.option("--search", metavar="WORD", help="only those with this word in name or description; as WORD alone")
@click.option("--config", type=PATH, help="a TOML file that names plugins")
@plugin_option()
@without_option()
@json_option(help="print a JSON list")
@click.pass_context
def plugins(ctx: click.Context, /, *, kind: str | None, search: str | None, as_json: bool, **options: Any) -> None:
    """List installed plugins by kind, each with what it does; import none.

    A star marks those that a run with these options uses where no other plugin answers; a plus those that it names.
    """
    from ftcore.plugins.describe import filter_plugins, list_plugins

    if ctx.invoked_subcommand:
        return
    rows = filter_plugins(list_plugins(load(**options)), kind, search)
    print_result(*_lines(rows), values=rows, as_json=as_json)


_MARKS = {"yes": "+", "default": "*", "no": " "}


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """List plugins under their kinds: mark, name, what it does, and the package where it is not ftcore's own."""
    width = max(len(row["name"]) for row in rows)
    for kind in sorted({row["kind"] for row in rows}):
        yield f"{kind}"
        for row in rows:
            if row["kind"] == kind:
                source = "" if row["distribution"] == "ftcore" else f" [{row['distribution']} {row['version']}]"
                yield f"  {_MARKS[row['active']]} {row['name'].ljust(width)}  {row['summary']}{source}".rstrip()
        yield ""
    yield "* by default, + named; `ftcore plugins show NAME` describes one with its options"


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
