"""Config and plugins become `TrainingParts`: straight code, in the order that is correct."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, fields, frozen
from torch import nn

from ftcore.data.dataset import ImageSplit
from ftcore.data.decoded_cache import make_image_cache
from ftcore.data.loader import TransformedDataset, default_workers, make_batches
from ftcore.data.targets import checked_target
from ftcore.errors import UserError, did_you_mean
from ftcore.model import freezing
from ftcore.model.build import build_network
from ftcore.types.abilities import Softened, require
from ftcore.types.data import BatchImageTransform
from ftcore.types.model import TokenSpec

from .frozen_features.cache import make_feature_cache
from .frozen_features.features import plan_precompute
from .listeners import find_listeners
from .loop import backward
from .monitoring import check_metrics_are_defined
from .oom import halve_on_oom
from .state import EvaluationParts, Objective, Optimization, TrainingData, TrainingParts, higher_is_better
from .unregistered_parameters import check_all_registered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.model.build import Network
    from ftcore.plugins.activation import Plugin
    from ftcore.plugins.calls import HookCalls
    from ftcore.types.data import Data, SampleDataset, Transforms
    from ftcore.types.distributed import Placement
    from ftcore.types.events import Observer
    from ftcore.types.task import Task
    from ftcore.types.training import Loss, ParamGroup


@frozen(eq=False)
class Assembly:
    """A run that is ready to start.

    Attributes:
        parts: what the loop needs.
        network: the network, before it was wrapped.
        groups: the optimizer's parameter groups.
        precompute_reason: why nothing of a network that is frozen before its head is computed once, if so.
    """

    parts: TrainingParts
    network: Network
    groups: tuple[ParamGroup, ...]
    precompute_reason: str = ""


def assemble(config: RunConfig, calls: HookCalls, data: Data) -> Assembly:
    """Build everything that a run needs, and start nothing.

    Raises:
        UserError: a plugin's answer is missing or wrong, or a setting has nothing to act on.
    """
    network = build_network(config, calls, data.task)
    changes = calls.batch_transforms(data.task, network.spec)
    model = network.module
    plan = calls.freeze(model, network.heads, network.backbone, data.task)
    freezing.check_plan(partial(calls.make_error, "freeze"), plan, model, network.heads)
    freezing.apply_requires_grad(model, plan, epoch=0)
    placement = calls.wrap_devices(model, network.heads, network.backbone)
    precision = calls.precision_context(placement)
    learning = freezing.ever_trainable_parameters(model, plan)
    groups = calls.param_groups(learning, model, network.heads, network.backbone)
    optimizer = calls.make_optimizer(groups)
    train, val, test = _splits(calls, data, network.transforms, placement)
    steps = -(-len(train) // config.train.accumulate)
    loss = calls.make_loss(data.task)
    if isinstance(loss.function, nn.Module):
        loss.function.to(placement.device)
    metrics = {
        name: _disable_metric_sync(metric.to(placement.device))
        for name, metric in calls.make_metrics(data.task).items()
    }
    monitor = select_monitor(config, metrics)
    check_metrics_are_defined(metrics, monitor, val.samples, data.task)
    schedule = calls.make_schedule(optimizer, config.train.epochs, steps, higher_is_better(monitor, metrics))
    regularizers = calls.make_regularizers(learning, model, network.heads)
    step = calls.make_step(model, network.heads, network.backbone, data.task, placement, precision)
    average = calls.make_average(model, placement, config.train.epochs, steps)
    observers = calls.make_observers()
    parts = TrainingParts(
        data=TrainingData(train, val, data.task, changes, test),
        placement=placement,
        precision=precision,
        plan=plan,
        heads=network.heads,
        objective=Objective(
            loss=loss,
            aux_loss_weights=network.backbone.aux_loss_weights,
            step=step,
            regularizers=regularizers,
            backward=halve_on_oom(backward) if config.train.on_oom == "halve" else backward,
        ),
        optimization=Optimization(optimizer, schedule, average),
        evaluation=EvaluationParts(metrics, monitor),
        stateful=_collect_stateful(calls, loss, observers),
        observers=observers,
        train_config=config.train,
    )
    parts = evolve(parts, listeners=find_listeners(parts.objective, changes))
    _check_parts(calls, network, parts)
    once, why_not = plan_precompute(
        parts, network, config.origin, partial(make_feature_cache, config, data, parts, network.spec)
    )
    return Assembly(evolve(parts, frozen_features=once), network, tuple(groups), why_not)


def _check_parts(calls: HookCalls, network: Network, parts: TrainingParts) -> None:
    """Refuse parts that do not go together, and plugins or options that nothing in this run reads."""
    config, changes, objective = calls.host.config, parts.data.batch_transforms, parts.objective
    _check_oom_policy(config, parts.placement)
    if changes and isinstance(network.spec, TokenSpec):
        mixing = ", ".join(plugin.name for plugin in calls.host.contributors("batch_transforms"))
        raise UserError(f"{mixing} changes images, but {config.model.name} takes texts")
    mixes = not all(isinstance(change, BatchImageTransform) for change in changes)
    if mixes and _mixed(calls, parts.data.task).hard:
        _check_soft_targets(calls, "make_loss", taken=objective.loss.soft_targets)
        _check_soft_targets(calls, "make_step", taken=objective.step.soft_targets)
    check_all_registered(calls, parts)
    _check_terms(calls, ["loss", *objective.step.terms, *(penalty.name for penalty in objective.regularizers)])
    _check_used(calls)


def _mixed(calls: HookCalls, task: Task) -> Softened:
    return require(task, Softened, " and ".join(plugin.name for plugin in calls.host.contributors("batch_transforms")))


def _splits(calls: HookCalls, data: Data, transforms: Transforms, placement: Placement) -> Any:
    """Make the loaders of all splits; only training is shuffled and augmented."""
    config = calls.host.config
    workers = default_workers(placement.device) if config.train.workers is None else config.train.workers
    ranks: Any = {"rank": placement.rank, "world_size": placement.world_size}
    splits: dict[str, Any] = {"test": None}
    origin = calls.host.origin_of("make_transforms")
    for split, images in data.splits.items():
        samples, train = images, split == "train"
        steps, seed = (transforms.train, config.train.seed) if train else (transforms.evaluate, None)
        cache = None if split == "test" else make_image_cache(config, data, split, steps)  # which is read once
        if isinstance(samples, ImageSplit):
            samples = evolve(samples, side=steps.min_decode_side)
        _check_first_target(samples, data.task, calls.makers("build_data"))
        prepared = TransformedDataset(samples, steps, data.task, seed, cache, origin, calls.makers("build_data"))
        sampling = {**ranks, "weights": data.weights if train else None}
        batch_size = config.train.batch_size if train else config.train.effective_eval_batch_size
        splits[split] = make_batches(
            prepared, batch_size, workers, placement.device, on_device_transform=transforms.on_device, **sampling
        )
    return splits["train"], splits["val"], splits["test"]


def _check_first_target(samples: SampleDataset, task: Task, origin: str) -> None:
    """Refuse a split whose targets have another form than the task's; what else is wrong is found when it is read."""
    if isinstance(samples, ImageSplit):
        target = samples.target(0)
    else:
        try:
            _, target = samples[0]
        except Exception:  # noqa: BLE001 - a picture that cannot be read, perhaps
            return
    checked_target(target, task, origin, f"0, {samples.name(0)},")


def _disable_metric_sync(metric: Any) -> Any:
    """Let a metric not add itself up over processes: each has seen the outputs of all."""
    modules: list[Any] = list(metric.modules()) if isinstance(metric, nn.Module) else []
    for module in modules:
        if hasattr(module, "distributed_available_fn"):
            module.distributed_available_fn = lambda: False
    return metric


def _check_oom_policy(config: RunConfig, placement: Placement) -> None:
    """Refuse to halve where a forward pass waits for other processes, of which one may have no memory for its own."""
    waits = any(isinstance(module, nn.SyncBatchNorm) for module in placement.model.modules())
    if config.train.on_oom == "halve" and waits:
        raise UserError(
            f"train.on_oom = 'halve' does not work with batch norm over processes ({config.origin('train.on_oom')}); "
            "use a smaller train.batch_size with a larger train.accumulate instead"
        )


def _check_soft_targets(calls: HookCalls, hook: str, *, taken: bool) -> None:
    """Refuse what cannot take the probabilities that mixed images have for targets."""
    if not taken:
        mixing, making = (", ".join(p.name for p in calls.host.contributors(h)) for h in ("batch_transforms", hook))
        raise UserError(
            f"{mixing} makes soft targets, but {hook} of {making} takes class indices only; disable one of them, "
            "or return soft_targets=True if the loss supports them"
        )


def _check_terms(calls: HookCalls, names: Sequence[str]) -> None:
    """Refuse two terms of one name, for they would be shown as one."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        makers = {p.name for hook in ("make_step", "make_regularizers") for p in calls.host.contributors(hook)}
        raise UserError(
            f"loss terms need unique names other than 'loss'; duplicated: "
            f"{', '.join(sorted(twice))} (of {', '.join(sorted(makers))})"
        )


def select_monitor(config: RunConfig, metrics: dict[str, Any]) -> str:
    """Return the name of the metric that decides which epoch is best."""
    scalars = ["loss", *(name for name, metric in metrics.items() if metric.higher_is_better is not None)]
    name = config.train.monitor
    if name is None:
        return scalars[1] if len(scalars) > 1 else "loss"
    if name not in scalars:
        origin = config.origin("train.monitor")
        raise UserError(
            f"train.monitor = {name!r} is not a metric of this run{did_you_mean(name, scalars)}; "
            f"available: {', '.join(scalars)} ({origin})"
        )
    return name


def _collect_stateful(calls: HookCalls, loss: Loss, observers: Sequence[Observer]) -> dict[str, Any]:
    """Return what has a state of its own to be saved: plugins, observers and the loss, by name.

    Raises:
        UserError: one has a `state_dict` and no `load_state_dict`, or the other way round.
    """
    owners: dict[str, Any] = {f"plugin {plugin.name}": plugin.owner for plugin in calls.host.used_plugins()}
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
            raise UserError(f"{name} has only one of state_dict and load_state_dict")
        if all(has) and not any(owner is other for other in found.values()):
            found[name] = owner
    return found


def _default(option: Any) -> Any:
    return option.default.factory() if isinstance(option.default, Factory) else option.default  # type: ignore[arg-type]


def _check_unused_options(plugin: Plugin, config: RunConfig) -> None:
    """Refuse an option that was set to something else than its default, and that no hook of its plugin has read."""
    options = fields(type(plugin.config)) if plugin.config else ()
    defaults = {option.name: _default(option) for option in options}
    given = {name for name in config.options.get(plugin.name, {}) if getattr(plugin.config, name) != defaults[name]}
    unread = sorted(given - plugin.options_read)
    if unread:
        origin = config.origin(f"plugin.{plugin.name}.{unread[0]}")
        raise UserError(
            f"{plugin.name}.{unread[0]} was set, but nothing in this run reads it ({origin}); if {plugin.name} reads "
            f"it "
            "during training, let it read its options in its hooks"
        )


def _check_used(calls: HookCalls) -> None:
    """Refuse a run in which a plugin that was named did nothing, or options were set for one that was not asked."""
    used = calls.host.used_plugins()
    for plugin in calls.host.plugins:
        if plugin in used:
            _check_unused_options(plugin, calls.host.config)
            continue
        hooks = ", ".join(sorted({impl.hook for impl in plugin.hooks}))
        values = calls.host.config.options.get(plugin.name, {})
        if not plugin.is_default:
            raise UserError(
                f"plugin {plugin} was enabled but supplies nothing in this run: it declined its hooks, {hooks}"
            )
        if values:
            origin = calls.host.config.origin(f"plugin.{plugin.name}.{next(iter(values))}")
            raise UserError(f"plugin {plugin.name!r} has options but supplies nothing in this run ({origin})")
