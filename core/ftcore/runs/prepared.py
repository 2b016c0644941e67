"""What comes before the first step of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from ftcore.distributed.ranks import ProcessInfo
from ftcore.errors import UserError
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate

from .lock import LOCK

if TYPE_CHECKING:
    from ftcore.config.schema import RunConfig
    from ftcore.plugins.host import Host
    from ftcore.training.assemble import Assembly
    from ftcore.types.data import Data


@frozen(eq=False)
class PreparedRun:
    """A run whose plugins are active and whose data is indexed; nothing is on disk yet.

    Attributes:
        host: the plugins.
        folder: where the run will be.
        data: what it learns from.
        assembly: what the loop needs.
        ranks: the processes of the run.
    """

    host: Host
    folder: Path
    data: Data
    assembly: Assembly
    ranks: ProcessInfo = field(factory=ProcessInfo)


def choose_folder(config: RunConfig) -> Path:
    """Return the run folder's path: the one that was set, or a new one under ``runs/``; makes nothing.

    Raises:
        UserError: the folder exists and holds something.
    """
    if config.run.folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = (Path("runs") / (stamp + suffix) for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        return next(path for path in names if not path.exists())
    folder = Path(config.run.folder)
    _check_empty(folder, config)
    return folder


def _check_empty(folder: Path, config: RunConfig) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        resume = f", or resume it: ftcore resume {folder}" if (folder / "manifest.json").is_file() else ""
        raise UserError(
            f"run.folder {folder} exists and is not empty ({config.origin('run.folder')}); choose another{resume}"
        )


def prepare(config: RunConfig, folder: Path | None = None, ranks: ProcessInfo | None = None) -> PreparedRun:
    """Do everything that comes before the first step, cheap things first; write nothing.

    Args:
        config: what to do.
        folder: of a run that is resumed; by default a new one.
        ranks: the processes of the run.

    Raises:
        UserError: something that the user can mend.
    """
    folder = folder or choose_folder(config)
    host = activate(config, folder, ranks)
    calls = HookCalls(host)
    data = calls.build_data(host.config.data.source)  # before torch is imported
    _check_skipping(host.config, data)

    from ftcore.training.assemble import assemble

    return PreparedRun(host, folder, data, assemble(host.config, calls, data), ranks or ProcessInfo())


def _check_skipping(config: RunConfig, data: Data) -> None:
    """Refuse ``data.on_corrupt = "skip"`` where the data was not made by `make_data`, which heeds it."""
    from ftcore.data.dataset import ImageSplit

    if config.data.on_corrupt == "skip" and not (
        isinstance(data.train, ImageSplit) and isinstance(data.val, ImageSplit)
    ):
        raise UserError(
            f"data.on_corrupt = 'skip' needs samples of ftcore.data.ImageSplit, not {type(data.train).__name__} "
            f"({config.origin('data.on_corrupt')})"
        )
