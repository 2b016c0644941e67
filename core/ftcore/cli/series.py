"""Train several runs of one configuration, and summarise them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ftcore.distributed.ranks import rank_and_world_size
from ftcore.errors import UserError

from .options import LoggedCommand, json_option, load, print_result, quiet_option, run_options

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.config.schema import RunConfig
    from ftcore.reports.series import Settings


@click.command(cls=LoggedCommand)
@run_options
@click.option(
    "--k", default=5, type=click.IntRange(2, 1000), show_default=True, help="number of folds, each held out once"
)
@click.option(
    "--repeats",
    default=1,
    type=click.IntRange(1, 1000),
    show_default=True,
    help="number of repetitions with other folds",
)
@json_option(help="print the reports of all runs and their summary as one JSON object")
@quiet_option
def folds(*, k: int, repeats: int, as_json: bool, **options: Any) -> None:
    r"""Cross-validate: train k runs, each with another fold held out.

    Takes the arguments of `ftcore run`; --out is the folder of the runs, fold-0 to fold-4, and of an ensemble of
    them. Run the same command again to continue a stopped series. Each fold has the classes in the same proportion;
    a group (table.group) is in one fold.

    \b
    Examples:
      ftcore folds photos/ --out runs/folds --epochs 5
      ftcore folds config.toml --k 10 --repeats 3
    """
    from ftcore.reports.series import of_folds

    config = load(**options)
    if config.data.fold is not None:
        raise UserError(f"each fold is held out in turn; remove data.fold ({config.origin('data.fold')})")
    folder, reports = train_all(config, of_folds(config, k, repeats), as_json=as_json)
    _join(folder, [folder / name for name in reports])


def train_all(config: RunConfig, runs: dict[str, Settings], *, as_json: bool) -> tuple[Path, dict[str, Any]]:
    """Train runs, print what they have in common, and return their folder and their reports."""
    from ftcore.reports import series
    from ftcore.runs.log import RunLog

    if rank_and_world_size() is not None:
        raise UserError(
            "several runs are trained one after the other, each in one process; start it without a launcher"
        )
    folder, reports = series.train_series(config, runs, lambda: RunLog().observe)
    values = {"folder": str(folder), "runs": reports, "summary": series.summarise(reports)}
    print_result(*series.tables(reports), values=values, as_json=as_json)
    return folder, reports


def _join(folder: Path, runs: list[Path]) -> None:
    """Write an ensemble of all folds, unless it is there."""
    from ftcore.inference.ensemble import create_ensemble

    joined = folder / "ensemble"
    if not joined.exists():
        create_ensemble(runs, joined, check_splits=False)  # each has learnt what another was measured on
    click.echo(f"next: ftcore predict {joined} IMAGES", err=True)
