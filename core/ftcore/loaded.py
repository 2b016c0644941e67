"""What a run has learnt, in Python; importing this imports neither torch nor any plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ensemble import Model


def load(run: str | Path) -> Model:
    """Load what a run, an ensemble or a soup has learnt: ``ftcore.load("runs/first").predict("picture.jpg")``.

    Raises:
        UserError: the folder is none of these.
    """
    from .predict import load as of_folder

    return of_folder(Path(run))
