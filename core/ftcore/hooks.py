"""The hook specs. Each docstring is the hook's contract.

An implementation takes any subset of a spec's arguments, by name, without defaults. Every hook can also take
`config` (the whole `RunConfig`) and `ctx` (a `Context`). Return None to decline. If a hook uses one result, two
plugins that both return one are an error unless ``[hooks]`` sets their order. ``hookimpl(wrapper=True)`` wraps a
hook: it yields once, receives the result (the list of results, if all are used) and returns it, changed or not.

Hooks run once each, in the order of this file, before the first step; the loop calls none. `make_task` is asked by
`build_data`, and again when a model is read. `list_models` is called by
`ftcore models`, and for suggestions if no `build_model` knows a name.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from .config.schema import RunConfig
    from .types.context import Context
    from .types.data import BatchImageTransform, BatchTransform, Data, Transforms
    from .types.distributed import Placement
    from .types.events import Observer
    from .types.model import Backbone, FreezePlan, HeadSlot, InputSpec, ModelInfo
    from .types.task import Task
    from .types.training import Loss, ParamGroup, Precision, Regularizer, Schedule, Step, WeightAverage


HOOK_API = (2, 0)
"""Version of the specs below: a new hook or argument increases the second number, other changes the first."""

PLUGGY_PROJECT = "ftcore"

hookimpl = pluggy.HookimplMarker(PLUGGY_PROJECT)

_hookspec = pluggy.HookspecMarker(PLUGGY_PROJECT)

COLLECT_HOOKS = frozenset({"batch_transforms", "list_models", "make_metrics", "make_observers", "make_regularizers"})
"""Hooks whose results are all used; every other hook uses one."""


@_hookspec
def build_data(source: str | None, config: RunConfig, ctx: Context) -> Data | None:
    """Index the images; decode none.

    Called first, so that errors in the data are found before heavy imports. Return None for forms of `source` that
    the plugin does not support (``digits:5-9``, a folder); `source` is None if the user set none.
    """


@_hookspec
def make_task(name: str, config: RunConfig, ctx: Context) -> type[Task] | None:
    """Return the class of a task: what targets, outputs and predictions are, and what is saved of it with the model.

    `name` is what ``data.task`` or a source of data says, or ``model.json`` of a run: answer only for yours. Called by
    `build_data` through `ctx.make_task`, and whenever a model is loaded.
    """


@_hookspec
def build_model(name: str | None, weights: str, config: RunConfig, ctx: Context) -> Backbone | nn.Module | None:
    """Build the pre-trained network with its own head.

    `name` is ``provider/network``: return None for other providers. `weights` is ``default``, ``none``, a named entry
    or a file (`ftcore.model.weights.load_weights` reads one). For an `nn.Module`, the host uses the last Linear or
    Conv2d, or ``model.head``, as the head. `predict` calls this hook with ``none`` and loads the run's own weights.
    """


@_hookspec
def make_transforms(spec: InputSpec, task: Task, config: RunConfig, ctx: Context) -> Transforms | None:
    """Make the functions from PIL image (mode L or RGB) to tensor; `spec` has size, mean and std of the weights.

    If it is `ftcore.TokenSpec`, the network takes texts: return functions from str to token ids.
    """


@_hookspec
def batch_transforms(
    task: Task, spec: InputSpec, config: RunConfig, ctx: Context
) -> Sequence[BatchTransform | BatchImageTransform] | None:
    """Make functions that change training batches on the device, such as mixup; applied in order.

    Classes come as one-hot targets, so the loss must take soft ones, unless all are `ftcore.BatchImageTransform`, which
    see no targets. `spec` has mean and std of the normalised images. All results are used.
    """


@_hookspec
def build_head(slot: HeadSlot, backbone: Backbone, task: Task, config: RunConfig, ctx: Context) -> nn.Module | None:
    """Build the new head: features as `slot` describes them -> `task.outputs` numbers.

    Called once for each slot of the backbone; the host puts the module in place. Initialise its last layer with small
    weights, and under a ReLU (`slot.rectifier`) with positive outputs.
    """


@_hookspec
def freeze(
    model: nn.Module, heads: tuple[str, ...], backbone: Backbone, task: Task, config: RunConfig, ctx: Context
) -> FreezePlan | None:
    """Choose the frozen parameters. The host applies the plan, and checks after each epoch that they did not change.

    `heads` are the paths of the new heads in `model`; `backbone` has the architecture's stages.
    """


@_hookspec
def wrap_devices(
    model: nn.Module, heads: tuple[str, ...], backbone: Backbone, config: RunConfig, ctx: Context
) -> Placement | None:
    """Move the network to its device and wrap it; ``requires_grad`` is final for the first epoch.

    If there are several processes (see `ctx.ranks`), they must split each micro-batch, or the run is rejected.

    A wrapper of this hook may change the network before it yields: its dtype, its memory format, how it is executed;
    but not what it computes, because only a run and ``evaluate`` call this hook; other commands reject such a network.
    """


@_hookspec
def precision_context(placement: Placement, config: RunConfig, ctx: Context) -> Precision | None:
    """Choose the arithmetic: an autocast factory and a gradient scaler for the placement's device."""


@_hookspec
def param_groups(
    trainable: Mapping[str, nn.Parameter],
    model: nn.Module,
    heads: tuple[str, ...],
    backbone: Backbone,
    config: RunConfig,
    ctx: Context,
) -> Sequence[ParamGroup] | None:
    """Put each of `trainable`, the parameters that are trainable now or after unfreezing, into exactly one group."""


@_hookspec
def make_optimizer(param_groups: Sequence[ParamGroup], config: RunConfig, ctx: Context) -> Optimizer | None:
    """Make the optimizer over exactly the parameters of the groups, honouring their `lr_scale` and `weight_decay`."""


@_hookspec
def make_loss(task: Task, config: RunConfig, ctx: Context) -> Loss | Any | None:
    """Make the loss; a bare callable ``(outputs, targets) -> scalar`` counts as a mean over samples.

    Answer only where `isinstance` says that the task is one you know. A loss with a method ``at`` receives epoch and
    step: see `ftcore.Moment`.
    """


@_hookspec
def make_metrics(task: Task, config: RunConfig, ctx: Context) -> Mapping[str, Any] | None:
    """Make validation metrics: name -> `torchmetrics.Metric`, updated with outputs and targets in the target's unit.

    All results are used, those of default plugins first; a metric of an enabled plugin replaces a default one with the
    same name. The first metric is monitored unless ``train.monitor`` names another. A value that is not finite is never
    the best. A metric that is undefined for some splits can have a method ``undefined_for``, called before training:
    targets (N,) or (N, K) of a split -> indices of the labels or targets without a value. A metric that is the fraction
    of correct images has an attribute ``is_proportion = True`` and gets Wilson's interval; others get a bootstrap
    interval.
    """


@_hookspec
def make_schedule(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    higher_is_better: bool,  # noqa: FBT001 (pluggy passes every argument by name)
    config: RunConfig,
    ctx: Context,
) -> Schedule | None:
    """Make the learning-rate schedule; ``epochs * steps_per_epoch`` optimizer steps will be taken.

    `higher_is_better` describes the monitored metric, which a schedule with ``interval="metric"`` receives after
    each epoch.
    """


@_hookspec
def make_regularizers(
    trainable: Mapping[str, nn.Parameter],
    model: nn.Module,
    heads: tuple[str, ...],
    config: RunConfig,
    ctx: Context,
) -> Sequence[Regularizer] | None:
    """Make penalties on parameters; `trainable` are those that are trainable now or later, with their initial values.

    All results are used, and added to the loss.
    """


@_hookspec
def make_step(
    model: nn.Module,
    heads: tuple[str, ...],
    backbone: Backbone,
    task: Task,
    placement: Placement,
    precision: Precision,
    config: RunConfig,
    ctx: Context,
) -> Step | None:
    """Customise the optimizer step: extra loss terms (distillation) or another way to compute the gradient (SAM).

    Plugins that are meant to combine must be wrappers of this hook; `plain_step` supplies the base.
    """


@_hookspec
def make_average(
    model: nn.Module, placement: Placement, epochs: int, steps_per_epoch: int, config: RunConfig, ctx: Context
) -> WeightAverage | None:
    """Make a second network that follows the first, e.g. an exponential moving average; None for none."""


@_hookspec
def make_observers(config: RunConfig, ctx: Context) -> Sequence[Observer] | None:
    """Make callables that receive events (see `ftcore.types.events`). All results are used."""


@_hookspec
def list_models(config: RunConfig, ctx: Context) -> Sequence[ModelInfo] | None:
    """List the networks that `build_model` of the same plugin can build, without building them.

    All results are used.
    """


def argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's arguments, in its order."""
    return tuple(inspect.signature(function).parameters)


HOOK_ARGUMENTS: dict[str, tuple[str, ...]] = {
    name: argument_names(function)
    for name, function in [*globals().items()]
    if hasattr(function, f"{PLUGGY_PROJECT}_spec")
}
"""Hook name -> names of its arguments, in the order in which a run calls the hooks."""
