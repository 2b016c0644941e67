"""Small pictures of validation samples, or the beginnings of texts, inside the page."""

from __future__ import annotations

import base64
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

from attrs import evolve
from PIL import Image

from ftcore import UserError
from ftcore.data import ImageSplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore import SampleDataset


SIDE = 128
"""Pixels of the longer side, at most."""

TEXT = 300
"""Characters of a text, at most."""

SMALL = 64
"""Pixels; a shorter picture is shown with each of its own pixels as a square of several."""


def choose(evaluation: dict[str, Any], pictures: int) -> None:
    """Keep at most so many samples: half of them the most confident mistakes, the others, of the rest, the worst."""
    half = pictures // 2 if evaluation["confident"] else 0
    evaluation["confident"] = evaluation["confident"][:half]
    there = {sample["index"] for sample in evaluation["confident"]}
    rest = [sample for sample in evaluation["worst"] if sample["index"] not in there]
    evaluation["worst"] = rest[: pictures - len(there)]


def show(evaluation: dict[str, Any], samples: SampleDataset) -> None:
    """Give each sample of an evaluation its name, and its picture or text if it can be read."""
    if isinstance(samples, ImageSplit):
        samples = evolve(samples, side=SIDE)
    for sample in [*evaluation["confident"], *evaluation["worst"]]:
        sample |= {"name": samples.name(sample["index"]), "picture": None, "text": None}
        with suppress(Exception):  # it was read a moment ago; without it the page is still worth having
            sample.update(_seen(samples[sample["index"]][0]))


def explain(evaluation: dict[str, Any], heat: Callable[[int, str, str], Image.Image]) -> None:
    """Give each picture of an evaluation a drawing of where the network saw what it said first.

    Raises:
        UserError: it cannot be drawn, see `ftcore.reports.rewrite_reports`; or there is no picture.
    """
    samples = [*evaluation.get("confident", ()), *evaluation.get("worst", ())]
    shown = [sample for sample in samples if sample["picture"]]
    if not shown:
        raise UserError(
            "the report shows no images of the best epoch, so there is nothing to overlay (report.pictures)"
        )
    for sample in shown:
        said, _ = sample["said"][0]
        sample["heat"] = thumbnail(heat(sample["index"], sample["name"], said))


def _seen(read: Any) -> dict[str, Any]:
    return {"text": read[:TEXT]} if isinstance(read, str) else {"picture": thumbnail(read)}


def thumbnail(image: Image.Image) -> dict[str, Any]:
    """Return a picture as a JPEG of at most SIDE pixels: ``data``, a data URI, and its size."""
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((SIDE, SIDE))
    times = -(-SMALL // max(small.size))
    if times > 1:
        small = small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
    file = BytesIO()
    small.save(file, "JPEG", quality=82)
    data = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"data": data, "width": small.width, "height": small.height}
