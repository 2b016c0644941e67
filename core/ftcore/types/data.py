"""Samples and transforms. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .table import Table
    from .task import Task


class SampleDataset(Protocol):
    """A split of the data: any map-style dataset, picklable for worker processes.

    An item is ``(image, target)``: a `PIL.Image.Image`, and what `Task.check` takes: an int class index, a tuple
    with 0 or 1 per label, or a float (a tuple of floats for several regression targets) in the unit of the data. An
    item that cannot be read raises `DataError` naming its path. `ftcore.data.ImageSplit` is one; features that need all
    targets at once (``data.on_corrupt``, ``data.cache``, `balanced_sampling`) require it.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return image and target of one sample."""
        ...

    def name(self, index: int, /) -> str:
        """Return a name for users: its path, or its position in the source."""
        ...


@frozen
class Data:
    """The result of `build_data`.

    Attributes:
        train: training samples.
        val: validation samples, evaluated after each epoch; they select the best epoch.
        task: classes or targets, taken from `train` alone.
        fingerprint: SHA-256 in hex that changes when samples are added, removed, renamed, relabelled or change size.
        tables: shown at the start of the run.
        skipped: ``(split, reason)`` of each skipped image that cannot be read.
        weights: (N,) float64 > 0: each epoch draws N training samples with replacement, in proportion; None visits
            each once.
        test: test samples, not used for training or selection; None if there are none.
        has_splits: whether the source has splits; if not and `RunConfig.measuring` is set, all samples
            are in `test`.
        total: number of samples in the source, including other splits and skipped samples; None: that of the three
            splits.
    """

    train: SampleDataset
    val: SampleDataset
    task: Task
    fingerprint: str
    tables: tuple[Table, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    weights: Any = None
    test: SampleDataset | None = None
    has_splits: bool = True
    total: int | None = None

    @property
    def splits(self) -> dict[str, SampleDataset]:
        """The splits that have samples, by name: of ``train``, ``val`` and ``test``."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: samples for name, samples in named.items() if samples is not None and len(samples)}


def identity(value: Any) -> Any:
    """Return what is given."""
    return value


@frozen
class TwoStageTransform:
    """A transform in two steps, PIL image -> tensor (C, H, W).

    Attributes:
        resize: PIL image -> PIL image, L or RGB, deterministic; ``data.cache`` keeps its result.
        to_tensor: that image -> tensor.
        min_decode_side: pixels; an image may be decoded at a smaller scale if its shorter side is at least this. None:
            decode in full.
    """

    resize: Callable[[Any], Any]
    to_tensor: Callable[[Any], Tensor]
    min_decode_side: int | None = None

    def __call__(self, image: Any) -> Tensor:
        """Take both steps."""
        return self.to_tensor(self.resize(image))


def to_two_stage(transform: Callable[[Any], Tensor]) -> TwoStageTransform:
    """Return a transform in two steps, the first of which may be the identity."""
    return transform if isinstance(transform, TwoStageTransform) else TwoStageTransform(identity, transform)


@frozen
class Transforms:
    """The result of `make_transforms`.

    Attributes:
        train: PIL image -> tensor (C, H, W), uint8 or float32; `TwoStageTransform`, or any callable. May draw from
            torch's, numpy's and Python's global generators: they are seeded from (seed, epoch, index) before each call.
        evaluate: the same, deterministic; the only one that `predict` uses.
        on_device: the tensors of a batch (N, C, H, W), on the network's device -> float32, normalised.
    """

    train: TwoStageTransform = field(converter=to_two_stage)
    evaluate: TwoStageTransform = field(converter=to_two_stage)
    on_device: Callable[[Tensor], Tensor] = identity


BatchTransform = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""Images (N, C, H, W) float32 and targets (N, K) float32 (one-hot, labels, or standardised) -> both, changed.

Draws from torch's CPU generator, which is seeded for each step.
"""


@frozen
class BatchImageTransform:
    """A batch transform that does not change targets, so classes stay class indices and any loss can be used.

    Attributes:
        function: images (N, C, H, W) float32, normalised -> images of that shape; draws as a `BatchTransform` does.
    """

    function: Callable[[Tensor], Tensor]


class ImageSource(Protocol):
    """All images of a source, by row; picklable for worker processes."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, row: int, side: int | None) -> Image:
        """Decode one image; if cheaper, at a smaller scale whose shorter side is at least `side` pixels.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def name(self, row: int) -> str:
        """Return a name for users: its path, or its position in the source."""
        ...

    def version(self, row: int) -> str:
        """Return a version that changes with the image, e.g. its size and time, without decoding it."""
        ...
