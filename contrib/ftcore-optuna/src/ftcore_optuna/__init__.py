"""Search over the settings of ftcore's runs with Optuna: any key, pruned, each trial an ordinary run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import optuna
from ftcore import UserError
from ftcore.runs import to_json

from .searching import Search, value_of
from .spaces import Space

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Search", "Space", "main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--search", "searches", multiple=True, required=True, metavar="KEY=SPACE", help="1e-5..1e-2:log or a,b,c")
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="in total, including earlier ones"
)
@click.option("--seed", type=int, default=0, show_default=True, help="of the sampler")
@click.option("--prune/--no-prune", default=True, show_default=True, help="stop trials that are worse than the median")
@click.option("--json", "as_json", is_flag=True, help="print the best trial as one JSON object")
def main(  # noqa: PLR0913 - click passes each option by name
    folder: Path,
    arguments: Sequence[str],
    *,
    searches: Sequence[str],
    trials: int,
    seed: int,
    prune: bool,
    as_json: bool,
) -> None:
    """Search FOLDER for the best of --search; `--` is followed by the ARGUMENTS of `ftcore run`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        spaces = [Space.parse(text) for text in searches]
        search = Search(folder, tuple(arguments), spaces, seed=seed, prune=prune)
        for trial in search.trials(trials):
            drawn = ", ".join(f"{key}={value}" for key, value in trial.params.items())
            click.echo(
                f"trial {trial.number:>4}  {search.monitor} {value_of(trial)}  {trial.state.name}  {drawn}", err=True
            )
        best = search.best
    except UserError as error:
        click.echo(f"ftcore-search: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    flags = [word for key, value in best.params.items() for word in ("--set", f"{key}={value}")]
    if as_json:
        found = {
            "folder": str(search.folder_of(best.number)),
            "value": best.value,
            "params": best.params,
            "flags": flags,
        }
        click.echo(to_json(found))
    else:
        click.echo(f"best {search.monitor} {value_of(best)}, in {search.folder_of(best.number)}:")
        click.echo(" ".join(flags))
