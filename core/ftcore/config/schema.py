"""The sections of a configuration, and where each value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from .validators import check_count, check_few, check_not_negative, check_save_interval, check_sides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@frozen
class ModelConfig:
    """The ``[model]`` section.

    Attributes:
        name: ``provider/network``, e.g. ``timm/resnet50``.
        weights: ``default``, ``none``, an entry that the provider names, or a .safetensors or .pth file.
        head: path of the module to replace, where ftcore cannot find it by itself.
        image_size: pixels, one number for height and width, or ``[height, width]``; by default the weights' own.
        crop: how an image of other proportions comes to that size: ``center`` cuts off what sticks out, ``squash``
            distorts the whole image, ``pad`` adds margins to it; by default as with the weights.
        channels: colour channels of the input; by default the network's own.
        mean: per channel or one for all, of pixel values in [0, 1]; by default the weights' own.
        std: as `mean`.
    """

    name: str | None = None
    weights: str = "default"
    head: str | None = None
    image_size: int | tuple[int, int] | None = field(default=None, validator=validators.optional(check_sides))
    crop: Literal["center", "squash", "pad"] | None = None
    channels: int | None = field(default=None, validator=validators.optional(check_few))
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, where it was set."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


@frozen
class DataConfig:
    """The ``[data]`` section.

    Attributes:
        source: a folder, a table, or ``provider:what``.
        task: what is learnt, e.g. classification, multilabel or regression; by default what the source cannot but
            mean.
        val_fraction: share of the images that is held out where the source has no split of its own, in (0, 1); by
            default 0.2.
        split_seed: which images are held out, by default 0; the same for all runs that are to be compared.
        folds: cut the images into so many parts instead, at least 2, and hold one of them out.
        fold: which of the `folds` is held out, from 0, the default.
        on_corrupt: at an image that cannot be read, ``fail``; or ``skip``: decode all before the start, leave out those
            that cannot be, and list them in the run folder.
        cache: keep decoded images at the size of training, in ``ram`` or on ``disk``; there, what is computed once of
            each image is kept, too. Changes no result.
        cache_gb: most that the cache holds, in GB of 10^9 bytes, by default 4; what is beyond is decoded each time.
    """

    source: str | None = None
    task: str | None = None
    val_fraction: float | None = field(
        default=None, validator=validators.optional([validators.gt(0.0), validators.lt(1.0)])
    )
    split_seed: int | None = field(default=None, validator=validators.optional(check_not_negative))
    folds: int | None = field(default=None, validator=validators.optional(validators.ge(2)))
    fold: int | None = field(default=None, validator=validators.optional(check_not_negative))
    on_corrupt: Literal["fail", "skip"] = "fail"
    cache: Literal["ram", "disk"] | None = None
    cache_gb: float | None = field(default=None, validator=validators.optional(check_count))


@frozen
class TrainConfig:
    """The ``[train]`` section.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per forward pass.
        eval_batch_size: likewise, where nothing is learnt: in evaluation, and where what is frozen is computed once; by
            default the same. More may be faster on a GPU, and fit, for nothing is kept for a gradient.
        accumulate: forward passes per optimizer step.
        clip_norm: largest norm of the whole gradient, 0 disables.
        clip_value: largest absolute value of each of its elements, 0 disables.
        clip_adaptive: largest norm of the gradient of each unit over that of its weights, outside the head, e.g. 0.01
            (Brock et al. 2021, arXiv:2102.06171, eq. 3); 0 disables. One of the three at most.
        on_nonfinite: at a loss or gradient that is not finite, ``stop`` before the update; or ``skip`` the update.
        on_oom: where memory does not suffice for a step, ``stop``; or ``halve`` the images that go through the network
            at a time, again and again, in all processes, with the same gradient: batch norm alone sees fewer at a time.
        max_nonfinite: updates that ``skip`` may leave out in a run before it stops after all; by default 10.
        seed: of the head's initial values, the sample order, augmentation and dropout.
        precompute: where everything before the head is frozen and images are not augmented, what the head sees of each
            image is computed once, and epochs train the head alone: ``auto``, where that is possible; ``always``, where
            it is not is an error; or ``never``. Sums may round differently.
        views: of augmented images, so many of each are computed once; epoch e (from 0) learns from view e modulo that.
        workers: loader processes; by default none on a CPU, else up to 8. Never changes a result.
        threads: of the processor, for the network's arithmetic; by default torch's choice, and no more than the cores
            that this process may use (affinity, cgroup). Part of the result: sums of other lengths round differently.
        log_every: optimizer steps between two loss values for observers.
        metrics: more validation metrics, e.g. ``auroc``, ``top5``, ``recall[CLASS]``, beside the default ones.
        monitor: name of the validation metric that decides which epoch is best; by default the first.
        patience: epochs in a row without a better monitored metric after which the run stops; 0 disables.
        min_delta: by how much the metric must be better to count for `patience`.
    """

    epochs: int = field(default=10, validator=check_count)
    batch_size: int = field(default=32, validator=check_count)
    eval_batch_size: int | None = field(default=None, validator=validators.optional(check_count))
    accumulate: int = field(default=1, validator=check_count)
    clip_norm: float = field(default=0.0, validator=check_not_negative)
    clip_value: float = field(default=0.0, validator=check_not_negative)
    clip_adaptive: float = field(default=0.0, validator=check_not_negative)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    on_oom: Literal["stop", "halve"] = "stop"
    max_nonfinite: int | None = field(default=None, validator=validators.optional(check_count))
    seed: int = field(default=0, validator=check_not_negative)
    precompute: Literal["auto", "always", "never"] = "auto"
    views: int | None = field(default=None, validator=validators.optional(check_count))
    workers: int | None = field(default=None, validator=validators.optional([check_not_negative, validators.le(1024)]))
    threads: int | None = field(default=None, validator=validators.optional(check_few))
    log_every: int = field(default=10, validator=check_count)
    metrics: tuple[str, ...] = ()
    monitor: str | None = None
    patience: int = field(default=0, validator=check_not_negative)
    min_delta: float | None = field(default=None, validator=validators.optional(check_not_negative))

    @property
    def effective_eval_batch_size(self) -> int:
        """Images per forward pass where nothing is learnt."""
        return self.eval_batch_size or self.batch_size

    def __attrs_post_init__(self) -> None:
        clips = [name for name in ("clip_norm", "clip_value", "clip_adaptive") if getattr(self, name)]
        if len(clips) > 1:
            raise ValueError(f"one way to clip at most, not {' and '.join(clips)}")
        if self.max_nonfinite is not None and self.on_nonfinite != "skip":
            raise ValueError('max_nonfinite needs on_nonfinite = "skip"')
        if self.views is not None and self.precompute == "never":
            raise ValueError('views are computed once, which precompute = "never" forbids')
        if self.min_delta is not None and not self.patience:
            raise ValueError("min_delta needs patience > 0")


@frozen
class RunSection:
    """The ``[run]`` section.

    Attributes:
        folder: the run folder, which must not exist yet; by default a new one under ``runs/``.
        keep: newest checkpoints that are kept, beside the best.
        save_every: how often a checkpoint is written: ``N steps`` (of the optimizer), ``N minutes`` or ``N epochs``; at
            the end of the run in any case.
        async_save: whether a copy of the state, in main memory, is written while the run goes on; by default it waits.
    """

    folder: str | None = None
    keep: int = field(default=2, validator=check_count)
    save_every: str = field(default="1 epoch", validator=check_save_interval)
    async_save: bool = False


@frozen
class ObserversConfig:
    """The ``[observers]`` section.

    Attributes:
        on_error: what an exception of an observer costs: ``warn``, once, with its plugin, and the run goes on without
            what that observer was to do; or ``stop`` the run, saved first.
    """

    on_error: Literal["warn", "stop"] = "warn"


SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "run": RunSection,
    "observers": ObserversConfig,
}

LIST_KEYS = ("plugins", "without")

FLAGS = {
    "model": "model.name",
    "data": "data.source",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "image_size": "model.image_size",
    "weights": "model.weights",
    "seed": "train.seed",
    "workers": "train.workers",
    "out": "run.folder",
}
"""Flags of the command line with an option of their own -> the option."""

HOOK_FLAGS = {"lr": "make_optimizer", "device": "wrap_devices"}
"""Flags that are an option of that name -> the hook whose answer's plugin has it."""

RESERVED = frozenset({*SECTIONS, "hooks", "plugin", *LIST_KEYS})
"""Words that `--set` takes for sections of the core, so no plugin may have them as its name."""


@frozen
class PluginRef:
    """A plugin as the user named it.

    Attributes:
        text: e.g. ``weighted_ce`` or ``./hooks.py``.
        origin: e.g. ``run.toml plugins[0]`` or ``--plugin``.
        base: folder that a relative file is relative to.
        recipe: name of the recipe that names it, if none of the user's words did.
        trusted: whether naming it is permission to load its code, as the user's word is; a run folder's is not, see
            `ftcore.plugins.trust`.
        distribution: the only one in which an entry point is looked for; by default any.
    """

    text: str
    origin: str
    base: Path
    recipe: str = ""
    trusted: bool = True
    distribution: str | None = None


@frozen
class HookOption:
    """An option of whichever plugin answers a hook, as `--lr` is one of the run's optimizer.

    Attributes:
        hook: e.g. ``make_optimizer``.
        option: e.g. ``lr``.
        value: as it was typed.
        origin: e.g. ``--lr 0.01``.
    """

    hook: str
    option: str
    value: Any
    origin: str


@frozen
class RunConfig:
    """What was asked for.

    Attributes:
        model: see `ModelConfig`.
        data: see `DataConfig`.
        train: see `TrainConfig`.
        run: see `RunSection`.
        observers: see `ObserversConfig`.
        plugins: in the order in which they were named.
        without: names of default plugins that were switched off.
        hooks: hook -> names of plugins, in the order in which they are asked.
        options: plugin name -> option -> value as given.
        hook_options: options of whichever plugins answer some hooks; among `options` once the plugins are known.
        origins: ``section.key`` or ``plugin.name.key`` -> where the value was set; absent means default.
        architecture: see `ftcore.Backbone`; of a model that is read from a run, else empty.
        class_names: of a run that is read back, its classes or labels in the order of its outputs, empty for a run that
            did not write them down; None for a new run.
        measuring: whether nothing is learnt from the data, so that all of it counts as it is, and nothing is held out.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    run: RunSection = RunSection()
    observers: ObserversConfig = ObserversConfig()
    plugins: tuple[PluginRef, ...] = ()
    without: tuple[str, ...] = ()
    hooks: Mapping[str, tuple[str, ...]] = field(factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    hook_options: tuple[HookOption, ...] = ()
    origins: Mapping[str, str] = field(factory=dict)
    architecture: Mapping[str, Any] = field(factory=dict)
    class_names: tuple[str, ...] | None = None
    measuring: bool = False

    def origin(self, key: str) -> str:
        """Say where a value was set, for messages and the written config."""
        return self.origins.get(key, "default")
