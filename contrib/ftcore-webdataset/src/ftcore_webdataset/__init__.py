"""WebDataset shards for ftcore: ``--plugin webdataset --data "shards:photos/{train,val}-{000000..000009}.tar"``.

Each shard is indexed once, by its tar headers; from then on any image is one byte range, so that order, resume and
number of workers are as exact as with a folder.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen, validators
from ftcore import Data, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Context
    from ftcore.config import RunConfig

    from .index import Shard

__all__ = ["WebDataset", "WebDatasetConfig"]

PREFIX = "shards:"
"""How a source starts that this plugin answers for."""

_AT_ONCE = 8
"""Shards that are indexed at the same time."""


@frozen
class WebDatasetConfig:
    """Options of `webdataset`.

    Attributes:
        images: file extensions of images, without a leading dot; of a sample with several, the first in
            this order is taken. An ending is all that follows the first dot of a name, e.g. ``left.jpg``.
        label: key of a sample's class in its ``.json``.
        index: folder in which the index of each shard is kept; by default the user's cache.
    """

    images: tuple[str, ...] = field(
        default=("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff", "avif"),
        validator=validators.min_len(1),
    )
    label: str = "label"
    index: str | None = None


class WebDataset:
    """Answers for sources that start with ``shards:``."""

    Config = WebDatasetConfig

    def __init__(self, config: WebDatasetConfig) -> None:
        self.config = config

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Find the shards, index those that are new or have changed, and join their members to samples."""
        if source is None or not source.startswith(PREFIX):
            return None
        from ftcore.data import make_data, parse_targets

        from .names import find_shards
        from .samples import labelled

        if config.data.task == "multilabel":
            raise UserError(
                "webdataset gives each image one label, so data.task cannot be multilabel "
                f"({config.origin('data.task')})"
            )
        shards, left_out = self._indexed(find_shards(source.removeprefix(PREFIX)))
        if left_out:
            ctx.log.warning("the index of shards could not be kept; they are indexed anew each time", reason=left_out)
        found = labelled(shards, self.config, config)
        if found.task not in {"classification", "regression"}:  # a task of another plugin reads labels itself
            rows = ([label] for label in found.values)
            found = evolve(found, values=parse_targets(ctx.make_task(found.task), rows, found.images.name))
        return make_data(found, config, ctx)

    def _indexed(self, urls: Sequence[str]) -> tuple[list[Shard], str]:
        """Index shards, several at a time; with a progress bar on a terminal. Also return why some were not kept."""
        from ftcore.console import console
        from rich.progress import track

        from .index import Store

        store = Store.of(self.config.index, self.config.label)
        err = console(sys.stderr)
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            found = pool.map(store.shard, urls)
            shards = list(track(found, "indexing shards", total=len(urls), console=err, disable=not err.is_terminal))
        finally:
            pool.shutdown(cancel_futures=True)
        return shards, next(iter(store.problems), "")
