"""The learning-rate range test: how the loss changes while the rate grows from step to step.

Smith 2017, arXiv:1506.01186, section 3.3, with the exponential growth, the smoothing and the suggestions of fastai's
`lr_find`.
"""

from __future__ import annotations

import math
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from .errors import UserError
from .parts import Table
from .plots import Line, Mark, Plot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from .assemble import Assembly
    from .config import RunConfig
    from .loading import Batch
    from .parts import ParamGroup
    from .run import Ready
    from .state import Parts

BETA = 0.98
"""Share of the running mean of the loss that stays at each step, as fastai's."""
WORSE = 4.0
"""Times its best that the smoothed loss may be before the test stops, as fastai's."""
FEWEST = 10
"""Steps of a test at least."""
SKIPPED_END = 5
"""Last steps that suggestions leave out, as fastai's; and a tenth of the steps at the start."""


@frozen
class RangeTest:
    """What a range test measured.

    Attributes:
        rates: (S,) float > 0, of the optimizer in each step; a group has `lr_scale` times that.
        losses: (S,) float, before the step, with all its terms.
        smoothed: (S,) float, their running mean.
        asked: steps that the test was to take.
        ended: why it took fewer; empty if it did not.
    """

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    smoothed: tuple[float, ...] = ()
    asked: int = field(default=0, kw_only=True)
    ended: str = ""

    @property
    def window(self) -> slice:
        """The steps that suggestions look at: fastai leaves out the first tenth of those asked for and the last 5."""
        return slice(self.asked // 10, max(0, len(self.rates) - SKIPPED_END))

    def suggestions(self) -> dict[str, int]:
        """Return the steps at whose rates the curve suggests to train, by name; none where it does not fall."""
        start, smoothed, rates = self.window.start, self.smoothed[self.window], self.rates[self.window]
        found = {"valley": valley(smoothed), "steep": steep(rates, smoothed)}
        return {name: start + place for name, place in found.items() if place is not None}


def prepare(config: RunConfig) -> Ready:
    """Assemble the run as `ftcore.run.prepare` does, but for a trial: neither its folder nor its cache is made."""
    from .run import prepare as prepare_run

    return prepare_run(
        evolve(config, run=evolve(config.run, folder=None), data=evolve(config.data, cache=None, cache_gb=None))
    )


def check(lowest: float, highest: float, steps: int) -> None:
    """Refuse a range that is none, or too few steps.

    Raises:
        UserError: one of them is.
    """
    if not 0 < lowest < math.inf or not 0 < highest < math.inf:
        raise UserError(f"--from {lowest:g} --to {highest:g}: learning rates are > 0")
    if lowest >= highest:
        raise UserError(f"--from {lowest:g} must be less than --to {highest:g}")
    if steps < FEWEST:
        raise UserError(f"--steps {steps} is too few to see a curve; at least {FEWEST}")


def check_split(parts: Parts) -> None:
    """Refuse a training split that does not fill one batch.

    Raises:
        UserError: it has fewer images than ``train.batch_size``.
    """
    images, batch = len(parts.train.samples), parts.settings.batch_size
    if images < batch:
        raise UserError(
            f"train.batch_size = {batch} is more than the {images} images of the training split; "
            f"a range test needs whole batches: --set train.batch_size={images} or less"
        )


def growing(lowest: float, highest: float, steps: int) -> list[float]:
    """Return rates from `lowest` to `highest`, both included, each the same factor above the one before."""
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def _all(rates: Sequence[float]) -> Iterable[float]:
    return rates


def range_test(
    assembly: Assembly, rates: Sequence[float], shown: Callable[[Sequence[float]], Iterable[float]] = _all
) -> RangeTest:
    """Take a step of the run at each rate, until the smoothed loss is 4 times its best, and undo them all.

    The steps are the loop's own, with everything in them but the schedule; epoch after epoch of the training split,
    frozen as in the first. All losses are those before the step, so the first says nothing of its rate.

    Args:
        assembly: the run; it is left as it was.
        rates: in rising order.
        shown: gives them back one by one, and shows how far they are.

    Raises:
        UserError: the training split does not fill a batch, or the first loss is not finite.
    """
    from .gradients import total
    from .loop import train_step
    from .state import Progress
    from .unchanged import unchanged

    check_split(assembly.parts)
    progress, test, mean = Progress(), RangeTest(asked=len(rates)), 0.0
    with unchanged(assembly.parts) as parts, closing(batches(parts)) as windows:
        begin(parts)
        for rate, window in zip(shown(rates), windows, strict=False):
            set_rates(parts, assembly.groups, rate)
            terms, _ = train_step(parts, window, progress)
            progress.step += 1
            if not terms and not test.rates:
                raise not_finite(parts)
            if not terms:
                return evolve(test, ended=f"the loss or its gradient was not finite at a rate of {rate:.3g}")
            loss = float(total(terms))
            mean = BETA * mean + (1 - BETA) * loss
            test = _longer(test, rate, loss, mean / (1 - BETA**progress.step))
            if test.smoothed[-1] > WORSE * min(test.smoothed):
                return evolve(test, ended=f"the smoothed loss was {WORSE:g} times its best at a rate of {rate:.3g}")
    return test


def batches(parts: Parts) -> Generator[list[Batch]]:
    """Yield the micro-batches of one step after the other, of one epoch after the other."""
    from .loop import windows

    for epoch in count():
        yield from windows(parts.train.epoch(epoch), parts.settings.accumulate)


def begin(parts: Parts) -> None:
    """Freeze and hold what the first epoch does, and put the rest in train mode."""
    from . import freezing

    freezing.apply(parts.network, parts.plan, epoch=0)
    parts.placement.model.train()
    freezing.hold(parts.network, parts.plan, epoch=0)


def set_rates(parts: Parts, groups: Sequence[ParamGroup], rate: float) -> None:
    """Give each group its `lr_scale` times a rate."""
    for group, settings in zip(groups, parts.optimizer.param_groups, strict=True):
        settings["lr"] = rate * group.lr_scale


def _longer(test: RangeTest, rate: float, loss: float, smoothed: float) -> RangeTest:
    return evolve(test, rates=(*test.rates, rate), losses=(*test.losses, loss), smoothed=(*test.smoothed, smoothed))


def not_finite(parts: Parts) -> UserError:
    """Return the error for a network whose first loss is not finite."""
    return UserError(
        f"the loss or its gradient is not finite in the very first step, whatever the learning rate; precision "
        f"{parts.precision.name}, {parts.task.kind}: look at the data with ftcore check, and at the weights; bf16 or "
        "fp32 may help instead of fp16"
    )


def valley(losses: Sequence[float]) -> int | None:
    """Return a place in the longest decreasing subsequence of a curve; None if the curve never falls.

    fastai's `valley`: with L its length and e its end, e - L + int(L / 3) + int(L / 6); called two thirds through it
    there, which the formula is not, for it takes the subsequence for a stretch without gaps.
    """
    lengths: list[int] = []
    for place, loss in enumerate(losses):
        lengths.append(1 + max((lengths[j] for j in range(place) if losses[j] > loss), default=0))
    longest = max(lengths, default=0)
    if longest < 2:
        return None
    return max(0, lengths.index(longest) - longest + longest // 3 + longest // 6)


def steep(rates: Sequence[float], losses: Sequence[float]) -> int | None:
    """Return where a curve over the logarithm of the rate falls fastest, as fastai's `steep`; None if it never does."""
    slopes = [
        (losses[place + 1] - losses[place]) / (math.log(rates[place + 1]) - math.log(rates[place]))
        for place in range(len(rates) - 1)
    ]
    return slopes.index(min(slopes)) if slopes and min(slopes) < 0 else None


def flag(ready: Ready, rate: float) -> str:
    """Return what sets the rate on the command line; empty where the optimizer's plugin has no option `lr`."""
    plugin = ready.host.record["make_optimizer"].answered[0]
    return f"--set {plugin.name}.lr={rate:.3g}" if hasattr(plugin.config, "lr") else ""


def table(ready: Ready, test: RangeTest) -> Table:
    """One row for each suggestion."""
    rows = tuple(
        (name, f"{test.rates[step]:.3g}", f"{test.smoothed[step]:.4f}", flag(ready, test.rates[step]))
        for name, step in test.suggestions().items()
    )
    return Table("suggested learning rates", ("by", "rate", "smoothed loss", "to copy"), rows)


def plot(test: RangeTest) -> Plot:
    """Draw the loss over the rate."""
    lines = (Line("loss", test.rates, test.losses, faint=True), Line("smoothed loss", test.rates, test.smoothed))
    marks = tuple(Mark(name, test.rates[step], test.smoothed[step]) for name, step in test.suggestions().items())
    return Plot("learning-rate range test", "learning rate", "loss", lines, marks, log_x=True)


def as_json(ready: Ready, test: RangeTest) -> dict[str, Any]:
    """Spell a test for programs."""
    return {
        "suggestions": {
            name: {"rate": test.rates[step], "loss": test.smoothed[step], "flag": flag(ready, test.rates[step])}
            for name, step in test.suggestions().items()
        },
        "rates": test.rates,
        "losses": test.losses,
        "smoothed": test.smoothed,
        "ended": test.ended,
    }


def summary(ready: Ready, test: RangeTest) -> str:
    """Say in a line or two how the test went."""
    parts = ready.assembly.parts
    images = parts.settings.batch_size * parts.settings.accumulate
    said = f"{len(test.rates)} of {test.asked} steps of {images} images" + (f"; {test.ended}" if test.ended else "")
    return said if test.suggestions() else f"{said}\nthe curve does not fall, so nothing is suggested; try other bounds"
