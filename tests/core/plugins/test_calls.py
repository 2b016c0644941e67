from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from ftcore import (
    Backbone,
    FreezePlan,
    HeadSlot,
    InputSpec,
    Loss,
    ParamGroup,
    Placement,
    Precision,
    UserError,
    WeightAverage,
    hookimpl,
)
from ftcore.config.schema import RunConfig
from ftcore.hooks import COLLECT_HOOKS, HOOK_ARGUMENTS
from ftcore.model.freezing import check_plan
from ftcore.plugins.activation import Plugin
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.host import Host
from ftcore.plugins.lint import implementations
from ftcore.plugins.references import PluginReference
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

TASK = Classification(("cat", "dog"), (3, 4))


def answering(hook: str, answer: Callable[..., Any], name: str = "acme") -> Plugin:
    """Make a plugin of one function."""
    made = type("Acme", (), {hook: staticmethod(hookimpl(answer))})()
    reference = PluginReference(name, __name__, "Acme", f"{name} 1.0", name)
    return Plugin(reference, f"--plugin {name}", None, tuple(implementations(made)))


def calls(*plugins: Plugin) -> HookCalls:
    return HookCalls(Host(RunConfig(), plugins, Path()))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def values() -> dict[str, Any]:
    model, device = network(), torch.device("cpu")
    return {
        "source": "photos",
        "name": "acme/net",
        "weights": "none",
        "spec": InputSpec(),
        "task": TASK,
        "slot": HeadSlot("2", 3),
        "backbone": Backbone(model, (HeadSlot("2", 3),)),
        "model": model,
        "heads": ("2",),
        "placement": Placement(device, model, unwrap=lambda wrapped: wrapped),
        "trainable": dict(model.named_parameters()),
        "param_groups": [ParamGroup("all", dict(model.named_parameters()))],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "epochs": 2,
        "steps_per_epoch": 3,
        "higher_is_better": True,
        "precision": Precision("fp32", nullcontext, torch.amp.GradScaler(enabled=False)),
    }


def call(hook: str, asked: HookCalls) -> Any:
    method, given = getattr(asked, hook), values()
    return method(**{name: given[name] for name in inspect.signature(method).parameters})


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_an_answer_of_another_type_names_the_plugin_and_the_line(hook: str) -> None:
    def answer() -> int:
        return 42

    message = rf"acme\.{hook} \(.*test_calls\.py:{answer.__code__.co_firstlineno}\) returned int 42; expected \w+"

    with pytest.raises(UserError, match=message):
        call(hook, calls(answering(hook, answer)))


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("param_groups", ["trainable"]),
        ("make_metrics", {"f1": len}),
        ("make_observers", ["observer"]),
        ("make_observers", "observer"),
    ],
)
def test_what_is_in_an_answer_is_checked_too(hook: str, answer: object) -> None:
    with pytest.raises(UserError, match=rf"acme\.{hook} \(.*test_calls\.py:\d+\)"):
        call(hook, calls(answering(hook, lambda: answer)))


@pytest.mark.parametrize("hook", [hook for hook in HOOK_ARGUMENTS if hook not in COLLECT_HOOKS | {"make_average"}])
def test_a_hook_that_nobody_answers_says_who_was_asked(hook: str) -> None:
    with pytest.raises(UserError, match=rf"no plugin supplies {hook} for .*; called: acme$"):
        call(hook, calls(answering(hook, lambda: None)))


def test_no_average_is_an_answer_too() -> None:
    assert call("make_average", calls(answering("make_average", lambda: None))) is None


def test_an_average_of_another_network_is_refused() -> None:
    average = WeightAverage("other", nn.Linear(2, 2), lambda network, count: None)

    with pytest.raises(
        UserError, match=r"acme\.make_average .* must have the parameter names and shapes .* wrong for 0\.bias"
    ):
        call("make_average", calls(answering("make_average", lambda: average)))


def test_a_wrapper_that_spoils_an_answer_is_named_beside_its_maker() -> None:
    def spoil() -> Generator[None, Any, int]:
        yield
        return 42

    made = type("Spoiler", (), {"make_loss": staticmethod(hookimpl(wrapper=True)(spoil))})()
    reference = PluginReference("spoiler", __name__, "Spoiler", "spoiler 1.0", "spoiler")
    spoiler = Plugin(reference, "--plugin spoiler", None, tuple(implementations(made)))

    with pytest.raises(UserError, match=r"acme\.make_loss \(.*\) and spoiler\.make_loss \(.*\) returned int 42"):
        calls(answering("make_loss", lambda: nn.functional.cross_entropy), spoiler).make_loss(TASK)


def test_of_two_answers_that_are_all_used_only_the_wrong_one_is_named() -> None:
    right = answering("make_metrics", lambda: {"right": metric()}, "right")
    wrong = answering("make_metrics", lambda: 42, "wrong")

    with pytest.raises(UserError, match=r"wrong\.make_metrics .* returned int 42") as caught:
        calls(right, wrong).make_metrics(TASK)

    assert "right.make_metrics" not in str(caught.value)


def check(plan: FreezePlan) -> None:
    """As a run does with what `freeze` answers."""
    asked = calls(answering("freeze", lambda: plan))
    made = call("freeze", asked)
    check_plan(partial(asked.make_error, "freeze"), made, network(), ("2",))


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        (FreezePlan(frozenset({"0.wieght"})), "0.wieght; did you mean '0.weight'?"),
        (FreezePlan(eval_modules=frozenset({"0.weight"})), "0.weight"),
        (FreezePlan(eval_modules=frozenset({"layer9"})), "layer9"),
        (FreezePlan(unfreeze_at={1: frozenset({"layer9"})}), "layer9"),
    ],
)
def test_a_plan_with_unknown_names_is_refused_with_the_nearest(plan: FreezePlan, wrong: str) -> None:
    with pytest.raises(UserError, match=r"acme\.freeze \(.*\): the plan names 1 .* do not exist: ") as caught:
        check(plan)

    assert wrong in str(caught.value)


def test_a_plan_that_freezes_everything_is_refused() -> None:
    everything = frozenset(name for name, _ in network().named_parameters())

    with pytest.raises(UserError, match=r"acme\.freeze .*the plan freezes every parameter, so nothing is trainable"):
        check(FreezePlan(everything))


def test_a_plan_that_freezes_everything_in_the_first_epoch_is_refused() -> None:
    everything = frozenset(name for name, _ in network().named_parameters())
    plan = FreezePlan(everything, unfreeze_at={3: frozenset({"2"})})

    with pytest.raises(UserError, match=r"acme\.freeze .*nothing is trainable"):
        check(plan)


def test_an_optimizer_that_misses_a_parameter_is_refused_by_name() -> None:
    def forgetful(param_groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(param_groups[0].params.values())[1:], lr=0.1)

    message = (
        r"acme\.make_optimizer .* must contain exactly the parameters of its groups; missing 0\.weight, unexpected 0"
    )

    with pytest.raises(UserError, match=message):
        call("make_optimizer", calls(answering("make_optimizer", forgetful)))


def test_an_optimizer_with_a_parameter_of_its_own_is_refused() -> None:
    def inventive(param_groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.SGD([*param_groups[0].params.values(), nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(UserError, match="missing none, unexpected 1"):
        call("make_optimizer", calls(answering("make_optimizer", inventive)))


def twice(trainable: Any) -> list[ParamGroup]:
    return [ParamGroup("all", trainable), ParamGroup("again", {"0.bias": trainable["0.bias"]})]


def under_another_name(trainable: Any) -> list[ParamGroup]:
    return [ParamGroup("all", trainable), ParamGroup("again", {"0.bias.again": trainable["0.bias"]})]


def one_missing(trainable: Any) -> list[ParamGroup]:
    return [ParamGroup("most", {name: p for name, p in trainable.items() if name != "0.bias"})]


def swapped(trainable: Any) -> list[ParamGroup]:
    return [ParamGroup("all", {**trainable, "0.bias": nn.Parameter(torch.zeros(3))})]


@pytest.mark.parametrize("answer", [twice, under_another_name, one_missing, swapped])
def test_groups_that_do_not_hold_each_parameter_exactly_once_are_refused_by_name(answer: Any) -> None:
    message = r"acme\.param_groups .* must put every trainable parameter into exactly one group; wrong for 0\.bias"

    with pytest.raises(UserError, match=message):
        call("param_groups", calls(answering("param_groups", answer)))


def test_groups_that_hold_each_parameter_once_are_taken_as_they_are() -> None:
    def each_alone(trainable: Any) -> tuple[ParamGroup, ...]:
        return tuple(ParamGroup(name, {name: p}) for name, p in trainable.items())

    groups = call("param_groups", calls(answering("param_groups", each_alone)))

    assert [group.name for group in groups] == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]


def test_a_placement_that_unwraps_to_another_network_is_refused() -> None:
    def elsewhere(model: nn.Module) -> Placement:
        return Placement(torch.device("cpu"), nn.Sequential(model), unwrap=lambda wrapped: wrapped)

    with pytest.raises(
        UserError, match=r"acme\.wrap_devices .*unwrap\(model\) does not return the model that was wrapped"
    ):
        call("wrap_devices", calls(answering("wrap_devices", elsewhere)))


def test_a_bare_callable_is_a_loss_that_is_a_mean_over_samples() -> None:
    function = nn.CrossEntropyLoss()

    loss = calls(answering("make_loss", lambda: function)).make_loss(TASK)

    assert loss.function is function
    assert loss.denominator(torch.zeros(7)) == 7.0


def test_a_loss_is_taken_as_it_is() -> None:
    loss = Loss(nn.CrossEntropyLoss())

    assert calls(answering("make_loss", lambda: loss)).make_loss(TASK) is loss


def test_a_bare_module_is_a_network() -> None:
    model = network()

    assert call("build_model", calls(answering("build_model", lambda: model))) is model


def metric() -> Any:
    from torchmetrics import MeanMetric

    return MeanMetric()


def test_two_metrics_of_one_name_are_refused_with_the_plugin_that_came_second() -> None:
    first = answering("make_metrics", lambda: {"f1": metric()}, "first")
    second = answering("make_metrics", lambda: {"f1": metric()}, "second")

    with pytest.raises(
        UserError, match=r"make_metrics: 'f1' of second \(second 1\.0, --plugin second\) is already used"
    ):
        calls(first, second).make_metrics(TASK)


@pytest.mark.parametrize("name", ["loss", "epoch", "train_loss"])
def test_a_metric_cannot_take_a_name_of_the_report(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"make_metrics: '{name}' of acme .* is already used; choose another name for the metric"
    ):
        calls(answering("make_metrics", lambda: {name: metric()})).make_metrics(TASK)


def test_metrics_and_observers_of_all_plugins_are_used_in_their_order() -> None:
    def observe(event: object) -> None: ...

    first = answering("make_metrics", lambda: {"b": metric()}, "first")
    second = answering("make_metrics", lambda: {"a": metric()}, "second")
    third = answering("make_observers", lambda: [observe, print], "third")

    asked = calls(first, second, third)

    assert list(asked.make_metrics(TASK)) == ["b", "a"]
    assert asked.make_observers() == [observe, print]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "data.source is not set: --data FOLDER"),
        ("nowhere", r"data\.source = 'nowhere' \(.*nowhere does not exist\)"),
    ],
)
def test_data_that_nobody_reads_says_what_to_do(source: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calls(answering("build_data", lambda: None)).build_data(source)


def test_a_file_that_no_plugin_reads_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "table.xyz"
    file.write_text("", encoding="utf-8")

    with pytest.raises(UserError, match="exists, but no plugin can read it"):
        calls(answering("build_data", lambda: None)).build_data(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "model.name is not set: --model PROVIDER/NETWORK"), ("resnet50", "expected PROVIDER/NETWORK")],
)
def test_a_network_that_nobody_builds_says_how_names_are_written(name: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calls(answering("build_model", lambda: None)).build_model(name, "default")
