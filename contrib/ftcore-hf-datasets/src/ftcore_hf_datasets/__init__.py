"""Data sets of the `datasets` library for ftcore: ``--plugin hf_datasets --data hf:FOLDER`` or ``hf:NAME:CONFIG``.

`datasets` is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen
from ftcore import Data, hookimpl

if TYPE_CHECKING:
    from ftcore import Context
    from ftcore.config import RunConfig

__all__ = ["HfDatasets", "HfDatasetsConfig"]

PREFIX = "hf:"
"""How a source starts that this plugin answers for."""


@frozen
class HfDatasetsConfig:
    """Options of `hf_datasets`.

    Attributes:
        image: column with the images; by default the only one of type ``Image``.
        target: column to learn; by default the only one of type ``ClassLabel``, else the only list of ``ClassLabel``.
        group: column with what no split may cut, e.g. the patient.
    """

    image: str | None = None
    target: str | None = None
    group: str | None = None


class HfDatasets:
    """Answers for sources that start with ``hf:``."""

    Config = HfDatasetsConfig

    def __init__(self, config: HfDatasetsConfig) -> None:
        self.config = config

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Load the data set, and read its targets; images stay where they are."""
        if source is None or not source.startswith(PREFIX):
            return None
        from ftcore.data import make_data

        from .rows import labelled_with_test
        from .source import load, used

        found = load(source.removeprefix(PREFIX))
        parts = used(found)
        left_out = [name for name in found if name not in parts]
        if left_out:
            ctx.log.warning("splits are left out", source=source, left_out=left_out, used=list(parts))
        rows, reason = labelled_with_test(source, parts, self.config, config)
        if reason:
            ctx.log.warning("the test split cannot be evaluated, and is left out", source=source, reason=reason)
        return make_data(rows, config, ctx)
