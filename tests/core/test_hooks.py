"""The hooks that there are."""

from __future__ import annotations

from ftcore.hooks import HOOK_ARGUMENTS


def test_the_hooks_are_known_in_the_order_in_which_a_run_calls_them() -> None:
    assert next(iter(HOOK_ARGUMENTS)) == "build_data"
    assert list(HOOK_ARGUMENTS)[-2:] == ["make_observers", "list_models"]
    assert all(arguments[-2:] == ("config", "ctx") for arguments in HOOK_ARGUMENTS.values())
