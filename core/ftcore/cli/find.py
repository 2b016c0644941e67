"""Look for settings by trying them: a learning rate, a batch size, what is faster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, LoggedCommand, json_option, load, print_result, run_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@click.group()
def find() -> None:
    """Find a learning rate, the largest batch size, or faster settings.

    Runs real training steps and discards their results.
    """


@find.command(cls=LoggedCommand)
@run_options
@click.option("--from", "lowest", type=float, default=1e-7, show_default=True, help="first learning rate")
@click.option("--to", "highest", type=float, default=10.0, show_default=True, help="last learning rate")
@click.option("--steps", type=int, default=100, show_default=True, help="number of optimizer steps")
@click.option("--png", type=PATH, metavar="FILE", help="also save the curve as a PNG file")
@json_option(help="print one JSON object, without the curve")
def lr(*, lowest: float, highest: float, steps: int, png: Path | None, as_json: bool, **options: Any) -> None:
    """Run a learning-rate range test (Smith 2017); same arguments as run.

    The learning rate grows at each step; the test stops when the loss exceeds 4 times its minimum.
    """
    from rich.progress import track

    from ftcore import plots
    from ftcore.console import console
    from ftcore.tuning import lr_finder
    from ftcore.tuning import trial as tuning_trial

    lr_finder.check(lowest, highest, steps)
    if png:
        plots.check_png(png)
    ready, err = tuning_trial.prepare(load(**options)), console(sys.stderr)
    rates = lr_finder.exponential_lrs(lowest, highest, steps)
    test = lr_finder.lr_range_test(
        ready.assembly, rates, lambda rates: track(rates, "steps", console=err, disable=not err.is_terminal)
    )
    if png:
        plots.save_png(lr_finder.plot(test), png)
    said, values = f"{lr_finder.summary(ready, test)}\n", lr_finder.to_dict(ready, test)
    tables = [lr_finder.table(ready, test)] if test.suggestions() else []
    print_result(lr_finder.plot(test), said, *tables, values=values, as_json=as_json)


@find.command(cls=LoggedCommand)
@run_options
@click.option("--max", "most", type=int, metavar="N", help="largest batch size to try (default: the training split)")
@click.option("--memory", type=float, default=0.9, show_default=True, help="fraction of the free memory to use")
@json_option()
def batch(*, most: int | None, memory: float, as_json: bool, **options: Any) -> None:
    """Double the batch size until memory is full and time each size; same arguments as run.

    On a CPU, sizes expected to need more than the fraction --memory of the free memory are not tried.
    """
    from ftcore.tuning import batch_size
    from ftcore.tuning import trial as tuning_trial

    ready = tuning_trial.prepare(load(**options))
    found = batch_size.find_batch_size(ready.assembly, most, memory)
    hint = batch_size.accumulation_hint(found, ready.assembly.parts.train_config)
    print_result(*batch_size.tables(found), hint, values=batch_size.to_dict(found), as_json=as_json)


@find.command(cls=LoggedCommand)
@run_options
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="of steps")
@json_option()
def speed(*, seconds: float, as_json: bool, plugins: Sequence[str], sets: Sequence[str], **options: Any) -> None:
    """Time settings that may be faster and print the flags to use; same arguments as run.

    Tries channels_last, bf16, compile, threads and loader processes with the network and data of the run.
    """
    from ftcore.tuning import speed as tuning_speed

    trials = []
    for trial in tuning_speed.find_faster_settings(
        lambda more, others: load(**options, plugins=(*plugins, *more), sets=(*sets, *others)), seconds
    ):
        trials.append(trial)
        click.echo(f"{trial.setting.name}: {tuning_speed.result_text(trial)}", err=True)
    flags = " ".join(tuning_speed.flags(trials))
    advice = f"to use: {flags}" if flags else "the current settings are already the fastest"
    print_result(tuning_speed.table(trials), advice, values=tuning_speed.to_dict(trials), as_json=as_json)
