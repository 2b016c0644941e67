"""A page that explains a run: ``report.html`` in its folder, one file that opens without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Context, Observer


@frozen
class ReportConfig:
    """Options of `report`.

    Attributes:
        pictures: validation pictures that are shown in the page, small, of those that the network got most wrong; 0 to
            24, 0 where the page will be seen by those who may not see them.
    """

    pictures: int = field(default=24, validator=[validators.ge(0), validators.le(24)])


class Report:
    """Writes ``report.html`` after each epoch and at the end; what it is drawn from is in ``report.json``."""

    Config = ReportConfig

    def __init__(self, config: ReportConfig) -> None:
        self.config = config

    @hookimpl
    def make_observers(self, ctx: Context) -> Sequence[Observer]:
        """Answer always."""
        from .reporter import Reporter

        return [Reporter(self.config.pictures, ctx.log).observe]
