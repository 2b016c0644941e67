"""The learning-rate range test: how the loss changes while the rate grows from step to step.

Smith 2017, arXiv:1506.01186, section 3.3, with the exponential growth, the smoothing and the suggestions of fastai's
`lr_find`.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from ftcore.errors import UserError
from ftcore.plots import Marker, Plot, Series
from ftcore.types.table import Table

from .trial import batches, check_split, nonfinite_first_loss_error, start_first_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ftcore.runs.prepared import PreparedRun
    from ftcore.training.assemble import Assembly
    from ftcore.training.state import TrainingParts
    from ftcore.types.training import ParamGroup


SMOOTHING = 0.98
"""Share of the running mean of the loss that stays at each step, as fastai's."""

DIVERGENCE_FACTOR = 4.0
"""Times its best that the smoothed loss may be before the test stops, as fastai's."""

MIN_STEPS = 10
"""Steps of a test at least."""

SKIP_END = 5
"""Last steps that suggestions leave out, as fastai's; and a tenth of the steps at the start."""


@frozen
class LRFinderResult:
    """What a range test measured.

    Attributes:
        rates: (S,) float > 0, of the optimizer in each step; a group has `lr_scale` times that.
        losses: (S,) float, before the step, with all its terms.
        smoothed: (S,) float, their running mean.
        requested_steps: steps that the test was to take.
        stop_reason: why it took fewer; empty if it did not.
    """

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    smoothed: tuple[float, ...] = ()
    requested_steps: int = field(default=0, kw_only=True)
    stop_reason: str = ""

    @property
    def window(self) -> slice:
        """The steps that suggestions look at: fastai leaves out the first tenth of those asked for and the last 5."""
        return slice(self.requested_steps // 10, max(0, len(self.rates) - SKIP_END))

    def suggestions(self) -> dict[str, int]:
        """Return the steps at whose rates the curve suggests to train, by name; none where it does not fall."""
        start, smoothed, rates = self.window.start, self.smoothed[self.window], self.rates[self.window]
        found = {"valley": valley(smoothed), "steep": steep(rates, smoothed)}
        return {name: start + place for name, place in found.items() if place is not None}


def check(lowest: float, highest: float, steps: int) -> None:
    """Refuse a range that is none, or too few steps.

    Raises:
        UserError: one of them is.
    """
    if not 0 < lowest < math.inf or not 0 < highest < math.inf:
        raise UserError(f"--from {lowest:g} --to {highest:g}: learning rates are > 0")
    if lowest >= highest:
        raise UserError(f"--from {lowest:g} must be less than --to {highest:g}")
    if steps < MIN_STEPS:
        raise UserError(f"--steps {steps} is too few to see a curve; at least {MIN_STEPS}")


def exponential_lrs(lowest: float, highest: float, steps: int) -> list[float]:
    """Return rates from `lowest` to `highest`, both included, each the same factor above the one before."""
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def _all(rates: Sequence[float]) -> Iterable[float]:
    return rates


def lr_range_test(
    assembly: Assembly, rates: Sequence[float], shown: Callable[[Sequence[float]], Iterable[float]] = _all
) -> LRFinderResult:
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
    from ftcore.training.gradients import sum_terms
    from ftcore.training.loop import train_step
    from ftcore.training.state import Progress

    from .rollback import rollback

    check_split(assembly.parts)
    progress, test, mean = Progress(), LRFinderResult(requested_steps=len(rates)), 0.0
    with rollback(assembly.parts) as parts, closing(batches(parts)) as windows:
        start_first_epoch(parts)
        for rate, window in zip(shown(rates), windows, strict=False):
            set_learning_rates(parts, assembly.groups, rate)
            terms, _ = train_step(parts, window, progress)
            progress.step += 1
            if not terms and not test.rates:
                raise nonfinite_first_loss_error(parts)
            if not terms:
                return evolve(test, stop_reason=f"the loss or its gradient was not finite at learning rate {rate:.3g}")
            loss = float(sum_terms(terms))
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            test = _append_step(test, rate, loss, mean / (1 - SMOOTHING**progress.step))
            if test.smoothed[-1] > DIVERGENCE_FACTOR * min(test.smoothed):
                return evolve(
                    test,
                    stop_reason=f"stopped: the smoothed loss exceeded {DIVERGENCE_FACTOR:g} times its minimum at "
                    f"learning rate {rate:.3g}",
                )
    return test


def set_learning_rates(parts: TrainingParts, groups: Sequence[ParamGroup], rate: float) -> None:
    """Give each group its `lr_scale` times a rate."""
    for group, settings in zip(groups, parts.optimization.optimizer.param_groups, strict=True):
        settings["lr"] = rate * group.lr_scale


def _append_step(test: LRFinderResult, rate: float, loss: float, smoothed: float) -> LRFinderResult:
    return evolve(test, rates=(*test.rates, rate), losses=(*test.losses, loss), smoothed=(*test.smoothed, smoothed))


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


def cli_flag(ready: PreparedRun, rate: float) -> str:
    """Return what sets the rate on the command line; empty where the optimizer's plugin has no option `lr`."""
    plugin = ready.host.record["make_optimizer"].answered[0]
    return f"--set {plugin.name}.lr={rate:.3g}" if hasattr(plugin.config, "lr") else ""


def table(ready: PreparedRun, test: LRFinderResult) -> Table:
    """One row for each suggestion."""
    rows = tuple(
        (name, f"{test.rates[step]:.3g}", f"{test.smoothed[step]:.4f}", cli_flag(ready, test.rates[step]))
        for name, step in test.suggestions().items()
    )
    return Table("suggested learning rates", ("by", "rate", "smoothed loss", "use"), rows)


def plot(test: LRFinderResult) -> Plot:
    """Draw the loss over the rate."""
    lines = (Series("loss", test.rates, test.losses, faint=True), Series("smoothed loss", test.rates, test.smoothed))
    marks = tuple(Marker(name, test.rates[step], test.smoothed[step]) for name, step in test.suggestions().items())
    return Plot("learning-rate range test", "learning rate", "loss", lines, marks, log_x=True)


def to_dict(ready: PreparedRun, test: LRFinderResult) -> dict[str, Any]:
    """Spell a test for programs."""
    return {
        "suggestions": {
            name: {"rate": test.rates[step], "loss": test.smoothed[step], "flag": cli_flag(ready, test.rates[step])}
            for name, step in test.suggestions().items()
        },
        "rates": test.rates,
        "losses": test.losses,
        "smoothed": test.smoothed,
        "ended": test.stop_reason,
    }


def summary(ready: PreparedRun, test: LRFinderResult) -> str:
    """Say in a line or two how the test went."""
    parts = ready.assembly.parts
    images = parts.train_config.batch_size * parts.train_config.accumulate
    said = f"{len(test.rates)} of {test.requested_steps} steps of {images} images" + (
        f"; {test.stop_reason}" if test.stop_reason else ""
    )
    return (
        said
        if test.suggestions()
        else f"{said}\nthe loss does not fall, so no learning rate is suggested; try other bounds"
    )
