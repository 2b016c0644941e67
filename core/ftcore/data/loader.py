"""Batches whose order and augmentation are pure functions of (seed, epoch) and (seed, epoch, index)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from attrs import define, field, frozen
from torch.utils.data import DataLoader, get_worker_info

from ftcore.errors import DataError, UserError, blame_plugin
from ftcore.system.cpu import available_cpus
from ftcore.system.seeding import derive_seed, seed_everything
from ftcore.types.data import TwoStageTransform, identity, to_two_stage

from .batch_sharding import local_part
from .files import CORRUPT_IMAGE_HINT
from .targets import TargetError, checked_target
from .workers import WorkerPids, iterate_with_watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.utils.data import Dataset

    from ftcore.types.data import SampleDataset
    from ftcore.types.task import Task

    from .dataset import ImageSplit
    from .decoded_cache import DecodedImageCache


class Batch(NamedTuple):
    """One micro-batch.

    Attributes:
        images: (N, C, H, W) float32, normalised.
        targets: what `ftcore.Task.collate` returns: (N,) int64 class indices; (N, K) float32, 0 or 1 a label,
            probabilities, or standardised numbers.
        indices: (M,) int64, places in the split. M is N; but where several processes share a micro-batch, this is that
            of all of it, and images and targets are those of `local_part`.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy images and targets to a device, without waiting where memory is pinned."""
        images = self.images.to(device, non_blocking=True)
        return Batch(images, self.targets.to(device, non_blocking=True), self.indices)


def epoch_order(seed: int, epoch: int, size: int, weights: Any = None) -> list[int]:
    """Return the samples of 0..size-1 that an epoch (from 0) visits, in its order.

    Each once; or, with `weights` (size,) > 0, `size` of them drawn with replacement in proportion.
    """
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    if weights is None:
        return torch.randperm(size, generator=generator).tolist()
    steps = torch.as_tensor(weights, dtype=torch.float64).cumsum(0)  # torch.multinomial takes at most 2^24 weights
    drawn = torch.rand(size, generator=generator, dtype=torch.float64) * steps[-1]
    return torch.searchsorted(steps, drawn, right=True).clamp(max=size - 1).tolist()


def chunk(indices: list[int], size: int) -> list[list[int]]:
    """Cut into batches of `size`; a lone last sample joins the batch before it, for batch norm needs two."""
    chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1 < size:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return chunks


@define
class EpochSampler:
    """Yields batches of ``(epoch, index)``; set `epoch` before each pass.

    Attributes:
        samples: size of the split.
        batch_size: images per batch.
        seed: of the order; None keeps the split's own order.
        weights: see `epoch_order`.
        epoch: from 0.
        start: number of batches at its beginning that are left out.
        rank: of this process among those that share each batch.
        world_size: number of those.
        pending_batches: batches, whole, that were handed out and have not come back.
    """

    samples: int
    batch_size: int
    seed: int | None = None
    weights: Any = None
    epoch: int = 0
    start: int = 0
    rank: int = 0
    world_size: int = 1
    pending_batches: deque[list[int]] = field(factory=deque)

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        joined = rest == 1 < self.batch_size and full > 0
        return full + (rest > 0 and not joined)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = list(range(self.samples))
        if self.seed is not None:
            indices = epoch_order(self.seed, self.epoch, self.samples, self.weights)
        self.pending_batches.clear()
        for batch in chunk(indices, self.batch_size)[self.start :]:
            self.pending_batches.append(batch)
            yield [(self.epoch, index) for index in self.own(batch)]

    def own(self, batch: list[int]) -> list[int]:
        """Return the part of a batch that this process reads."""
        mine: list[int] = local_part(batch, self.rank, self.world_size)
        return mine


@frozen(eq=False)
class TransformedDataset:
    """A split with its transform, asked by ``(epoch, index)``.

    A sample that cannot be read comes back as its `DataError`: raised in a worker process, it would reach the user
    wrapped in a traceback; so does a target that the task does not have, whose error names `data_origin`. Another error
    of the transform carries `origin` as a note, which says whose transform it is.
    """

    samples: SampleDataset
    transform: TwoStageTransform = field(converter=to_two_stage)
    task: Task
    seed: int | None = None
    cache: DecodedImageCache | None = None
    origin: str = ""
    data_origin: str = "the data"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Any, int] | UserError:
        epoch, index = place
        try:
            image, target = self._prepared(index)
            target = checked_target(target, self.task, self.data_origin, f"{index}, {self.samples.name(index)},")
            if self.seed is not None:
                seed_everything(derive_seed("augment", self.seed, epoch, index))
            return self._transformed(self.transform.to_tensor, image), target, index
        except (DataError, TargetError) as error:
            return error

    def _prepared(self, index: int) -> tuple[Any, Any]:
        """Return the image behind the first step of the transform, and the target."""
        if self.cache is None:
            image, target = self.samples[index]
            return self._transformed(self.transform.resize, image), target
        split = cast("ImageSplit", self.samples)
        image = self.cache.get(
            index, split.version(index), lambda: self._transformed(self.transform.resize, split[index][0])
        )
        return image, split.target(index)

    def _transformed(self, step: Callable[[Any], Any], image: Any) -> Any:
        try:
            return step(image)
        except DataError:
            raise
        except Exception as error:
            if self.origin:
                blame_plugin(error, self.origin)
            raise

    def collate(self, items: list[tuple[Tensor, Any, int] | UserError]) -> Batch | UserError:
        """Stack samples into a batch."""
        for item in items:
            if isinstance(item, UserError):
                return item
        images, targets, indices = zip(*items, strict=True)
        batch = Batch(torch.stack(images), self.task.collate(targets), torch.tensor(indices))
        return to_shared_memory(batch) if get_worker_info() else batch


def to_shared_memory(batch: Batch) -> Batch | UserError:
    """Move a batch to shared memory: in the thread that sends it an error would be dropped, and the loop would hang."""
    try:
        for tensor in batch:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        size = sum(tensor.nbytes for tensor in batch)
        return UserError(
            f"not enough shared memory for a batch of {size:,} bytes: {error}\n"
            "each loader process needs space for three batches: increase shared memory (docker run --shm-size=1g), or "
            "reduce "
            "train.workers or train.batch_size"
        )
    return batch


@frozen(eq=False)
class EpochLoader:
    """A pass over a split in batches, again and again.

    Attributes:
        dataset: the split with its transform.
        loader: gives `Batch` or the `DataError` of a sample.
        sampler: whose `epoch` decides the order.
        device: where batches go.
        on_device_transform: images (N, C, H, W) on the device -> float32, normalised.
        pids: of the loader's processes, if it has any.
    """

    dataset: TransformedDataset
    loader: DataLoader[Any]
    sampler: EpochSampler
    device: torch.device
    on_device_transform: Callable[[Tensor], Tensor] = identity
    pids: WorkerPids | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def samples(self) -> SampleDataset:
        """The split itself."""
        return self.dataset.samples

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), but for the first `start`, which are not read.

        Raises:
            DataError: a sample cannot be read, or a worker died or was stopped.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        batches = iterate_with_watchdog(self.loader, self.pids, self.names_in_flight) if self.pids else self.loader
        for batch in batches:
            indices = self.sampler.pending_batches.popleft()
            if isinstance(batch, UserError):
                # A new one: `batch` with its traceback would keep this frame, and with it the workers.
                raise type(batch)(f"{batch}\n{CORRUPT_IMAGE_HINT}" if isinstance(batch, DataError) else str(batch))
            moved = batch.to(self.device)
            yield moved._replace(images=self.on_device_transform(moved.images), indices=torch.tensor(indices))

    def sequential(self, epoch: int, size: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), each sample once, in the order of the split; of another size."""
        sampler = self.sampler
        before = sampler.seed, sampler.weights, sampler.batch_size
        sampler.seed = sampler.weights = None
        sampler.batch_size = size or sampler.batch_size
        try:
            yield from self.epoch(epoch)
        finally:
            sampler.seed, sampler.weights, sampler.batch_size = before

    def names_in_flight(self) -> list[str]:
        """Return the names of the samples that were asked for and have not come back."""
        return [self.samples.name(index) for batch in self.sampler.pending_batches for index in self.sampler.own(batch)]


def make_batches(
    dataset: TransformedDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    *,
    on_device_transform: Callable[[Tensor], Tensor] = identity,
    **sampling: Any,
) -> EpochLoader:
    """Make the loader of a split; `dataset.seed` None means: in order, nothing random.

    Args:
        dataset: the split.
        batch_size: images in a batch.
        workers: loader processes.
        device: where batches go.
        on_device_transform: see `EpochLoader`.
        **sampling: `weights`, `rank` and `world_size` of the `EpochSampler`.
    """
    sampler = EpochSampler(len(dataset), batch_size, dataset.seed, **sampling)
    pids = WorkerPids.of(workers) if workers else None
    loader: DataLoader[Any] = DataLoader(
        cast("Dataset[Any]", dataset),
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=pids,
        generator=torch.Generator(),  # its own: the loader's draw must not shift the network's
    )
    return EpochLoader(dataset, loader, sampler, device, on_device_transform, pids)


def default_workers(device: torch.device) -> int:
    """Loader processes where the user named no number: on a CPU they would take cores from the network."""
    if device.type == "cpu":
        return 0
    return min(8, available_cpus())
