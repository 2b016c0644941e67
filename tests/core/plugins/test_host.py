from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from ftcore import Context, Task, UserError, hookimpl, hooks
from ftcore.config.schema import RunConfig
from ftcore.plugins.activation import Plugin
from ftcore.plugins.host import Host, summary
from ftcore.plugins.lint import implementations
from ftcore.plugins.references import PluginReference
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Generator

TASK = Classification(("cat", "dog"), (3, 4))


class Focal:
    @hookimpl
    def make_loss(self) -> str:
        return "focal"

    @hookimpl
    def make_metrics(self) -> str:
        return "focal's metrics"


class Weighted:
    @hookimpl
    def make_loss(self) -> str:
        return "weighted"

    @hookimpl
    def make_metrics(self) -> str:
        return "weighted's metrics"


class Plain:
    @hookimpl
    def make_loss(self) -> str:
        return "plain"

    @hookimpl
    def make_metrics(self) -> str:
        return "plain's metrics"


class Silent:
    @hookimpl
    def make_loss(self) -> None: ...

    @hookimpl
    def make_metrics(self) -> None: ...


class Loud:
    @hookimpl(wrapper=True)
    def make_loss(self) -> Generator[None, str, str]:
        answer = yield
        return answer + "!"


class Asking:
    @hookimpl(wrapper=True)
    def make_loss(self) -> Generator[None, str, str]:
        answer = yield
        return answer + "?"


def plugin(made: object, origin: str = "") -> Plugin:
    name = type(made).__name__.lower()
    reference = PluginReference(name, __name__, type(made).__name__, f"acme-{name} 1.0", name)
    return Plugin(reference, origin or f"--plugin {name}", None, tuple(implementations(made)))


def default(made: object) -> Plugin:
    return plugin(made, "default")


def host(*plugins: Plugin, **orders: tuple[str, ...]) -> Host:
    return Host(RunConfig(hooks=orders), plugins, Path("run"))


def record(asked: Host, hook: str = "make_loss") -> dict[str, list[str]]:
    found = asked.record[hook]
    lists = {"answered": found.answered, "passed": found.passed, "not_asked": found.not_asked, "wrapped": found.wrapped}
    return {what: [p.name for p in plugins] for what, plugins in lists.items() if plugins}


def test_a_hook_has_one_answer_and_no_list() -> None:
    asked = host(plugin(Focal()))

    assert asked.call("make_loss", task=TASK) == "focal"
    assert record(asked) == {"answered": ["focal"]}


def test_a_named_plugin_beats_the_default_which_is_not_asked() -> None:
    asked = host(plugin(Focal()), default(Plain()))

    assert asked.call("make_loss", task=TASK) == "focal"
    assert record(asked) == {"answered": ["focal"], "not_asked": ["plain"]}


def test_the_default_answers_where_the_named_plugins_pass() -> None:
    asked = host(plugin(Silent()), default(Plain()))

    assert asked.call("make_loss", task=TASK) == "plain"
    assert record(asked) == {"answered": ["plain"], "passed": ["silent"]}


def test_the_first_default_that_answers_is_the_last_that_is_asked() -> None:
    asked = host(default(Silent()), default(Plain()), default(Focal()))

    assert asked.call("make_loss", task=TASK) == "plain"
    assert record(asked) == {"answered": ["plain"], "passed": ["silent"], "not_asked": ["focal"]}


def test_none_means_not_me_and_nobody_may_answer() -> None:
    asked = host(plugin(Silent()))

    assert asked.call("make_loss", task=TASK) is None
    assert record(asked) == {"passed": ["silent"]}


def test_an_answer_that_is_false_or_empty_is_an_answer() -> None:
    class Empty:
        @hookimpl
        def make_loss(self) -> tuple[()]:
            return ()

    asked = host(plugin(Empty()), default(Plain()))

    assert asked.call("make_loss", task=TASK) == ()


def test_two_answers_are_an_error_that_names_both_and_the_way_out() -> None:
    asked = host(plugin(Focal()), plugin(Weighted()))

    with pytest.raises(UserError, match="2 plugins implement make_loss, but only one may") as caught:
        asked.call("make_loss", task=TASK)

    assert "  focal (acme-focal 1.0, --plugin focal)\n" in str(caught.value)
    assert "  weighted (acme-weighted 1.0, --plugin weighted)\n" in str(caught.value)
    assert '[hooks] make_loss = ["focal", "weighted"]' in str(caught.value)


def test_two_plugins_with_this_hook_alone_are_a_conflict_before_anybody_is_asked() -> None:
    class First:
        @hookimpl
        def make_loss(self) -> str:
            raise AssertionError("asked")

    class Second(First): ...

    with pytest.raises(UserError, match='make_loss = \\["first", "second"\\]'):
        host(plugin(First()), plugin(Second()))


def test_the_way_out_of_a_conflict_works_in_either_order() -> None:
    plugins = plugin(Focal()), plugin(Weighted())
    forth, back = host(*plugins, make_loss=("focal", "weighted")), host(*plugins, make_loss=("weighted", "focal"))

    assert forth.call("make_loss", task=TASK) == "focal"
    assert back.call("make_loss", task=TASK) == "weighted"
    assert record(back) == {"answered": ["weighted"], "not_asked": ["focal"]}


def test_a_plugin_that_comes_first_in_the_order_may_still_pass() -> None:
    asked = host(plugin(Focal()), plugin(Silent()), make_loss=("silent", "focal"))

    assert asked.call("make_loss", task=TASK) == "focal"
    assert record(asked) == {"answered": ["focal"], "passed": ["silent"]}


def test_an_order_of_some_leaves_a_conflict_with_the_others() -> None:
    asked = host(plugin(Focal()), plugin(Weighted()), make_loss=("focal",))

    with pytest.raises(UserError, match="2 plugins implement make_loss"):
        asked.call("make_loss", task=TASK)


def test_an_order_that_names_a_stranger_is_refused_with_the_nearest() -> None:
    message = (
        r"\[hooks\] make_loss names 'fokal', which is not an enabled plugin that implements it; did you mean "
        r"'focal'\?; "
        "candidates: focal"
    )

    with pytest.raises(UserError, match=message):
        host(plugin(Focal()), make_loss=("fokal",))


def test_a_plugin_behind_another_in_the_order_counts_as_used() -> None:
    class Spare:
        @hookimpl
        def make_loss(self) -> str:
            return "spare"

    asked = host(plugin(Focal()), plugin(Spare()), default(Plain()), make_loss=("focal", "spare"))
    asked.call("make_loss", task=TASK)

    assert [p.name for p in asked.used_plugins()] == ["focal", "spare"]


def test_only_plugins_that_answered_or_wrapped_are_used() -> None:
    asked = host(plugin(Silent()), plugin(Loud()), default(Plain()), default(Weighted()))
    asked.call("make_loss", task=TASK)

    assert [p.name for p in asked.used_plugins()] == ["loud", "plain"]


def test_a_wrapper_changes_the_answer_of_a_default() -> None:
    asked = host(plugin(Loud()), default(Plain()))

    assert asked.call("make_loss", task=TASK) == "plain!"
    assert record(asked) == {"answered": ["plain"], "wrapped": ["loud"]}


def test_the_last_plugin_that_was_named_is_the_outermost_wrapper() -> None:
    inner, outer = plugin(Loud()), plugin(Asking())

    assert host(inner, outer, default(Plain())).call("make_loss", task=TASK) == "plain!?"
    assert host(outer, inner, default(Plain())).call("make_loss", task=TASK) == "plain?!"


def test_a_wrapper_sees_that_nobody_answered() -> None:
    class Looking:
        seen: Any = "nothing yet"

        @hookimpl(wrapper=True)
        def make_loss(self) -> Generator[None, Any, Any]:
            self.seen = yield
            return self.seen

    looking = Looking()

    assert host(plugin(looking), plugin(Silent())).call("make_loss", task=TASK) is None
    assert looking.seen is None


def test_a_wrapper_that_returns_nothing_over_an_answer_is_an_error() -> None:
    class Forgetful:
        @hookimpl(wrapper=True)
        def make_loss(self) -> Generator[None, Any, None]:
            yield

    line = Forgetful.make_loss.__code__.co_firstlineno
    message = rf"wrapper forgetful\.make_loss \(.*test_host\.py:{line}\) returned None and would discard .*'plain'"

    with pytest.raises(UserError, match=message):
        host(plugin(Forgetful()), default(Plain())).call("make_loss", task=TASK)


def test_a_wrapper_that_yields_twice_is_an_error() -> None:
    class Twice:
        @hookimpl(wrapper=True)
        def make_loss(self) -> Generator[None, Any, Any]:
            yield
            return (yield)

    with pytest.raises(UserError, match=r"wrapper twice\.make_loss \(.*\) yielded twice; it must yield once"):
        host(plugin(Twice()), default(Plain())).call("make_loss", task=TASK)


def test_a_wrapper_that_does_not_yield_is_an_error() -> None:
    class Never:
        @hookimpl(wrapper=True)
        def make_loss(self) -> Generator[None, Any, Any]:
            if self is None:
                yield
            return "mine"

    with pytest.raises(UserError, match=r"wrapper never\.make_loss \(.*\) .*it must yield once"):
        host(plugin(Never()), default(Plain())).call("make_loss", task=TASK)


def test_an_error_of_a_plugin_comes_through_its_wrappers_unchanged() -> None:
    class Broken:
        @hookimpl
        def make_loss(self) -> None:
            raise ZeroDivisionError("by the plugin")

    with pytest.raises(ZeroDivisionError, match="by the plugin"):
        host(plugin(Loud()), plugin(Broken())).call("make_loss", task=TASK)


def test_all_answers_are_collected_defaults_first_and_then_in_the_users_order() -> None:
    asked = host(plugin(Weighted()), plugin(Silent()), plugin(Focal()), default(Plain()))

    answers = asked.call("make_metrics", task=TASK)

    assert answers == ["plain's metrics", "weighted's metrics", "focal's metrics"]
    assert record(asked, "make_metrics") == {"answered": ["plain", "weighted", "focal"], "passed": ["silent"]}


def test_the_order_of_all_answers_can_be_set() -> None:
    asked = host(plugin(Weighted()), plugin(Focal()), make_metrics=("focal", "weighted"))

    assert asked.call("make_metrics", task=TASK) == ["focal's metrics", "weighted's metrics"]


def test_a_wrapper_of_a_hook_that_takes_all_answers_sees_the_list() -> None:
    class Reversing:
        @hookimpl(wrapper=True)
        def make_metrics(self) -> Generator[None, list[str], list[str]]:
            answers = yield
            return answers[::-1]

    asked = host(plugin(Focal()), plugin(Reversing()), default(Plain()))

    assert asked.call("make_metrics", task=TASK) == ["focal's metrics", "plain's metrics"]


def test_an_implementation_takes_any_of_the_arguments_by_name_in_any_order() -> None:
    class Subset:
        @hookimpl
        def freeze(self, config: Any, task: Any, model: Any) -> tuple[Any, ...]:
            return config, task, model

    asked = host(plugin(Subset()))

    answer = asked.call("freeze", model="model", heads=("head",), backbone=None, task=TASK)
    assert answer == (asked.config, TASK, "model")


def test_the_log_of_a_hook_carries_the_names_of_plugin_and_hook() -> None:
    class Chatty:
        @hookimpl
        def make_loss(self, ctx: Context) -> str:
            ctx.log.info("hello", more=1)
            return str(ctx.folder)

        @hookimpl(wrapper=True)
        def make_metrics(self, ctx: Context) -> Generator[None, Any, Any]:
            ctx.log.warning("around")
            return (yield)

    asked = host(plugin(Chatty()))
    with capture_logs() as logs:
        folder = asked.call("make_loss", task=TASK)
        asked.call("make_metrics", task=TASK)

    assert folder == "run"
    assert logs == [
        {"plugin": "chatty", "hook": "make_loss", "more": 1, "event": "hello", "log_level": "info"},
        {"plugin": "chatty", "hook": "make_metrics", "event": "around", "log_level": "warning"},
    ]


@pytest.mark.parametrize("origin", ["--plugin acme:Curious", "run.toml plugins[0]", "recipe acme", "default"])
def test_a_plugin_is_told_whether_it_was_named(origin: str) -> None:
    class Curious:
        @hookimpl
        def make_loss(self, ctx: Context) -> str:
            return "named" if ctx.named else "by default"

    assert host(plugin(Curious(), origin)).call("make_loss", task=TASK) == (
        "by default" if origin == "default" else "named"
    )


def test_nothing_is_recorded_before_a_hook_is_asked_and_anew_each_time() -> None:
    asked = host(plugin(Focal()))
    before = dict(asked.record)
    asked.call("make_loss", task=TASK)
    asked.call("make_loss", task=TASK)

    assert before == {}
    assert record(asked) == {"answered": ["focal"]}


def test_the_summary_names_one_plugin_or_all_and_leaves_out_what_nobody_answered() -> None:
    asked = host(plugin(Focal()), default(Plain()))
    asked.call("make_loss", task=TASK)
    asked.call("make_metrics", task=TASK)
    asked.call("freeze", model=None, heads=(), backbone=None, task=TASK)

    assert summary(asked) == {"make_loss": "focal", "make_metrics": ["plain", "focal"]}


def test_a_hook_that_will_go_warns_each_plugin_that_answers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = hooks.make_loss
    monkeypatch.setitem(spec.ftcore_spec, "warn_on_impl", FutureWarning("goes in 2.0; answer make_objective"))

    with pytest.warns(FutureWarning) as told:
        host(plugin(Focal()), default(Plain()))

    (warning,) = told
    assert re.fullmatch(r"focal\.make_loss \(.*\): goes in 2\.0; answer make_objective", str(warning.message))
    assert warning.filename == __file__


class TakesTask:
    @hookimpl
    def make_loss(self, task: Task) -> str:
        return str(task)


def test_an_argument_that_will_go_warns_each_plugin_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = hooks.make_loss
    monkeypatch.setitem(spec.ftcore_spec, "warn_on_impl_args", {"task": FutureWarning("task goes in 2.0")})

    with pytest.warns(FutureWarning) as told:
        host(plugin(TakesTask()), plugin(Loud()))

    (warning,) = told
    assert str(warning.message).startswith("takestask.make_loss (")


def test_asking_and_wrapping_are_known_without_calling_anybody() -> None:
    asked = host(plugin(Weighted()), plugin(Loud()), plugin(Asking()), default(Plain()))

    assert [p.name for p, _ in asked.implementers("make_loss")] == ["weighted", "plain"]
    assert [p.name for p, _ in asked.wrappers("make_loss")] == ["loud", "asking"]
    assert asked.record == {}
