"""The values that hooks take and return. All are frozen; importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, frozen

from .errors import UserError
from .ranks import Ranks

if TYPE_CHECKING:
    from pathlib import Path

    import structlog
    import torch
    from torch import Tensor, nn


@frozen
class Context:
    """What a hook may use of the run around it.

    Attributes:
        folder: the run folder; it exists once training starts, not before.
        log: a structlog logger bound to the plugin and the hook; its events land in ``log.jsonl``.
        ranks: the processes of the run.
    """

    folder: Path
    log: structlog.typing.FilteringBoundLogger
    ranks: Ranks = field(factory=Ranks)


@frozen
class Table:
    """A few rows that a part wants to be shown at the start of a run, in `explain` and in reports."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@frozen
class Task:
    """What is to be learnt.

    Attributes:
        kind: ``classification`` (one class per image), ``multilabel`` (any number of labels) or ``regression``.
        names: class names, sorted, in the order of the targets 0..N-1; or names of the labels or regression targets.
        counts: images per class, or with each label, in the training split; empty for regression.
        images: in the training split.
        mean: per regression target, in its own unit, over the training split; targets are standardised with it.
        std: as `mean`; > 0.
    """

    kind: Literal["classification", "multilabel", "regression"]
    names: tuple[str, ...]
    counts: tuple[int, ...] = ()
    images: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many numbers the network gives per image."""
        return len(self.names)


class Samples(Protocol):
    """A split of the data: any map-style dataset, picklable for worker processes.

    An item is ``(image, target)``: a `PIL.Image.Image`, and an int class index, a tuple with 0 or 1 a label, or a
    float (a tuple of floats for several regression targets) in its own unit. An item that cannot be read raises
    `DataError` naming its path. `ftcore.labelled.Split` is one; what needs all targets at once (``data.on_corrupt``,
    ``data.cache``, `balanced_sampling`) asks for it.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return image and target of one sample."""
        ...

    def name(self, index: int, /) -> str:
        """Return what a person calls this sample: its path, or its place in the source."""
        ...


@frozen
class Data:
    """The answer of `build_data`.

    Attributes:
        train: samples to learn from.
        val: samples to measure on.
        task: classes or targets, taken from `train` alone.
        fingerprint: SHA-256 in hex that changes when samples are added, removed, renamed, relabelled or change size.
        tables: shown at the start of the run.
        skipped: ``(split, reason)`` of each image that cannot be read and was left out.
        weights: (N,) float64 > 0: each epoch draws N training samples with replacement, in proportion; None visits
            each once.
    """

    train: Samples
    val: Samples
    task: Task
    fingerprint: str
    tables: tuple[Table, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    weights: Any = None


def as_is(value: Any) -> Any:
    """Return what is given."""
    return value


@frozen
class Steps:
    """A transform in two steps, PIL image -> tensor (C, H, W).

    Attributes:
        prepare: PIL image -> PIL image, L or RGB, deterministic; ``data.cache`` keeps its result.
        then: that image -> tensor.
        side: pixels; a picture may be decoded at a smaller scale while its shorter side is no smaller. None: in full.
    """

    prepare: Callable[[Any], Any]
    then: Callable[[Any], Tensor]
    side: int | None = None

    def __call__(self, image: Any) -> Tensor:
        """Take both steps."""
        return self.then(self.prepare(image))


def as_steps(transform: Callable[[Any], Tensor]) -> Steps:
    """Return a transform in two steps, the first of which may do nothing."""
    return transform if isinstance(transform, Steps) else Steps(as_is, transform)


@frozen
class Transforms:
    """The answer of `make_transforms`.

    Attributes:
        train: PIL image -> tensor (C, H, W), uint8 or float32; `Steps`, or any callable. May draw from torch's, numpy's
            and Python's global generators: they are seeded from (seed, epoch, index) before each call.
        evaluate: the same, deterministic; `predict` uses it alone.
        finish: the tensors of a batch (N, C, H, W), on the network's device -> float32, normalised.
    """

    train: Steps = field(converter=as_steps)
    evaluate: Steps = field(converter=as_steps)
    finish: Callable[[Tensor], Tensor] = as_is


BatchTransform = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""Images (N, C, H, W) float32 and targets (N, K) float32 (one-hot, labels, or standardised) -> both, changed.

Draws from torch's CPU generator, which is seeded for each step.
"""


@frozen
class ImageTransform:
    """A batch transform that leaves targets alone, so that classes stay classes and any loss can take them.

    Attributes:
        function: images (N, C, H, W) float32, normalised -> images of that shape; draws as a `BatchTransform` does.
    """

    function: Callable[[Tensor], Tensor]


def _names(names: Iterable[str]) -> frozenset[str]:
    """Any collection of names -> a set of them; a text is no collection."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"a FreezePlan takes sets of names, not {names!r}")
    return frozenset(names)


def _releases(at: Mapping[int, Iterable[str]]) -> dict[int, frozenset[str]]:
    wrong = [epoch for epoch in at if type(epoch) is not int or epoch < 0]
    if wrong:
        raise UserError(f"FreezePlan.unfreeze_at: an epoch is a whole number from 0, not {wrong[0]!r}")
    return {epoch: _names(names) for epoch, names in at.items()}


@frozen
class FreezePlan:
    """The answer of `freeze`; the host applies it, no plugin touches ``requires_grad``.

    Attributes:
        frozen: names of parameters that do not learn, and of buffers that nothing may change.
        held: names of modules held in eval mode, they and all below them, so that running statistics stay.
        unfreeze_at: epoch (from 0) -> modules or parameters that start to learn there, e.g. ``{3: {"layer4"}}``.
        always: names of modules that neither learn nor leave eval mode, whatever `unfreeze_at` releases.
    """

    frozen: frozenset[str] = field(default=frozenset(), converter=_names)
    held: frozenset[str] = field(default=frozenset(), converter=_names)
    unfreeze_at: Mapping[int, frozenset[str]] = field(factory=dict, converter=_releases)
    always: frozenset[str] = field(default=frozenset(), converter=_names)


@frozen
class ParamGroup:
    """Parameters that share their optimizer settings.

    Attributes:
        name: shown by `explain`; unique.
        params: parameter name -> parameter.
        lr_scale: factor on the optimizer's learning rate; >= 0.
        decay: whether the optimizer's weight decay applies.
    """

    name: str
    params: Mapping[str, nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True


def by_samples(targets: Tensor) -> float:
    """Return the number of samples: what a plain mean is divided by."""
    return float(len(targets))


@frozen
class Loss:
    """The answer of `make_loss`.

    Attributes:
        function: (outputs (N, K) float32, targets) -> scalar, a mean. Targets are (N,) int64 for classification, else
            (N, K) float32: 0 or 1 a label, or standardised.
        weight: targets -> what that mean was divided by, a float or a scalar tensor. Means over several
            batches (accumulation, ranks, an epoch) are combined with it. Default: the number of samples.
        tables: shown at the start of the run.
        soft_targets: for classification, whether both functions also take probabilities (N, K) float32.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor | float] = by_samples
    tables: tuple[Table, ...] = ()
    soft_targets: bool = False


@frozen
class Recipe:
    """The answer of a plugin's `recipe`: other plugins' choices. What the user sets himself beats it.

    Attributes:
        plugins: named as if by the user, behind his own; as in ``--plugin``.
        settings: as in ``--set``: ``train.epochs`` or ``sgd.lr`` -> value.
    """

    plugins: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(factory=dict)


@frozen(eq=False)
class Pass:
    """One forward pass in training, as the terms of a `Step` see it.

    Attributes:
        images: (N, C, H, W) float32, normalised, as the network saw them.
        targets: as the loss takes them.
        outputs: (N, K) float32, of the network's first output.
        forward: such images -> such outputs, in another pass; of this network, with its precision and devices.
    """

    images: Tensor
    targets: Tensor
    outputs: Tensor
    forward: Callable[[Tensor], Tensor]


def _once(gradient: Callable[[], Any]) -> Any:
    return gradient()


@frozen
class Step:
    """The answer of `make_step`: what an optimizer step does beside the loss.

    Attributes:
        terms: name -> what is added to the loss, a scalar mean over the samples of a pass; shown beside the loss.
        gradient: called once a step with a function that adds the gradient of the whole window to the parameters (there
            is none before) and returns its terms; returns what that returns. Sharpness-aware minimisation calls it
            twice.
        soft_targets: for classification, whether every term also takes targets (N, K) float32.
    """

    terms: Mapping[str, Callable[[Pass], Tensor]] = field(factory=dict)
    gradient: Callable[[Callable[[], Any]], Any] = _once
    soft_targets: bool = True


@frozen
class Regularizer:
    """A penalty on the parameters, added once per optimizer step.

    Attributes:
        name: shown beside the loss; unique.
        penalty: () -> scalar float32, differentiable.
    """

    name: str
    penalty: Callable[[], Tensor]


@frozen(eq=False)
class Average:
    """The answer of `make_average`: a second network that follows the first; it is evaluated and saved in its place.

    Attributes:
        name: for people: ``ema``.
        network: on the network's device, with the same names of parameters and buffers.
        update: (the network that learns, number of updates before this one) -> None.
        per: whether it is updated after each optimizer step or after each epoch.
        start: first epoch, from 0, that updates it; before it is done the network itself is evaluated and saved.
        renew: whether the running statistics of norm layers that learn are measured anew, in one pass over the training
            images, before each evaluation.
    """

    name: str
    network: nn.Module
    update: Callable[[nn.Module, int], None]
    per: Literal["step", "epoch"] = "step"
    start: int = 0
    renew: bool = False


@frozen
class Spread:
    """How the parameters of a network are spread over processes, as `torch.distributed.tensor.DTensor` by rows.

    Attributes:
        checkpoints: ``full``, the files that one process would write; or ``sharded``, where each writes what it has.
        weights: `ftcore.freezing.digest_of_all` of the network before.
    """

    checkpoints: Literal["full", "sharded"]
    weights: str


@frozen
class Placement:
    """The answer of `wrap_devices`: where the network runs.

    Attributes:
        device: where batches go.
        model: the network, moved and perhaps wrapped.
        unwrap: wrapped network -> the network as it was given, whose parameter names are saved.
        rank: number of this process, from 0.
        world_size: number of processes.
        no_sync: entered for backward passes that need no gradient exchange.
        reduce: tensor or number -> its sum over all processes.
        gather: tensor, of the same shape and dtype in all processes -> (world_size, ...), those of all.
        align: gives every process the buffers that the network, or an average of it, has in the first.
        around: another module with the same parameters, e.g. what of the network still learns -> the placement of that,
            in the same way; None where there is none but that of the network.
        lone: why a run may not go on in one process; empty if it may.
        spread: how the parameters are spread over the processes; None where each has all of them.
        note: one line for the user, e.g. a warning that the wrapper deserves.
    """

    device: torch.device
    model: nn.Module
    unwrap: Callable[[nn.Module], nn.Module]
    rank: int = 0
    world_size: int = 1
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    reduce: Callable[[Any], Any] = lambda amount: amount
    gather: Callable[[Tensor], Tensor] = lambda rows: rows[None]
    align: Callable[[nn.Module], None] = lambda _: None
    around: Callable[[nn.Module], Placement] | None = None
    lone: str = ""
    spread: Spread | None = None
    note: str = ""


@frozen
class Precision:
    """The answer of `precision_context`.

    Attributes:
        name: ``fp32``, ``bf16``, ...
        autocast: makes the context that each forward pass and loss runs in.
        scaler: always present; ``enabled=False`` where no scaling is needed.
    """

    name: str
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler


@frozen
class Schedule:
    """The answer of `make_schedule`.

    Attributes:
        scheduler: any scheduler of `torch.optim.lr_scheduler`.
        per: whether it steps after each optimizer step, after each epoch, or after each epoch with the monitored metric
            (`ReduceLROnPlateau`).
        warmup: a chainable scheduler (`LinearLR`) that steps after each optimizer step beside one that does not; None
            for none.
    """

    scheduler: torch.optim.lr_scheduler.LRScheduler
    per: Literal["step", "epoch", "metric"]
    warmup: torch.optim.lr_scheduler.LRScheduler | None = None


Metrics = Mapping[str, Any]
"""Metric name -> a float, or nested lists of numbers (a confusion matrix)."""
