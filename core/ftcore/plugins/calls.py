"""One typed method per hook: asks the host, checks the answer, and names the plugin when it is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import frozen

from ftcore.errors import UserError, close_matches
from ftcore.types.data import BatchImageTransform, Data, Transforms
from ftcore.types.distributed import Placement
from ftcore.types.model import Backbone, FreezePlan, ModelInfo
from ftcore.types.training import Loss, ParamGroup, Precision, Regularizer, Schedule, Step, WeightAverage

from .tasks import check_task, find_task

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ftcore.types.data import BatchTransform
    from ftcore.types.events import Observer
    from ftcore.types.model import HeadSlot, InputSpec
    from ftcore.types.task import Task

    from .activation import Plugin
    from .host import Host


T = TypeVar("T")


@frozen
class HookCalls:
    """The hooks of a run, typed."""

    host: Host

    def build_data(self, source: str | None) -> Data:
        """See `ftcore.hooks.build_data`."""
        data = self._call_one("build_data", Data, _no_data_message(source), source=source)
        if data.weights is not None and not (len(data.weights) == len(data.train) and min(data.weights, default=1) > 0):
            raise self.make_error(
                "build_data",
                f": Data.weights must be a number > 0 for each of {len(data.train)} training samples; got "
                f"{len(data.weights)} weights, minimum {min(data.weights, default=None)}",
            )
        check_task(self.host, data.task)
        return data

    def make_task(self, name: str) -> type[Task]:
        """See `ftcore.hooks.make_task`."""
        return find_task(self.host, name)

    def build_model(self, name: str | None, weights: str) -> Backbone | nn.Module:
        """See `ftcore.hooks.build_model`."""
        from torch import nn

        answer: Any = self.host.call("build_model", name=name, weights=weights)
        if answer is None:
            raise UserError(self._no_answer_message("build_model", self._no_model_message(name)))
        self._expect("build_model", [answer], Backbone, nn.Module)
        return cast("Backbone | nn.Module", answer)

    def list_models(self) -> list[ModelInfo]:
        """See `ftcore.hooks.list_models`."""
        answers = self._call_all("list_models", Sequence)
        for plugin, answer in zip(self.host.record["list_models"].answered, answers, strict=True):
            self._expect("list_models", answer, ModelInfo, by=plugin)
        return [info for answer in answers for info in answer]

    def make_transforms(self, spec: InputSpec, task: Task) -> Transforms:
        """See `ftcore.hooks.make_transforms`."""
        return self._call_one("make_transforms", Transforms, f"a {task.name} task", spec=spec, task=task)

    def batch_transforms(self, task: Task, spec: InputSpec) -> list[BatchTransform | BatchImageTransform]:
        """See `ftcore.hooks.batch_transforms`."""
        answers = self._call_all("batch_transforms", Sequence, task=task, spec=spec)
        for plugin, answer in zip(self.host.record["batch_transforms"].answered, answers, strict=True):
            self._expect("batch_transforms", answer, Callable, BatchImageTransform, by=plugin)
        return [transform for answer in answers for transform in answer]

    def build_head(self, slot: HeadSlot, backbone: Backbone, task: Task) -> nn.Module:
        """See `ftcore.hooks.build_head`."""
        from torch import nn

        return self._call_one("build_head", nn.Module, str(slot), slot=slot, backbone=backbone, task=task)

    def freeze(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone, task: Task) -> FreezePlan:
        """See `ftcore.hooks.freeze`."""
        arguments = {"model": model, "heads": heads, "backbone": backbone, "task": task}
        return self._call_one("freeze", FreezePlan, "this model", **arguments)

    def wrap_devices(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone) -> Placement:
        """See `ftcore.hooks.wrap_devices`."""
        arguments = {"model": model, "heads": heads, "backbone": backbone}
        placement = self._call_one("wrap_devices", Placement, "this machine", **arguments)
        if placement.unwrap(placement.model) is not model:
            raise self.make_error("wrap_devices", ": unwrap(model) does not return the model that was wrapped")
        return placement

    def precision_context(self, placement: Placement) -> Precision:
        """See `ftcore.hooks.precision_context`."""
        return self._call_one("precision_context", Precision, f"device {placement.device}", placement=placement)

    def param_groups(
        self, trainable: Mapping[str, nn.Parameter], model: nn.Module, heads: tuple[str, ...], backbone: Backbone
    ) -> list[ParamGroup]:
        """See `ftcore.hooks.param_groups`."""
        arguments = {"trainable": trainable, "model": model, "heads": heads, "backbone": backbone}
        groups = list(self._call_one("param_groups", Sequence, "this model", **arguments))
        self._expect("param_groups", groups, ParamGroup)
        names = Counter(group.name for group in groups)
        if names and max(names.values()) > 1:
            raise self.make_error("param_groups", f": two groups are named {max(names, key=names.__getitem__)!r}")
        placed = Counter(name for group in groups for name in group.params)
        wrong = {name for name, times in placed.items() if times > 1} | (set(trainable) ^ set(placed))
        wrong |= {name for g in groups for name, p in g.params.items() if trainable.get(name) is not p}
        if wrong:
            raise self.make_error(
                "param_groups",
                f" must put every trainable parameter into exactly one group; wrong for {', '.join(sorted(wrong)[:5])}",
            )
        return groups

    def make_optimizer(self, param_groups: Sequence[ParamGroup]) -> Optimizer:
        """See `ftcore.hooks.make_optimizer`."""
        from torch.optim import Optimizer

        optimizer = self._call_one("make_optimizer", Optimizer, "these groups", param_groups=param_groups)
        given = {id(p): name for group in param_groups for name, p in group.params.items()}
        has = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if set(has) != set(given):
            missing = [name for key, name in given.items() if key not in set(has)]
            raise self.make_error(
                "make_optimizer",
                " must contain exactly the parameters of its groups; "
                f"missing {', '.join(missing[:5]) or 'none'}, unexpected {len(set(has) - set(given))}",
            )
        return optimizer

    def make_loss(self, task: Task) -> Loss:
        """See `ftcore.hooks.make_loss`."""
        answer = self._call_one("make_loss", object, f"a {task.name} task", task=task)
        if isinstance(answer, Loss):
            return answer
        if callable(answer):
            return Loss(answer)
        raise self.make_error("make_loss", f" returned {_describe_value(answer)}; expected a Loss or a callable")

    def make_metrics(self, task: Task) -> dict[str, Any]:
        """See `ftcore.hooks.make_metrics`."""
        from torchmetrics import Metric

        metrics: dict[str, Any] = {}
        of_defaults: set[str] = set()
        answers = self._call_all("make_metrics", Mapping, task=task)
        for plugin, answer in zip(self.host.record["make_metrics"].answered, answers, strict=True):
            self._expect("make_metrics", list(answer.values()), Metric, by=plugin)
            for name in answer:
                taken = name in metrics and (plugin.is_default or name not in of_defaults)
                if taken or name in {"loss", "epoch"} or name.startswith("train_"):
                    raise UserError(
                        f"make_metrics: {name!r} of {plugin} is already used; choose another name for the metric"
                    )
            metrics |= answer
            of_defaults = of_defaults | set(answer) if plugin.is_default else of_defaults - set(answer)
        return metrics

    def make_schedule(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        higher_is_better: bool,  # noqa: FBT001 (as the hook's)
    ) -> Schedule:
        """See `ftcore.hooks.make_schedule`."""
        arguments = {"optimizer": optimizer, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
        arguments["higher_is_better"] = higher_is_better
        return self._call_one("make_schedule", Schedule, "this optimizer", **arguments)

    def make_regularizers(
        self, trainable: Mapping[str, nn.Parameter], model: nn.Module, heads: tuple[str, ...]
    ) -> list[Regularizer]:
        """See `ftcore.hooks.make_regularizers`."""
        answers = self._call_all("make_regularizers", Sequence, trainable=trainable, model=model, heads=heads)
        for plugin, answer in zip(self.host.record["make_regularizers"].answered, answers, strict=True):
            self._expect("make_regularizers", answer, Regularizer, by=plugin)
        return [regularizer for answer in answers for regularizer in answer]

    def make_step(
        self,
        model: nn.Module,
        heads: tuple[str, ...],
        backbone: Backbone,
        task: Task,
        placement: Placement,
        precision: Precision,
    ) -> Step:
        """See `ftcore.hooks.make_step`."""
        arguments = {"model": model, "heads": heads, "backbone": backbone, "task": task}
        return self._call_one("make_step", Step, "this model", **arguments, placement=placement, precision=precision)

    def make_average(
        self, model: nn.Module, placement: Placement, epochs: int, steps_per_epoch: int
    ) -> WeightAverage | None:
        """See `ftcore.hooks.make_average`."""
        arguments = {"model": model, "placement": placement, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
        average: WeightAverage | None = self.host.call("make_average", **arguments)
        if average is None:
            return None
        self._expect("make_average", [average], WeightAverage)
        networks = (model, average.network)
        ours, theirs = ({name: tensor.shape for name, tensor in n.state_dict().items()} for n in networks)
        if ours != theirs:
            wrong = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            raise self.make_error(
                "make_average",
                ": its network must have the parameter names and shapes of the trained "
                f"network; wrong for {', '.join(wrong[:5])}",
            )
        return average

    def make_observers(self) -> list[Observer]:
        """See `ftcore.hooks.make_observers`."""
        answers = self._call_all("make_observers", Sequence)
        for plugin, answer in zip(self.host.record["make_observers"].answered, answers, strict=True):
            self._expect("make_observers", answer, Callable, by=plugin)
        return [observer for answer in answers for observer in answer]

    def _no_model_message(self, name: str | None) -> str:
        if name is None:
            return "the network, because model.name is not set: --model PROVIDER/NETWORK, e.g. timm/resnet50"
        known: dict[str, list[str]] = {}
        for info in self.list_models():
            known.setdefault(info.name.partition("/")[2], []).append(info.name)
        near = [full for match in close_matches(name.rpartition("/")[2], known) for full in known[match]]
        return f"model.name = {name!r}; expected PROVIDER/NETWORK; nearest: {', '.join(near[:5]) or 'none'}"

    def _call_one(self, hook: str, kind: type[T], given: str, **arguments: Any) -> T:
        answer: T | None = self.host.call(hook, **arguments)
        if answer is None:
            raise UserError(self._no_answer_message(hook, given))
        self._expect(hook, [answer], kind)
        return answer

    def _call_all(self, hook: str, kind: type[T], **arguments: Any) -> list[T]:
        answers = self.host.call(hook, **arguments)
        for plugin, answer in zip(self.host.record[hook].answered, answers, strict=True):
            self._expect(hook, [answer], kind, by=plugin)
        return list(answers)

    def _expect(self, hook: str, answers: Sequence[object], *kinds: Any, by: Plugin | None = None) -> None:
        for answer in answers:
            if not isinstance(answer, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise self.make_error(hook, f" returned {_describe_value(answer)}; expected {expected}", by)

    def make_error(self, hook: str, wrong: str, by: Plugin | None = None) -> UserError:
        """Say what is wrong with an answer (or one of the answers) behind the plugins that made it and their lines."""
        makers = [by, *self.host.record[hook].wrapped] if by else self.host.contributors(hook)
        return UserError(f"{_locations(hook, makers)}{wrong}", faulty_plugins=[plugin.name for plugin in makers])

    def makers(self, hook: str) -> str:
        """Say which plugins made the answer of a hook, and where."""
        return _locations(hook, self.host.contributors(hook))

    def _no_answer_message(self, hook: str, given: str) -> str:
        asked = ", ".join(plugin.name for plugin in self.host.record[hook].passed) or "nobody"
        return f"no plugin supplies {hook} for {given}; called: {asked}"


def _locations(hook: str, makers: Sequence[Plugin]) -> str:
    return " and ".join(plugin.location(impl) for plugin in makers for impl in plugin.hooks if impl.hook == hook)


def _no_data_message(source: str | None) -> str:
    if source is None:
        return "the data, because data.source is not set: --data FOLDER, or a data set by name"
    path = Path(source).absolute()
    there = "exists, but no plugin can read it" if path.exists() else "does not exist"
    return f"data.source = {source!r} ({path} {there})"


def _describe_value(value: object) -> str:
    return f"{type(value).__name__} {value!r:.80}"
