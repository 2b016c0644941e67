"""A run's report, written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.config.load import load_run_config
from ftcore.errors import UserError
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.system.files import refuse_links

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL.Image import Image

    from ftcore.types.data import Data


def rewrite_reports(run: Path, *, why: bool = False) -> list[Path]:
    """Let the observers of a run that write a page for people write it again, from the run folder; return the pages.

    These are observers, or the objects whose methods they are, with ``redraw(folder, heat) -> Path``. `heat` is None,
    or draws where the run's model sees something: (place in the validation split, the sample's name, what it sees) ->
    a picture.

    Args:
        run: its folder.
        why: whether they are given `heat`.

    Raises:
        UserError: none does, or it cannot.
    """
    from ftcore.runs.manifest import read_manifest

    read_manifest(run)
    refuse_links(run)
    host = activate(load_run_config(run), run)
    calls = HookCalls(host)
    owners = [getattr(observer, "__self__", observer) for observer in calls.make_observers()]
    heat = _heatmap_function(run, calls.build_data(host.config.data.source)) if why else None
    pages = [owner.redraw(run, heat) for owner in owners if hasattr(owner, "redraw")]
    if not pages:
        raise UserError(f"the run {run} was made without a plugin that writes a report")
    return pages


def _heatmap_function(run: Path, data: Data) -> Callable[[int, str, str], Image]:
    """Return what draws where the model of a run sees something in a validation sample."""
    from ftcore.inference.gradcam import explain_prediction
    from ftcore.inference.load import load

    model, samples = load(run), data.val

    def heat(index: int, name: str, seen: str) -> Image:
        if not (index < len(samples) and samples.name(index) == name):
            raise UserError(f"the data of {run} has changed: {name} is at another position in the validation split")
        return explain_prediction(model, samples[index][0], seen).overlay()

    return heat
