"""Batches whose order and augmentation are pure functions of (seed, epoch) and (seed, epoch, index)."""

from __future__ import annotations

import random
from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from attrs import define, field, frozen
from torch.utils.data import DataLoader, get_worker_info

from .cores import cores
from .errors import DataError, UserError
from .files import WAY_OUT
from .parts import Steps, as_is, as_steps
from .workers import Pids, patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.utils.data import Dataset

    from .labelled import Split
    from .parts import Placement, Samples, Task
    from .pixelcache import PixelCache


class Batch(NamedTuple):
    """One micro-batch.

    Attributes:
        images: (N, C, H, W) float32, normalised.
        targets: (N,) int64 class indices; (N, K) float32, 0 or 1 a label, probabilities, or standardised numbers.
        indices: (M,) int64, places in the split. M is N; but where several processes share a micro-batch, this is that
            of all of it, and images and targets are those of `own`.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy images and targets to a device, without waiting where memory is pinned."""
        images = self.images.to(device, non_blocking=True)
        return Batch(images, self.targets.to(device, non_blocking=True), self.indices)


def key(*parts: int | str) -> int:
    """Return 63 bits that depend on all parts and nothing else: BLAKE2b, stable across versions and machines."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(seed: int, epoch: int, size: int, weights: Any = None) -> list[int]:
    """Return the samples of 0..size-1 that an epoch (from 0) visits, in its order.

    Each once; or, with `weights` (size,) > 0, `size` of them drawn with replacement in proportion.
    """
    generator = torch.Generator().manual_seed(key("order", seed, epoch))
    if weights is None:
        return torch.randperm(size, generator=generator).tolist()
    steps = torch.as_tensor(weights, dtype=torch.float64).cumsum(0)  # torch.multinomial takes at most 2^24 weights
    drawn = torch.rand(size, generator=generator, dtype=torch.float64) * steps[-1]
    return torch.searchsorted(steps, drawn, right=True).clamp(max=size - 1).tolist()


def seed_everything(number: int) -> None:
    """Seed the global generators that transforms and layers draw from; about 7 us."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - transforms of other libraries draw from numpy's global state


def seed_step(device: torch.device, number: int) -> None:
    """Seed what dropout draws from in the coming step, so that a step depends on nothing before it."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


def batches(indices: list[int], size: int) -> list[list[int]]:
    """Cut into batches of `size`; a lone last sample joins the batch before it, for batch norm needs two."""
    cut = [indices[start : start + size] for start in range(0, len(indices), size)]
    if len(cut) > 1 and len(cut[-1]) == 1 < size:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def share(size: int, rank: int, world_size: int) -> slice:
    """Return which of so many samples a process has: one run of them, in the order of the ranks, none or one longer."""
    each, more = divmod(size, world_size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def own(items: Any, rank: int, world_size: int) -> Any:
    """Return the share of a process in a micro-batch; the first item, which is not its own, for one that has none.

    All processes go through the network, or the gradients would not be added up. What is not its own counts nothing.
    """
    return items[share(len(items), rank, world_size)] if rank < len(items) else items[:1]


def whole(rows: Tensor, size: int, placement: Placement) -> Tensor:
    """Return the rows (size, ...) of a whole micro-batch, of which each process has its share."""
    ranks = placement.world_size
    if ranks == 1:
        return rows
    sizes = [len(range(size)[share(size, rank, ranks)]) for rank in range(ranks)]
    padded = rows.new_zeros(sizes[0], *rows.shape[1:])
    padded[: sizes[placement.rank]] = rows[: sizes[placement.rank]]
    found = placement.gather(padded)
    return torch.cat([part[:length] for part, length in zip(found, sizes, strict=True)])


@define
class EpochSampler:
    """Yields batches of ``(epoch, index)``; set `epoch` before each pass.

    Attributes:
        samples: size of the split.
        batch_size: images per batch.
        seed: of the order; None keeps the split's own order.
        weights: see `order`.
        epoch: from 0.
        start: number of batches at its beginning that are left out.
        rank: of this process among those that share each batch.
        world_size: number of those.
        in_flight: batches, whole, that were handed out and have not come back.
    """

    samples: int
    batch_size: int
    seed: int | None = None
    weights: Any = None
    epoch: int = 0
    start: int = 0
    rank: int = 0
    world_size: int = 1
    in_flight: deque[list[int]] = field(factory=deque)

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        joined = rest == 1 < self.batch_size and full > 0
        return full + (rest > 0 and not joined)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = list(range(self.samples))
        if self.seed is not None:
            indices = order(self.seed, self.epoch, self.samples, self.weights)
        self.in_flight.clear()
        for batch in batches(indices, self.batch_size)[self.start :]:
            self.in_flight.append(batch)
            yield [(self.epoch, index) for index in self.own(batch)]

    def own(self, batch: list[int]) -> list[int]:
        """Return the part of a batch that this process reads."""
        mine: list[int] = own(batch, self.rank, self.world_size)
        return mine


@frozen(eq=False)
class Prepared:
    """A split with its transform, asked by ``(epoch, index)``.

    A sample that cannot be read comes back as its `DataError`: raised in a worker process, it would reach the user
    wrapped in a traceback.
    """

    samples: Samples
    transform: Steps = field(converter=as_steps)
    task: Task
    seed: int | None = None
    cache: PixelCache | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Any, int] | DataError:
        epoch, index = place
        try:
            image, target = self._prepared(index)
            if self.seed is not None:
                seed_everything(key("augment", self.seed, epoch, index))
            return self.transform.then(image), target, index
        except DataError as error:
            return error

    def _prepared(self, index: int) -> tuple[Any, Any]:
        """Return the image behind the first step of the transform, and the target."""
        if self.cache is None:
            image, target = self.samples[index]
            return self.transform.prepare(image), target
        split = cast("Split", self.samples)
        image = self.cache.get(index, split.stamp(index), lambda: self.transform.prepare(split[index][0]))
        return image, split.target(index)

    def collate(self, items: list[tuple[Tensor, Any, int] | DataError]) -> Batch | UserError:
        """Stack samples into a batch."""
        for item in items:
            if isinstance(item, DataError):
                return item
        images, targets, indices = zip(*items, strict=True)
        batch = Batch(torch.stack(images), encode(targets, self.task), torch.tensor(indices))
        return shared(batch) if get_worker_info() else batch


def shared(batch: Batch) -> Batch | UserError:
    """Move a batch to shared memory: in the thread that sends it an error would be dropped, and the loop would hang."""
    try:
        for tensor in batch:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        size = sum(tensor.nbytes for tensor in batch)
        return UserError(
            f"a loader process finds no room in shared memory for a batch of {size:,} bytes: {error}\n"
            "each process needs room for three: more shared memory (docker run --shm-size=1g), fewer train.workers or "
            "none, or a smaller train.batch_size help"
        )
    return batch


def encode(targets: tuple[Any, ...], task: Task) -> Tensor:
    """Targets as the data gives them -> as the loss takes them."""
    if task.kind == "classification":
        return torch.tensor(targets, dtype=torch.int64)
    if task.kind == "multilabel":
        return torch.tensor(targets, dtype=torch.float32)
    numbers = torch.tensor(targets, dtype=torch.float64).reshape(len(targets), -1)
    return ((numbers - torch.tensor(task.mean)) / torch.tensor(task.std)).float()


def decode(values: Tensor, task: Task) -> Tensor:
    """Standardised outputs or targets (N, T) -> the target's own unit; scores of classes and labels stay."""
    if task.kind != "regression":
        return values
    return values * torch.tensor(task.std, device=values.device) + torch.tensor(task.mean, device=values.device)


def probabilities(outputs: Tensor, task: Task) -> Tensor:
    """Outputs (N, K) -> what they say: probabilities of classes or of labels, or numbers in the target's own unit."""
    if task.kind == "classification":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if task.kind == "multilabel" else decode(outputs, task)


@frozen(eq=False)
class Batches:
    """A pass over a split in batches, again and again.

    Attributes:
        dataset: the split with its transform.
        loader: gives `Batch` or the `DataError` of a sample.
        sampler: whose `epoch` decides the order.
        device: where batches go.
        finish: images (N, C, H, W) on the device -> float32, normalised.
        pids: of the loader's processes, if it has any.
    """

    dataset: Prepared
    loader: DataLoader[Any]
    sampler: EpochSampler
    device: torch.device
    finish: Callable[[Tensor], Tensor] = as_is
    pids: Pids | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def samples(self) -> Samples:
        """The split itself."""
        return self.dataset.samples

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), but for the first `start`, which are not read.

        Raises:
            DataError: a sample cannot be read, or a worker died or was stopped.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        batches = patient(self.loader, self.pids, self.names_in_flight) if self.pids else self.loader
        for batch in batches:
            indices = self.sampler.in_flight.popleft()
            if isinstance(batch, UserError):
                # A new one: `batch` with its traceback would keep this frame, and with it the workers.
                raise type(batch)(f"{batch}\n{WAY_OUT}" if isinstance(batch, DataError) else str(batch))
            moved = batch.to(self.device)
            yield moved._replace(images=self.finish(moved.images), indices=torch.tensor(indices))

    def in_order(self, epoch: int, size: int | None = None) -> Iterator[Batch]:
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
        return [self.samples.name(index) for batch in self.sampler.in_flight for index in self.sampler.own(batch)]


def make_batches(
    dataset: Prepared,
    batch_size: int,
    workers: int,
    device: torch.device,
    *,
    finish: Callable[[Tensor], Tensor] = as_is,
    **sampling: Any,
) -> Batches:
    """Make the loader of a split; `dataset.seed` None means: in order, nothing random.

    Args:
        dataset: the split.
        batch_size: images in a batch.
        workers: loader processes.
        device: where batches go.
        finish: see `Batches`.
        **sampling: `weights`, `rank` and `world_size` of the `EpochSampler`.
    """
    sampler = EpochSampler(len(dataset), batch_size, dataset.seed, **sampling)
    pids = Pids.of(workers) if workers else None
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
    return Batches(dataset, loader, sampler, device, finish, pids)


def default_workers(device: torch.device) -> int:
    """Loader processes where the user named no number: on a CPU they would take cores from the network."""
    if device.type == "cpu":
        return 0
    return min(8, cores())
