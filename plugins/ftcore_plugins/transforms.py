"""From a picture to the tensor that the network's weights were trained to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ftcore import Transforms, UserError, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ftcore import InputSpec

_MODES = {1: "L", 3: "RGB"}


class PlainTransforms:
    """Resize, centre crop and normalise, in training as in evaluation; nothing is random."""

    @hookimpl
    def make_transforms(self, spec: InputSpec) -> Transforms:
        """Answer always."""
        if spec.channels not in _MODES:
            raise UserError(
                f"plain_transforms makes 1 or 3 channels, not {spec.channels}; name another plugin for that"
            )
        plain = PlainTransform(spec)
        return Transforms(train=plain, evaluate=plain)


@frozen
class PlainTransform:
    """PIL image -> (C, H, W) float32, normalised.

    The shorter side is resized to size / crop_fraction, the centre is cut out, values in [0, 1] are normalised.

    Attributes:
        spec: what the network wants to see.
    """

    spec: InputSpec
    _steps: Any = field(init=False, eq=False, repr=False)

    @_steps.default
    def _make_steps(self) -> Any:
        import torch
        from torchvision.transforms import InterpolationMode, v2

        sides = [int(side / self.spec.crop_fraction + 1e-6) for side in self.spec.size]  # floored, but not by rounding
        resized = sides[:1] if sides[0] == sides[1] else sides
        return v2.Compose(
            [
                v2.Resize(resized, interpolation=InterpolationMode(self.spec.interpolation), antialias=True),
                v2.CenterCrop(list(self.spec.size)),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.spec.mean), list(self.spec.std)),
            ]
        )

    def __call__(self, image: Image) -> Tensor:
        """Transform one picture."""
        tensor: Tensor = self._steps(image.convert(_MODES[self.spec.channels]))
        return tensor
