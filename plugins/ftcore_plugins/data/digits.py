"""scikit-learn's handwritten digits, and a small network with weights that ship with ftcore.

The weights were trained by ftcore itself on the digits 0 to 4; ``digits_0_4.toml`` is the recipe.
"""

from __future__ import annotations

import re
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore import Backbone, Data, HeadSlot, InputSpec, ModelInfo, UserError, hookimpl
from ftcore.model import is_weights_file, load_weights

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ftcore import Context
    from ftcore.config import RunConfig


WEIGHTS = Path(__file__).parents[1] / "models" / "digits_0_4.safetensors"

_SOURCE = re.compile(r"digits(?::(\d)(?:-(\d))?)?")


@frozen(eq=False)
class DigitImages:
    """Digits in memory; see `ftcore.ImageSource`.

    Attributes:
        pixels: (N, 8, 8) uint8.
        places: of each image in scikit-learn's order.
    """

    pixels: np.ndarray[Any, Any]
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, row: int, side: int | None) -> Image:  # noqa: ARG002 - nothing is smaller than 8 pixels
        """Return one image."""
        from PIL import Image

        return Image.fromarray(self.pixels[row])

    def name(self, row: int) -> str:
        """Return the image's place in scikit-learn's data set."""
        return f"digits[{self.places[row]}]"

    def version(self, row: int) -> str:
        """Return the image's place, for the images never change."""
        return str(self.places[row])


class Digits:
    """The digits of scikit-learn, ``digits`` or ``digits:5-9``, and a small network for them, ``digits/cnn``."""

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Load 1,797 images of 8 x 8 pixels, or those of a range of digits."""
        match = _SOURCE.fullmatch(source or "")
        if match is None:
            return None
        low, high = int(match[1] or 0), int(match[2] or match[1] or 9)
        if low > high:
            raise UserError(f"data.source = {source!r}: the range is empty; write the smaller digit first")
        if config.data.task == "multilabel":
            raise UserError(f"a digit has one class, so data.task cannot be multilabel ({config.origin('data.task')})")
        from sklearn.datasets import load_digits

        from ftcore.data import LabelledImages, fingerprint, make_data, parse_targets

        images, digits = load_digits(return_X_y=True)
        places = [place for place, digit in enumerate(digits) if low <= digit <= high]
        task, cells = config.data.task or "classification", [[str(digits[place])] for place in places]
        pixels = (images[places] * (255 / 16)).round().astype("uint8").reshape(-1, 8, 8)
        found = LabelledImages(
            images=DigitImages(pixels, tuple(places)),
            task=task,
            values=parse_targets(ctx.make_task(task), cells, lambda row: f"digits[{places[row]}]"),
            names=("digit",),
            fingerprint=fingerprint((place, images[place].tobytes().hex(), digits[place]) for place in places),
        )
        return make_data(found, config, ctx)

    @hookimpl
    def list_models(self) -> list[ModelInfo]:
        """List the one network."""
        from ftcore_plugins.models.digits_cnn import make_cnn

        library = f"ftcore {metadata.version('ftcore')}"
        return [ModelInfo("digits/cnn", library, (8, 8), ("default",), partial(make_cnn, classes=5), channels=1)]

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build a network of three convolutions, 56 thousand parameters."""
        if name is None or name.partition("/")[0] != "digits":
            return None
        if name != "digits/cnn":
            raise UserError(f"digits has no network {name!r}; it has digits/cnn")
        if weights not in {"default", "none"} and not is_weights_file(weights):
            raise UserError(f"digits/cnn has no weights {weights!r}; write default, none or a file")
        if config.model.channels not in {None, 1}:
            raise UserError(f"digits/cnn takes 1 channel, not model.channels = {config.model.channels}")
        from ftcore_plugins.models.digits_cnn import make_cnn

        module = make_cnn(classes=5)
        heads = (HeadSlot("head", 64),)
        if weights != "none":
            load_weights(module, WEIGHTS if weights == "default" else weights, heads)
        spec = InputSpec(size=(8, 8), channels=1, mean=(0.3,), std=(0.38,), crop_fraction=1.0)
        return Backbone(module, heads, spec)
