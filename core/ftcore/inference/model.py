"""One network or several that answer as one: their probabilities are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.data.decoding import is_one_picture
from ftcore.errors import UserError
from ftcore.types.abilities import Averaged, require
from ftcore.types.model import TokenSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from ftcore.data.pixels import Channels
    from ftcore.model.build import Network
    from ftcore.types.data import Transforms
    from ftcore.types.task import Prediction, Task


@frozen(eq=False)
class Member:
    """One network, in eval mode.

    Attributes:
        module: images (N, C, H, W) float32, normalised -> outputs (N, task.outputs).
        network: the built network with its architecture and transforms.
        task: what its outputs mean.
        weight: of its prediction, > 0; all members' add up to 1.
    """

    module: nn.Module
    network: Network
    task: Task
    weight: float = 1.0

    @property
    def transforms(self) -> Transforms:
        """PIL image -> tensor; only `evaluate` and `finish` are used."""
        return self.network.transforms

    def outputs(self, images: Tensor, task: Task) -> Tensor:
        """Images (N, C, H, W) float32, normalised -> outputs (N, K) float32 as `task` means them.

        That is: in the order of its names; numbers in its standardisation.
        """
        from ftcore.model.shape_inference import as_tuple

        outputs: Tensor = as_tuple(self.module(images))[0].float()
        return outputs if task == self.task else require(task, Averaged, "an ensemble").align(outputs, self.task)


@frozen(eq=False)
class Model:
    """The network of the best epoch of a run, or several networks whose predictions are averaged.

    Attributes:
        members: the networks; each has its own transforms.
        task: what the outputs mean; of several members the first one's, with what is the mean over all.
    """

    members: tuple[Member, ...]
    task: Task

    @property
    def is_text_model(self) -> bool:
        """Whether it takes texts instead of images."""
        return any(isinstance(member.network.spec, TokenSpec) for member in self.members)

    @property
    def module(self) -> nn.Module:
        """The one network: images (N, C, H, W) float32, normalised -> outputs (N, task.outputs)."""
        return self.single.module

    @property
    def transforms(self) -> Transforms:
        """Those of the one network."""
        return self.single.transforms

    @property
    def single(self) -> Member:
        """The network of a model that has only one.

        Raises:
            UserError: there are several.
        """
        if len(self.members) != 1:
            raise UserError(f"this needs one network, but an ensemble has {len(self.members)}; use one of its runs")
        return self.members[0]

    def predict(self, images: Any, batch_size: int = 32, *, channels: Channels = "rgb") -> list[Prediction]:
        """Predict for images: class or label -> probability, most probable first, or numbers in the unit of the target.

        Args:
            images: one image, or several: a path, or that of a folder; the bytes of a file; a file that is
                open, as uploads are; a PIL image; an array (H, W) or (H, W, C) of uint8, its colours red, green, blue;
                or a tensor (C, H, W). An array or a tensor of four dimensions holds several. See
                `ftcore.data.read_image`: all forms of an image give the same prediction.
                Of a model that reads texts: a text, a `Path` of a file with one, or any number of them.
            batch_size: images per forward pass.
            channels: order of the colours in arrays and tensors: ``rgb``, or ``bgr`` for OpenCV's frames.

        Raises:
            UserError: something that is not an image.
            DataError: a file that cannot be read.
        """
        from .predict import predict_items

        return list(predict_items(self, [images] if is_one_picture(images) else images, batch_size, channels))

    def outputs(self, images: Sequence[Tensor], *, tta: bool = False) -> Tensor:
        """Return outputs (N, K) as those of one network, which say what all members say on average.

        Probabilities p = sum_m w_m p_m (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4, with weights),
        given as log p for classes and log p - log(1 - p) for labels: so losses and metrics take them as they take a
        network's, and nothing rounds to 0 or 1 on the way. Numbers are averaged directly.

        Args:
            images: the same images for each member, (N, C, H, W) float32, normalised as it wants them.
            tta: average each member's outputs over every image and its mirror image.
        """
        if tta and not all(batch.is_floating_point() for batch in images):
            raise UserError("tta needs images, but this network takes texts")
        passes = [
            (member.outputs(seen, self.task), member.weight / (1 + tta))
            for member, batch in zip(self.members, images, strict=True)
            for seen in ([batch, batch.flip(-1)] if tta else [batch])
        ]
        if len(passes) == 1:
            return passes[0][0]
        import torch

        outputs = torch.stack([outputs for outputs, _ in passes])
        shares = torch.tensor([share for _, share in passes], device=outputs.device)
        return require(self.task, Averaged, "tta, as an ensemble,").average(outputs, shares)
