"""The largest batch that fits: real steps of the run with ever more images, until memory is full."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.system.memory import DeviceMemory
from ftcore.types.table import Table

from .batch_trial import BatchTrial, TrialContext, format_bytes, load_image_pool, run_trial
from .rollback import preserve_rng

if TYPE_CHECKING:
    from ftcore.config.schema import TrainConfig
    from ftcore.training.assemble import Assembly
    from ftcore.training.state import TrainingParts


IMAGE_POOL_SIZE = 256


"""Images that are decoded; a larger batch has some of them twice, which changes neither time nor memory."""


MIN_SPEEDUP = 1.05


"""Times the images/s below which a larger batch is no faster."""


VERIFY_STEPS = 3


"""Steps with which a suggested batch is tried once more."""


@frozen
class BatchSizeSearch:
    """What was tried.

    Attributes:
        trials: in the order of their size.
        largest: images in the largest batch that fits, by `VERIFY_STEPS` more steps.
        budget: bytes that could be used.
        max_batch: images in a batch that were allowed.
    """

    trials: tuple[BatchTrial, ...]
    largest: int
    budget: int
    max_batch: int

    @property
    def smallest_fast_batch(self) -> int:
        """The smallest size beyond which no other that fits is 5 % faster."""
        fitting = [trial for trial in self.trials if not trial.note and trial.batch <= self.largest]
        fastest = max(trial.speed for trial in fitting)
        return next(trial.batch for trial in fitting if trial.speed * MIN_SPEEDUP >= fastest)


def max_batch_size(parts: TrainingParts, most: int | None) -> int:
    """Return how many images a batch may have.

    Raises:
        UserError: more were asked for than there are to learn from, or none.
    """
    images = len(parts.data.train.samples)
    if most is not None and not 1 <= most <= images:
        raise UserError(f"--max {most}: the batch size must be from 1 to {images}, the size of the training split")
    return images if most is None else most


def memory_budget(memory: DeviceMemory, share: float) -> int:
    """Return how many bytes may be used.

    Raises:
        UserError: `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"--memory {share:g} is a fraction of the free memory, > 0 and <= 1")
    return int(share * memory.total())


def find_batch_size(assembly: Assembly, most: int | None = None, share: float = 0.9) -> BatchSizeSearch:
    """Double the batch until it does not fit, try once in between, and verify the largest that did.

    On a CUDA device a size does not fit where memory runs out, or its peak is above the budget. Elsewhere no size is
    tried whose peak, continued in a line from the last two, would be; holes in memory that is kept
    (`cpu.retain_freed_memory`) can take a peak beyond the line, for which a share below 1 leaves room.

    Args:
        assembly: the run; it is left as it was.
        most: images in a batch at most; by default all of the training split.
        share: of the memory that this process has or could have, in (0, 1].

    Raises:
        UserError: an option is out of range, not even a batch of one image fits, or the first loss is not finite.
    """
    parts, memory = assembly.parts, DeviceMemory(assembly.parts.placement.device)
    at_most, usable = max_batch_size(parts, most), memory_budget(memory, share)
    with preserve_rng(memory.device):
        pool = load_image_pool(parts, min(IMAGE_POOL_SIZE, at_most))
    memory.empty()
    bench = TrialContext(parts, pool, memory, usable, memory.used())
    trials = double_until_oom(bench, at_most)
    trials = sorted([*trials, *bisect_last(bench, trials)], key=lambda trial: trial.batch)
    return BatchSizeSearch(tuple(trials), verify_largest(bench, trials), usable, at_most)


def double_until_oom(bench: TrialContext, at_most: int) -> list[BatchTrial]:
    """Try 2, 4, 8 ... images, and `at_most`, until it does not fit; batch norm needs two."""
    trials: list[BatchTrial] = []
    size = min(2, at_most)
    while True:
        trials.append(try_batch_size(bench, size, trials))
        if trials[-1].note or size == at_most:
            return trials
        size = min(2 * size, at_most)


def bisect_last(bench: TrialContext, trials: list[BatchTrial]) -> list[BatchTrial]:
    """Try the size half way between the last that fits and the one that does not, if there is one."""
    *fitting, last = trials
    fits = fitting[-1].batch if fitting else 0
    middle = (fits + last.batch) // 2
    return [try_batch_size(bench, middle, fitting)] if last.note and middle > fits else []


def try_batch_size(bench: TrialContext, size: int, fitting: list[BatchTrial]) -> BatchTrial:
    """Try a size, unless it can be foreseen that it harms others."""
    foreseen = extrapolate_memory([(0, bench.base), *((trial.batch, trial.peak) for trial in fitting)], size)
    if foreseen > bench.budget and not bench.memory.oom_is_recoverable:
        return BatchTrial(
            size, peak=foreseen, note=f"not tried: expected to need more than {format_bytes(bench.budget)}"
        )
    return run_trial(bench, size)


def extrapolate_memory(points: list[tuple[int, int]], size: int) -> int:
    """Continue peaks (batch, bytes) in a line through the last two; memory is linear in the images of a batch."""
    batch, peak = points[-1]
    if len(points) < 2:
        return peak
    slope = max(0.0, (peak - points[-2][1]) / (batch - points[-2][0]))
    return peak + round(slope * (size - batch))


def verify_largest(bench: TrialContext, trials: list[BatchTrial]) -> int:
    """Return the largest size of those that fit with which `VERIFY_STEPS` more steps succeed.

    Raises:
        UserError: there is none.
    """
    for trial in reversed(trials):
        if not trial.note and not run_trial(bench, trial.batch, VERIFY_STEPS, math.inf).note:
            return trial.batch
    raise UserError(
        f"not even a batch of one image fits: a batch of {trials[0].batch} {trials[0].note}; before the first step "
        f"{format_bytes(bench.base)} of {format_bytes(bench.budget)} were in use. Try "
        f"{load_defaults().ADVICE['memory']}, a smaller network or a smaller model.image_size"
    )


def tables(search: BatchSizeSearch) -> list[Table]:
    """One row for each trial, and one for each suggestion."""
    rows = [
        (str(trial.batch), f"{trial.speed:.0f}" if trial.speed else "", format_bytes(trial.peak), trial.note)
        for trial in search.trials
    ]
    suggested = {f"the largest that fits, verified by {VERIFY_STEPS} steps": search.largest}
    suggested |= (
        {"larger batches are less than 5 % faster": search.smallest_fast_batch}
        if search.smallest_fast_batch < search.largest
        else {}
    )
    return [
        Table("batches", ("batch", "images/s", "peak memory", "does not fit"), tuple(rows)),
        Table(
            "suggested batch",
            ("batch", "which is", "use"),
            tuple((str(batch), name, cli_flag(batch)) for name, batch in suggested.items()),
        ),
    ]


def cli_flag(batch: int) -> str:
    """Return what sets the size on the command line."""
    return f"--set train.batch_size={batch}"


def accumulation_hint(search: BatchSizeSearch, settings: TrainConfig) -> str:
    """Say what goes with another size of batch."""
    now, batch = settings.batch_size * settings.accumulate, search.largest
    said = f"Another number of images per step (now {now}) needs another rate: ftcore find lr ... {cli_flag(batch)}"
    times = now // batch
    if times > 1 and now % batch == 0:
        return f"{said}\nKeep {now} with train.accumulate: {cli_flag(batch)} --set train.accumulate={times}"
    return f"{said}\nWith a smaller batch, train.accumulate keeps the number of images per step"


def to_dict(search: BatchSizeSearch) -> dict[str, Any]:
    """Spell a search for programs."""
    trials = [
        {
            "batch": trial.batch,
            "fits": not trial.note,
            "images_per_second": trial.speed or None,
            "peak_bytes": trial.peak or None,
            "note": trial.note,
        }
        for trial in search.trials
    ]
    return {
        "batches": trials,
        "largest": search.largest,
        "enough": search.smallest_fast_batch,
        "budget_bytes": search.budget,
        "flag": cli_flag(search.largest),
    }
