from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

from ftcore import hookimpl
from ftcore.plugins.lint import find_problems, implementations

if TYPE_CHECKING:
    from collections.abc import Generator


class UnknownHook:
    @hookimpl
    def make_los(self) -> None: ...


class RenamedToUnknownHook:
    @hookimpl(specname="make_los")
    def focal(self) -> None: ...


class UnknownArgument:
    @hookimpl
    def make_loss(self, tsk: Any) -> None: ...


class Default:
    @hookimpl
    def make_loss(self, task: Any = None) -> None: ...


class KeywordOnly:
    @hookimpl
    def make_loss(self, *, task: Any) -> None: ...


class Stars:
    @hookimpl
    def make_loss(self, *args: Any) -> None: ...


class DoubleStars:
    @hookimpl
    def make_loss(self, **kwargs: Any) -> None: ...


class Undecorated:
    def make_loss(self) -> None: ...


class Foreign:
    @pluggy.HookimplMarker("pytest")
    def make_loss(self) -> None: ...


class WrapperWithoutYield:
    @hookimpl(wrapper=True)
    def make_loss(self) -> None: ...


class OldWrapper:
    @hookimpl(hookwrapper=True)
    def make_loss(self) -> Generator[None, Any, None]:
        yield


class TryFirst:
    @hookimpl(tryfirst=True)
    def make_loss(self) -> None: ...


class TryLast:
    @hookimpl(trylast=True)
    def make_loss(self) -> None: ...


class NoHooks:
    def helps(self) -> None: ...


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        (UnknownHook, "make_los: no such hook 'make_los'; did you mean 'make_loss'?"),
        (RenamedToUnknownHook, "make_los: no such hook 'make_los'; did you mean 'make_loss'?"),
        (
            UnknownArgument,
            "make_loss: unknown argument 'tsk'; did you mean 'task'?; allowed: task, config, ctx",
        ),
        (Default, "make_loss: task has a default; whether pluggy overrides it depends on its version, remove it"),
        (KeywordOnly, "make_loss: task is keyword-only, which is never passed; remove the '*'"),
        (Stars, "make_loss: *args is never passed; name the arguments you need (task, config, ctx)"),
        (DoubleStars, "make_loss: **kwargs is never passed; name the arguments you need (task, config, ctx)"),
        (Undecorated, "make_loss: has a hook's name but no @hookimpl, so it would never run"),
        (Foreign, "make_loss: decorated with the hookimpl of 'pytest', not of ftcore"),
        (WrapperWithoutYield, "make_loss: a wrapper must yield once and return the result"),
        (OldWrapper, "make_loss: hookwrapper=True is pluggy's old style; use wrapper=True"),
        (TryFirst, "make_loss: tryfirst and trylast are ignored; the user sets the order in [hooks]"),
        (TryLast, "make_loss: tryfirst and trylast are ignored; the user sets the order in [hooks]"),
        (NoHooks, "no hooks found: it has no @ftcore.hookimpl and is not a recipe"),
    ],
)
def test_each_mistake_in_a_plugin_is_found(plugin: type, problem: str) -> None:
    assert find_problems(plugin()) == [problem]


def test_all_problems_of_a_plugin_are_reported_together() -> None:
    class Sloppy:
        @hookimpl
        def build_heads(self) -> None: ...

        def freeze(self) -> None: ...

        @hookimpl(wrapper=True)
        def make_loss(self, taks: Any, config: Any = None) -> None: ...

    assert [line.partition(":")[0] for line in find_problems(Sloppy())] == [
        "build_heads",
        "freeze",
        "make_loss",
        "make_loss",
        "make_loss",
    ]


def test_properties_of_a_plugin_are_not_evaluated() -> None:
    class Shy:
        evaluated = 0

        @property
        def make_metrics(self) -> None:
            Shy.evaluated += 1

        @hookimpl
        def make_loss(self) -> None: ...

    plugin = Shy()

    assert find_problems(plugin) == []
    assert [impl.hook for impl in implementations(plugin)] == ["make_loss"]
    assert Shy.evaluated == 0


def test_a_correct_plugin_has_no_problems_and_says_what_it_takes() -> None:
    class Fine:
        @hookimpl
        def make_loss(self, ctx: Any, task: Any) -> None: ...

        @hookimpl(specname="freeze", wrapper=True)
        def holds(self) -> Generator[None, Any, Any]:
            return (yield)

        def helps(self, anything: Any = None) -> None: ...

        def _private(self) -> None: ...

    plugin = Fine()

    assert find_problems(plugin) == []
    assert [(impl.hook, impl.arguments, impl.wrapper) for impl in implementations(plugin)] == [
        ("freeze", (), True),
        ("make_loss", ("ctx", "task"), False),
    ]


def test_hooks_may_be_static_or_class_methods_or_inherited() -> None:
    class Base:
        @hookimpl
        def make_schedule(self) -> None: ...

    class Child(Base):
        @staticmethod
        @hookimpl
        def make_loss(task: Any) -> None: ...

        @classmethod
        @hookimpl
        def freeze(cls, model: Any) -> None: ...

    plugin = Child()

    assert find_problems(plugin) == []
    assert {impl.hook: impl.arguments for impl in implementations(plugin)} == {
        "freeze": ("model",),
        "make_loss": ("task",),
        "make_schedule": (),
    }


def test_the_place_of_an_implementation_is_that_of_the_function_below_its_decorators() -> None:
    def plain(task: Any) -> None: ...

    @wraps(plain)
    def decorated(task: Any) -> None: ...

    plugin = type("Plugin", (), {"make_loss": staticmethod(hookimpl(decorated))})()

    (impl,) = implementations(plugin)

    assert impl.where == f"{__file__}:{plain.__code__.co_firstlineno}"
