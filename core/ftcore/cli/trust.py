"""Trust the code that a run names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftcore.errors import UserError

from .options import LoggedCommand, print_result, run_argument, tables_json_option

if TYPE_CHECKING:
    from ftcore.plugins.references import PluginReference


@click.command(cls=LoggedCommand)
@run_argument
@click.option("--show", is_flag=True, help="only show the files and their hashes")
@tables_json_option
def trust(run: Path, *, show: bool, as_json: bool) -> None:
    r"""Trust the current version of the hooks files and modules that a run or a config names.

    RUN is a run, an ensemble, a soup or a config.toml. Code of yours in a run that you made on this machine is trusted
    already. Look at other code before you trust it: it can do all that you can. A file that changes is not trusted any
    more.

    \b
    Examples:
      ftcore trust runs/first --show
      ftcore trust runs/first
    """
    from ftcore.plugins.trust import code_file, digest, record
    from ftcore.types.table import Table

    rows = []
    for reference in _code(run):
        file, sha256 = code_file(reference.file, reference.module), digest(reference.file, reference.module)
        if file is None or sha256 is None:
            raise UserError(f"{run} names {reference.target}, which has no source here; name it with --plugin")
        rows.append((reference.name, str(file), sha256))
    written = None if show else record((Path(file), sha256) for _, file, sha256 in rows)
    columns = ("plugin", "file", "SHA-256, of a package that of all its files")
    print_result(Table(f"code named by {run}", columns, tuple(rows)), as_json=as_json)
    if not as_json:
        done = (
            f"trusted, in {written}" if written else "trusted already" if rows and not show else "nothing was trusted"
        )
        print_result(done)


def _code(run: Path) -> list[PluginReference]:
    """Return what a run, an ensemble or a soup names that is no installed entry point; imports nothing."""
    from attrs import evolve

    from ftcore.config.load import load_config, load_run_config
    from ftcore.inference.load import read_configs
    from ftcore.plugins.discovery import discover, without_working_folder
    from ftcore.plugins.references import resolve

    if run.suffix == ".toml":
        named = list(load_config(run).plugins)
    else:
        named = list(load_run_config(run).plugins) if (run / "config.toml").is_file() else []
    if run.is_dir() and ((run / "model").exists() or not named):
        named += [plugin for config in read_configs(run) for plugin in config.plugins]
    available = discover()
    with without_working_folder():
        found = [resolve(evolve(plugin, trusted=True), available) for plugin in named]
    return list({one.target: one for one in found if not one.distribution}.values())
