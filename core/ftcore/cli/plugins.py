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
@click.option("--kind", metavar="KIND", help="only plugins of this kind, e.g. loss, optimizer, recipe")
@click.option("--search", metavar="WORD", help="only plugins with this word in name or description; same as WORD")
@click.option("--config", type=PATH, help="a TOML file that enables plugins")
@plugin_option()
@without_option()
@json_option(help="print a JSON list")
@click.pass_context
def plugins(ctx: click.Context, /, *, kind: str | None, search: str | None, as_json: bool, **options: Any) -> None:
    """List installed plugins by kind with descriptions; imports none of them.

    A star marks the default plugins of a run with these options, a plus the plugins that it enables.
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
    yield "* default, + enabled; `ftcore plugins show NAME` describes one with its options"


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
@click.option(
    "--model", metavar="PROVIDER/NETWORK", help="network (default: the first that the plugin lists, or the demo's)"
)
@click.option("--data", metavar="SOURCE", help="data (default: the plugin's own, or the demo's)")
@plugin_option(help="additional plugin to enable in all runs")
@without_option(help="disable a default plugin")
@set_option(help="setting, e.g. data.task=regression")
@click.option("--but", multiple=True, metavar="CHECK", help="check to skip, e.g. ranks")
@json_option(help="print a JSON list")
@click.pass_context
def check(ctx: click.Context, /, name: str, *, as_json: bool, **options: Any) -> None:
    """Check that a plugin conforms to the hook contracts.

    NAME, module:Class or file.py is imported and run in a separate process. Prints one line per check: ok,
    failed and what to change, or not applicable and why. The exit code is 2 if a check failed.
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
    help="hook to implement, e.g. make_loss; may be repeated",
)
@click.option("--in-house", is_flag=True, help="write one file, hooks.py, instead of a package")
def new(name: str, hooks: tuple[str, ...], *, in_house: bool) -> None:
    """Write a starter plugin.

    Writes a package NAME with options, tests and types, or hooks.py, to the current folder. It works unchanged;
    replace the example body of each hook.
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
