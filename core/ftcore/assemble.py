"""Config and plugins become `Parts`: straight code, in the order that is correct."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, fields, frozen
from torch import nn

from . import freezing
from .backbone import Backbone, Tokens
from .cores import keep_freed, set_threads
from .errors import UserError, nearest
from .featurecache import make_feature_cache
from .heads import candidates, check_backbone, check_outputs, choose_head, derive_backbone, swap
from .labelled import Split
from .loading import Prepared, default_workers, key, make_batches, seed_everything
from .parts import ImageTransform
from .pixelcache import make_cache
from .precompute import precomputed
from .stages import derive_stages
from .state import Parts, goes_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .backbone import InputSpec
    from .calls import Calls
    from .config import ModelConfig, RunConfig
    from .events import Observer
    from .parts import Data, Loss, ParamGroup, Placement, Task, Transforms
    from .plugins import Plugin


@frozen(eq=False)
class Network:
    """A network with its new head and the transforms that feed it.

    Attributes:
        backbone: the answer of `build_model`, its module with the new heads in place.
        transforms: PIL image -> tensor.
    """

    backbone: Backbone
    transforms: Transforms

    @property
    def module(self) -> nn.Module:
        """Images (N, C, H, W) float32, normalised -> outputs (N, task.outputs)."""
        return self.backbone.module

    @property
    def heads(self) -> tuple[str, ...]:
        """Paths of the new heads."""
        return tuple(slot.path for slot in self.backbone.heads)

    @property
    def spec(self) -> InputSpec:
        """What the images must look like."""
        return self.backbone.input


@frozen(eq=False)
class Assembly:
    """A run that is ready to start.

    Attributes:
        parts: what the loop needs.
        network: the network, before it was wrapped.
        groups: the optimizer's parameter groups.
        not_once: why nothing of a network that is frozen before its head is computed once, if so.
    """

    parts: Parts
    network: Network
    groups: tuple[ParamGroup, ...]
    not_once: str = ""


def assemble(config: RunConfig, calls: Calls, data: Data) -> Assembly:
    """Build everything that a run needs, and start nothing.

    Raises:
        UserError: a plugin's answer is missing or wrong, or a setting has nothing to act on.
    """
    network = build_network(config, calls, data.task)
    changes = calls.batch_transforms(data.task, network.spec)
    model = network.module
    plan = calls.freeze(model, network.heads, network.backbone, data.task)
    freezing.apply(model, plan, epoch=0)
    placement = calls.wrap_devices(model, network.heads, network.backbone)
    _check_halving(config, placement)
    precision = calls.precision_context(placement)
    learning = freezing.ever_learning(model, plan)
    groups = calls.param_groups(learning, model, network.heads, network.backbone)
    optimizer = calls.make_optimizer(groups)
    train, val = _splits(config, data, network.transforms, placement)
    steps = -(-len(train) // config.train.accumulate)
    loss = calls.make_loss(data.task)
    if isinstance(loss.function, nn.Module):
        loss.function.to(placement.device)
    metrics = {name: _alone(metric.to(placement.device)) for name, metric in calls.make_metrics(data.task).items()}
    monitor = monitored(config, metrics)
    schedule = calls.make_schedule(optimizer, config.train.epochs, steps, goes_up(monitor, metrics))
    regularizers = calls.make_regularizers(learning, model, network.heads)
    step = calls.make_step(model, network.heads, network.backbone, data.task, placement, precision)
    if changes and isinstance(network.spec, Tokens):
        mixing = ", ".join(plugin.name for plugin in calls.host.makers("batch_transforms"))
        raise UserError(f"{mixing} changes images, and {config.model.name} reads texts")
    if data.task.kind == "classification" and not all(isinstance(change, ImageTransform) for change in changes):
        _check_soft(calls, "make_loss", taken=loss.soft_targets)
        _check_soft(calls, "make_step", taken=step.soft_targets)
    _check_terms(calls, ["loss", *step.terms, *(regularizer.name for regularizer in regularizers)])
    average = calls.make_average(model, placement, config.train.epochs, steps)
    observers = calls.make_observers()
    parts = Parts(
        train=train,
        val=val,
        task=data.task,
        plan=plan,
        placement=placement,
        precision=precision,
        optimizer=optimizer,
        schedule=schedule,
        loss=loss,
        batch_transforms=changes,
        aux_weights=network.backbone.aux_weights,
        step=step,
        regularizers=regularizers,
        average=average,
        heads=network.heads,
        metrics=metrics,
        monitor=monitor,
        stateful=_stateful(calls, loss, observers),
        observers=observers,
        settings=config.train,
    )
    _check_used(calls)
    once, why_not = precomputed(
        parts, network, config.origin, partial(make_feature_cache, config, data, parts, network.spec)
    )
    return Assembly(evolve(parts, precomputed=once), network, tuple(groups), why_not)


def build_network(config: RunConfig, calls: Calls, task: Task, spec: InputSpec | None = None) -> Network:
    """Build the pre-trained network, and put the new head in its place.

    Args:
        config: what was asked for.
        calls: the hooks.
        task: what is learnt.
        spec: what the images look like, where that is settled; by default the weights' own, changed by ``[model]``.
    """
    seed_everything(key("model", config.train.seed))
    set_threads(config.train.threads)
    keep_freed()
    answer = calls.build_model(config.model.name, config.model.weights)
    backbone = answer if isinstance(answer, Backbone) else derive_backbone(answer, config.model.head)
    backbone = choose_head(backbone, config.model.head)
    backbone = evolve(backbone, input=spec or _input(backbone.input, config.model))
    check_backbone(backbone)
    if not (backbone.stages and backbone.layers):
        stages, layers = derive_stages(backbone.module, [slot.path for slot in backbone.heads])
        backbone = evolve(backbone, stages=backbone.stages or stages, layers=backbone.layers or layers)
    transforms = calls.make_transforms(backbone.input, task)
    seed_everything(key("head", config.train.seed))
    shown = candidates(backbone.module)
    module = swap(backbone, lambda slot: calls.build_head(slot, backbone, task))
    check_outputs(evolve(backbone, module=module), task.outputs, shown)
    return Network(evolve(backbone, module=module), transforms)


def _input(spec: InputSpec, model: ModelConfig) -> InputSpec:
    """Let the ``[model]`` section beat what came with the weights."""
    if isinstance(spec, Tokens):
        given = [key for key in ("image_size", "channels", "mean", "std") if getattr(model, key) is not None]
        if given:
            raise UserError(f"model.{given[0]} is for images, and {model.name} reads texts")
        return spec
    channels = model.channels or spec.channels
    size = (model.image_size, model.image_size) if model.image_size else spec.size
    values = {"mean": model.mean, "std": model.std}
    changes: dict[str, Any] = {
        name: (value,) * channels if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
    changed = evolve(spec, size=size, channels=channels, **changes)
    for name in ("mean", "std"):
        if len(getattr(changed, name)) != channels:
            raise UserError(
                f"model.{name} has {len(getattr(changed, name))} values for {channels} channels: "
                f"{getattr(changed, name)}; give one number, or one for each channel"
            )
    if min(changed.std) <= 0:
        raise UserError(f"model.std must be > 0, got {changed.std}")
    return changed


def _splits(config: RunConfig, data: Data, transforms: Transforms, placement: Placement) -> Any:
    """Make the loaders of both splits; only training is shuffled and augmented."""
    workers = default_workers(placement.device) if config.train.workers is None else config.train.workers
    shares: Any = {"rank": placement.rank, "world_size": placement.world_size}
    splits = []
    for split, steps, seed in (("train", transforms.train, config.train.seed), ("val", transforms.evaluate, None)):
        samples, cache = getattr(data, split), make_cache(config, data, split, steps)
        if isinstance(samples, Split):
            samples = evolve(samples, side=steps.side)
        prepared = Prepared(samples, steps, data.task, seed, cache)
        sampling = {**shares, "weights": data.weights if split == "train" else None}
        batch_size = config.train.batch_size if split == "train" else config.train.evaluated
        splits.append(
            make_batches(prepared, batch_size, workers, placement.device, finish=transforms.finish, **sampling)
        )
    return tuple(splits)


def _alone(metric: Any) -> Any:
    """Let a metric not add itself up over processes: each has seen the outputs of all."""
    modules: list[Any] = list(metric.modules()) if isinstance(metric, nn.Module) else []
    for module in modules:
        if hasattr(module, "distributed_available_fn"):
            module.distributed_available_fn = lambda: False
    return metric


def _check_halving(config: RunConfig, placement: Placement) -> None:
    """Refuse to halve where a forward pass waits for other processes, of which one may have no memory for its own."""
    waits = any(isinstance(module, nn.SyncBatchNorm) for module in placement.model.modules())
    if config.train.on_oom == "halve" and waits:
        raise UserError(
            f"train.on_oom = 'halve' does not work with batch norm over processes ({config.origin('train.on_oom')}); "
            "a smaller train.batch_size with a larger train.accumulate does what it does"
        )


def _check_soft(calls: Calls, hook: str, *, taken: bool) -> None:
    """Refuse what cannot take the probabilities that mixed images have for targets."""
    if not taken:
        mixing, making = (", ".join(p.name for p in calls.host.makers(h)) for h in ("batch_transforms", hook))
        raise UserError(
            f"{mixing} makes soft targets, but {hook} of {making} takes class indices only; leave one out, "
            "or let it return soft_targets=True if it can take them"
        )


def _check_terms(calls: Calls, names: Sequence[str]) -> None:
    """Refuse two terms of one name, for they would be shown as one."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        makers = {p.name for hook in ("make_step", "make_regularizers") for p in calls.host.makers(hook)}
        raise UserError(
            f"what is added to the loss needs names that differ, from each other and from 'loss'; twice: "
            f"{', '.join(sorted(twice))} (of {', '.join(sorted(makers))})"
        )


def monitored(config: RunConfig, metrics: dict[str, Any]) -> str:
    """Return the name of the metric that decides which epoch is best."""
    scalars = ["loss", *(name for name, metric in metrics.items() if metric.higher_is_better is not None)]
    name = config.train.monitor
    if name is None:
        return scalars[1] if len(scalars) > 1 else "loss"
    if name not in scalars:
        origin = config.origin("train.monitor")
        raise UserError(
            f"train.monitor = {name!r} is no metric of this run{nearest(name, scalars)}; "
            f"there are {', '.join(scalars)} ({origin})"
        )
    return name


def _stateful(calls: Calls, loss: Loss, observers: Sequence[Observer]) -> dict[str, Any]:
    """Return what has a state of its own to be saved: plugins, observers and the loss, by name.

    Raises:
        UserError: one has a `state_dict` and no `load_state_dict`, or the other way round.
    """
    owners: dict[str, Any] = {f"plugin {plugin.name}": plugin.owner for plugin in calls.host.used()}
    times: Counter[str] = Counter()
    for observer in observers:
        owner = getattr(observer, "__self__", observer)
        name = f"observer {type(owner).__name__}"
        times[name] += 1
        owners[name if times[name] == 1 else f"{name} {times[name]}"] = owner
    owners["loss"] = loss.function
    found: dict[str, Any] = {}
    for name, owner in owners.items():
        has = [callable(getattr(owner, method, None)) for method in ("state_dict", "load_state_dict")]
        if any(has) and not all(has):
            raise UserError(f"{name} has one of state_dict and load_state_dict, and not the other")
        if all(has) and not any(owner is other for other in found.values()):
            found[name] = owner
    return found


def _default(option: Any) -> Any:
    return option.default.factory() if isinstance(option.default, Factory) else option.default  # type: ignore[arg-type]


def _check_read(plugin: Plugin, config: RunConfig) -> None:
    """Refuse an option that was set to something else than its default, and that no hook of its plugin has read."""
    options = fields(type(plugin.config)) if plugin.config else ()
    defaults = {option.name: _default(option) for option in options}
    given = {name for name in config.options.get(plugin.name, {}) if getattr(plugin.config, name) != defaults[name]}
    unread = sorted(given - plugin.read)
    if unread:
        origin = config.origin(f"plugin.{plugin.name}.{unread[0]}")
        raise UserError(
            f"{plugin.name}.{unread[0]} was set, but nothing in this run reads it ({origin}); if {plugin.name} would "
            "read it later, while it trains, let it read its options in its hooks"
        )


def _check_used(calls: Calls) -> None:
    """Refuse a run in which a plugin that was named did nothing, or options were set for one that was not asked."""
    used = calls.host.used()
    for plugin in calls.host.plugins:
        if plugin in used:
            _check_read(plugin, calls.host.config)
            continue
        hooks = ", ".join(sorted({impl.hook for impl in plugin.hooks}))
        values = calls.host.config.options.get(plugin.name, {})
        if not plugin.is_default:
            raise UserError(
                f"plugin {plugin} was named but answers nothing in this run; of its hooks, {hooks}, none fits"
            )
        if values:
            origin = calls.host.config.origin(f"plugin.{plugin.name}.{next(iter(values))}")
            raise UserError(f"plugin {plugin.name!r} has options but answers nothing in this run ({origin})")
