"""What is drawn for a key: `1e-5..1e-2:log`, `1..8`, `a,b,c`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen
from ftcore import UserError
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@frozen
class Space:
    """What a key may be.

    Attributes:
        key: of ftcore's configuration, as in ``--set``.
        distribution: Optuna's.
    """

    key: str
    distribution: BaseDistribution

    @classmethod
    def parse(cls, text: str) -> Space:
        """Read ``KEY=SPACE``.

        Raises:
            UserError: it is no space.
        """
        key, is_pair, space = text.partition("=")
        if not key or not is_pair or not space:
            raise UserError(f"--search {text}: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=one,other")
        try:
            return cls(key, _range(space) if ".." in space else _choices(space))
        except ValueError as error:
            raise UserError(f"--search {text}: {error}") from None


def _range(space: str) -> BaseDistribution:
    ends, _, how = space.partition(":")
    if how not in {"", "log"}:
        raise ValueError(f"{how!r} is not a distribution; expected ':log'")
    low, high = ends.split("..", 1)
    try:
        return IntDistribution(int(low), int(high), log=bool(how))
    except ValueError:
        return FloatDistribution(float(low), float(high), log=bool(how))


def _choices(space: str) -> BaseDistribution:
    choices = [choice for choice in space.split(",") if choice]
    if len(choices) < 2:
        raise ValueError("one choice is none; --set sets a value")
    return CategoricalDistribution(choices)
