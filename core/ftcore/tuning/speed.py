"""Which settings make a run faster on this machine, with its own network and data: real steps, two settings in turn."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.system.cpu import available_cpus, set_threads
from ftcore.types.table import Table

from .trial import batches, prepare, start_first_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts


ROUNDS = 5
"""In which two settings are timed in turn."""

MIN_SPEEDUP = 1.03
"""Times as fast that a setting must be to be kept, in the median, and faster at all in every round."""

WARMUP_STEPS = 2
"""Steps before the clock runs."""


@frozen
class SpeedOption:
    """What might be faster.

    Attributes:
        name: of it.
        plugins: that it names.
        sets: ``KEY=VALUE`` that it sets.
        changes: what else it changes.
    """

    name: str
    plugins: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    changes: str = ""

    @property
    def flags(self) -> list[str]:
        """Of the command line."""
        pairs = [("--plugin", plugin) for plugin in self.plugins] + [("--set", text) for text in self.sets]
        return [word for pair in pairs for word in pair]


@frozen
class Trial:
    """A setting beside what was kept until then.

    Attributes:
        setting: that was tried.
        before: images/s before it, the median of the rounds.
        after: with it.
        ratios: of each round, in rising order.
        note: why it could not be tried; empty if it could.
    """

    setting: SpeedOption
    before: float = 0.0
    after: float = 0.0
    ratios: tuple[float, ...] = ()
    note: str = ""

    @property
    def is_faster(self) -> bool:
        """Whether it is kept."""
        return bool(self.ratios) and statistics.median(self.ratios) >= MIN_SPEEDUP and self.ratios[0] > 1


def candidate_options(config: RunConfig, device: str) -> list[SpeedOption]:
    """Return what may be tried beside a configuration; what it sets itself is left as it is."""
    plugins = load_defaults().SPEED_CANDIDATES.items()
    found = [SpeedOption(plugin, (plugin,), changes=changes) for plugin, changes in plugins]
    if config.train.threads is None and available_cpus() > 1 and device == "cpu":
        found.append(SpeedOption("one thread", sets=("train.threads=1",)))
    if config.train.workers is None and available_cpus() > 1:
        number = 0 if device != "cpu" else min(4, available_cpus())
        found.append(SpeedOption(f"{number} loader processes", sets=(f"train.workers={number}",)))
    named = {plugin.text for plugin in config.plugins}
    return [setting for setting in found if not named & set(setting.plugins)]


@frozen(eq=False)
class TimedRun:
    """A run that is timed.

    Attributes:
        parts: of it.
        windows: its micro-batches, step after step, for ever.
        threads: of its arithmetic.
        progress: where it is.
    """

    parts: TrainingParts
    windows: Generator[list[Batch]]
    threads: int | None
    progress: Any

    def throughput(self, seconds: float, fewest: int = 1) -> float:
        """Take steps, with all that belongs to them, for so long; return images/s."""
        from ftcore.training.loop import train_step

        set_threads(self.threads)
        images, number, began = 0, 0, time.perf_counter()
        while number < fewest or time.perf_counter() - began < seconds:
            window = next(self.windows)
            train_step(self.parts, window, self.progress)
            images += sum(len(batch.indices) for batch in window)
            number += 1
            self.progress.step += 1
        if self.parts.placement.device.type == "cuda":
            torch.cuda.synchronize(self.parts.placement.device)
        return images / (time.perf_counter() - began)


def start(config: RunConfig) -> TimedRun:
    """Assemble a run and take its first steps."""
    from ftcore.training.state import Progress

    parts = prepare(config).assembly.parts
    parts = evolve(parts, train_config=evolve(parts.train_config, on_nonfinite="skip", max_nonfinite=10**6))
    start_first_epoch(parts)
    running = TimedRun(parts, batches(parts), config.train.threads, Progress())
    try:
        running.throughput(0.0, WARMUP_STEPS)
    except BaseException:
        running.windows.close()
        raise
    return running


def find_faster_settings(
    configure: Callable[[Sequence[str], Sequence[str]], RunConfig], seconds: float = 60.0
) -> Iterator[Trial]:
    """Try one setting after the other beside what was kept until then, and yield each trial.

    Args:
        configure: plugins and ``KEY=VALUE`` beside what was asked for -> the configuration.
        seconds: in all, beside the time that it takes to begin.

    Raises:
        UserError: the run as it was asked for is none.
    """
    kept: list[SpeedOption] = []
    asked = configure((), ())
    current = start(asked)
    tried = candidate_options(asked, current.parts.placement.device.type)
    for setting in tried:
        chosen = [*kept, setting]
        plugins = [plugin for one in chosen for plugin in one.plugins]
        sets = [text for one in chosen for text in one.sets]
        try:
            other = start(configure(plugins, sets))
        except (UserError, RuntimeError, NotImplementedError) as error:
            yield Trial(setting, note=str(error).strip().partition("\n")[0][:100] or type(error).__name__)
            continue
        trial = compare_throughput(current, other, setting, seconds / len(tried))
        if trial.is_faster:
            kept.append(setting)
            current, other = other, current
        other.windows.close()
        yield trial
    current.windows.close()


def compare_throughput(current: TimedRun, other: TimedRun, setting: SpeedOption, seconds: float) -> Trial:
    """Time two runs in turn."""
    share = seconds / ROUNDS / 2
    pairs = [(current.throughput(share), other.throughput(share)) for _ in range(ROUNDS)]
    before, after = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    return Trial(setting, before, after, tuple(sorted(new / old for old, new in pairs)))


def table(trials: Sequence[Trial]) -> Table:
    """Show what was tried, in the order in which it was."""
    columns = ("setting", "images/s before", "with", "speed-up", "", "also")
    return Table("faster or not", columns, tuple(_row(trial) for trial in trials))


def _row(trial: Trial) -> tuple[str, ...]:
    if trial.note:
        return (trial.setting.name, "", "", "", result_text(trial), "")
    ratio = f"{statistics.median(trial.ratios):.2f} ({trial.ratios[0]:.2f} to {trial.ratios[-1]:.2f})"
    return (
        trial.setting.name,
        f"{trial.before:.0f}",
        f"{trial.after:.0f}",
        ratio,
        result_text(trial),
        trial.setting.changes,
    )


def result_text(trial: Trial) -> str:
    """Say what came of a trial."""
    if trial.note:
        return f"not tried: {trial.note}"
    return "kept" if trial.is_faster else "no faster"


def flags(trials: Sequence[Trial]) -> list[str]:
    """Return the flags of all that is kept."""
    return [word for trial in trials if trial.is_faster for word in trial.setting.flags]


def to_dict(trials: Sequence[Trial]) -> dict[str, Any]:
    """Put a search into one JSON object."""
    return {
        "trials": [
            {
                "setting": trial.setting.name,
                "flags": trial.setting.flags,
                "before": trial.before,
                "after": trial.after,
                "ratios": list(trial.ratios),
                "kept": trial.is_faster,
                "note": trial.note,
            }
            for trial in trials
        ],
        "flags": flags(trials),
    }
