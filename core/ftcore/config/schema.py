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
        weights: ``default``, ``none``, an entry of the provider, or a .safetensors or .pth file.
        head: path of the module to replace, if ftcore cannot find it automatically.
        image_size: pixels, one number for height and width, or ``[height, width]``; by default that of the weights.
        crop: how an image of another aspect ratio is fitted to that size: ``center`` crops, ``squash``
            distorts, ``pad`` adds margins; by default as for the weights.
        channels: number of input channels; by default that of the network.
        mean: normalisation mean of pixel values in [0, 1], per channel or one for all; by default that of the weights.
        std: normalisation standard deviation, like `mean`.
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
        task: ``classification``, ``multilabel``, ``regression``, or a task of a plugin; by default inferred if
            unambiguous.
        val_fraction: fraction of the images to hold out if the source has no validation split, in (0, 1); by
            default 0.2.
        split_seed: seed of the hold-out split, by default 0; use the same for all runs to compare.
        folds: number of cross-validation folds, at least 2; one of them is held out instead of `val_fraction`.
        fold: index of the fold to hold out, from 0 (the default).
        on_corrupt: if an image cannot be read: ``fail``; or ``skip``: decode all images before training, skip those
            that cannot be read, and list them in the run folder.
        cache: cache decoded images at training size, in ``ram`` or on ``disk``; ``disk`` also keeps cached
            features. Does not affect results.
        cache_gb: maximum cache size in GB (10^9 bytes), by default 4; further images are decoded each time.
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
        eval_batch_size: images per forward pass in evaluation and when features are cached; by
            default `batch_size`. Without gradients, a larger batch fits and may be faster on a GPU.
        accumulate: forward passes per optimizer step.
        clip_norm: maximum norm of the gradient over all parameters; 0 disables.
        clip_value: maximum absolute value of each gradient element; 0 disables.
        clip_adaptive: maximum ratio of gradient norm to weight norm per unit, except in the head, e.g. 0.01
            (Brock et al. 2021, arXiv:2102.06171, eq. 3); 0 disables. Set at most one of the three.
        on_nonfinite: if the loss or gradient is not finite: ``stop`` before the update, or ``skip`` the update.
        on_oom: if a step runs out of memory: ``stop``; or ``halve`` the images per forward pass until they fit, in
            all processes, with the same gradient (only batch norm sees fewer images at a time).
        max_nonfinite: maximum number of skipped updates before the run stops; by default 10.
        seed: random seed of head initialisation, sample order, augmentation and dropout.
        precompute: feature caching, if the backbone is frozen and images are not augmented: compute the features of
            each image once and train only the head on them. ``auto``: if possible; ``always``: an error if not
            possible; ``never``. The last bits of the result may differ.
        views: number of augmented views of each image to cache; epoch e (from 0) uses view e modulo `views`.
        workers: number of loader processes; by default none on a CPU, else up to 8. Does not affect results.
        threads: number of CPU threads for the network; by default torch's choice, at most the CPU cores available to
            this process (affinity, cgroup). Affects the last bits of results.
        log_every: number of optimizer steps between logged losses.
        metrics: more validation metrics, e.g. ``auroc``, ``top5``, ``recall[CLASS]``, in addition to the default ones.
        monitor: validation metric that selects the best epoch; by default the first.
        patience: early stopping: epochs without an improvement of the monitored metric before the run stops; 0
            disables.
        min_delta: minimum change of the metric that counts as an improvement for `patience`.
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
        """Images per forward pass in evaluation."""
        return self.eval_batch_size or self.batch_size

    def __attrs_post_init__(self) -> None:
        clips = [name for name in ("clip_norm", "clip_value", "clip_adaptive") if getattr(self, name)]
        if len(clips) > 1:
            raise ValueError(f"set at most one of clip_norm, clip_value and clip_adaptive, not {' and '.join(clips)}")
        if self.max_nonfinite is not None and self.on_nonfinite != "skip":
            raise ValueError('max_nonfinite needs on_nonfinite = "skip"')
        if self.views is not None and self.precompute == "never":
            raise ValueError('views needs feature caching, which precompute = "never" turns off')
        if self.min_delta is not None and not self.patience:
            raise ValueError("min_delta needs patience > 0")


@frozen
class RunSection:
    """The ``[run]`` section.

    Attributes:
        folder: run folder, which must not exist; by default a new one under ``runs/``.
        keep: number of newest checkpoints to keep, in addition to the best.
        save_every: how often to write a checkpoint: every ``N steps`` (of the optimizer), ``N minutes`` or ``N
            epochs``, and always at the end of the run.
        async_save: copy the state to main memory and write it in a thread while training continues; by default
            training waits.
    """

    folder: str | None = None
    keep: int = field(default=2, validator=check_count)
    save_every: str = field(default="1 epoch", validator=check_save_interval)
    async_save: bool = False


@frozen
class ObserversConfig:
    """The ``[observers]`` section.

    Attributes:
        on_error: if an observer raises an exception: ``warn`` once, naming its plugin, and continue the run without
            that observer's work; or save a checkpoint and ``stop``.
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
    """A plugin as the user wrote it.

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
    """An option of whichever plugin implements a hook, as `--lr` is one of the run's optimizer.

    Attributes:
        hook: e.g. ``make_optimizer``.
        option: e.g. ``lr``.
        value: as typed by the user.
        origin: e.g. ``--lr 0.01``.
    """

    hook: str
    option: str
    value: Any
    origin: str


@frozen
class RunConfig:
    """A resolved run configuration.

    Attributes:
        model: see `ModelConfig`.
        data: see `DataConfig`.
        train: see `TrainConfig`.
        run: see `RunSection`.
        observers: see `ObserversConfig`.
        plugins: enabled plugins, in order.
        without: names of disabled default plugins.
        hooks: hook -> names of plugins, in the order in which they are called.
        options: plugin name -> option -> value as given.
        hook_options: options of whichever plugins answer some hooks; among `options` once the plugins are known.
        origins: ``section.key`` or ``plugin.name.key`` -> where the value was set; absent means default.
        architecture: see `ftcore.Backbone`; of a model that is read from a run, else empty.
        class_names: of a run that is read back, its classes or labels in the order of its outputs, empty for a run that
            did not write them down; None for a new run.
        measuring: whether the data is only evaluated: all of it is used and nothing is held out.
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
        """Return where a value was set, for messages and the written config."""
        return self.origins.get(key, "default")
