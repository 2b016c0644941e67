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
        pictures: number of validation images with the highest loss to show in the page, 0 to
            24; use 0 for confidential data.
    """

    pictures: int = field(default=24, validator=[validators.ge(0), validators.le(24)])


class Report:
    """Writes ``report.html`` after each epoch and at the end; its data is in ``report.json``."""

    Config = ReportConfig

    def __init__(self, config: ReportConfig) -> None:
        self.config = config

    @hookimpl
    def make_observers(self, ctx: Context) -> Sequence[Observer]:
        """Answer always."""
        from .reporter import Reporter

        return [Reporter(self.config.pictures, ctx.log).observe]
