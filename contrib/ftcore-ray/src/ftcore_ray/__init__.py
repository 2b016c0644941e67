"""ftcore on a Ray cluster: one process a worker, started and restarted by Ray Train's TorchTrainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .working import folder_of, train

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "train"]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="processes, each a rank")
@click.option("--use-gpu", is_flag=True, help="a GPU for each")
@click.option("--max-failures", type=click.IntRange(0), default=0, show_default=True, help="restarts by Ray")
@click.option("--address", metavar="ADDRESS", help="of a cluster, or auto; by default one on this machine")
def main(arguments: Sequence[str], *, workers: int, use_gpu: bool, max_failures: int, address: str | None) -> None:
    """Train on a Ray cluster; `--` is followed by the ARGUMENTS of `ftcore run`."""
    import ray
    from ftcore import UserError

    try:
        folder = folder_of(arguments, Path.cwd())
        ray.init(address=address, num_cpus=None if address else workers, log_to_driver=True)
        train(tuple(arguments), folder, workers=workers, use_gpu=use_gpu, max_failures=max_failures)
    except UserError as error:
        click.echo(f"ftcore-ray: {error}", err=True)
        sys.exit(2)
    click.echo(str(folder))
