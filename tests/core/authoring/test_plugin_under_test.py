"""What is a plugin's fault, and what it refuses."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.authoring.plugin_under_test import CheckRequest, PluginUnderTest

if TYPE_CHECKING:
    from pathlib import Path

FAULTS = {
    "answers_wrongly": "def make_loss(task):\n    return 3",
    "leaves_parameters_out": "def param_groups(trainable):\n    return []",
    "freezes_everything": (
        "def freeze(model):\n    return FreezePlan(frozen=frozenset(name for name, _ in model.named_parameters()))"
    ),
    "ends_the_process": "def make_loss(task):\n    raise SystemExit(3)",
}
"""Name of a plugin -> its hook."""

REFUSALS = {
    "says_so_with_its_name": "def make_loss(task):\n    raise UserError('says_so_with_its_name.gamma: 3 is too much')",
    "knows_other_networks": "def build_model(name):\n    raise UserError('knows_other_networks. That is all')",
    "answers_beside_focal": "def make_loss(task):\n    return lambda outputs, targets: outputs.mean()",
}


def stopped(name: str, body: str, folder: Path, *others: str) -> tuple[PluginUnderTest, UserError]:
    """Prepare a run with a plugin with which none can be prepared."""
    file = folder / f"{name}.py"
    file.write_text(f"from ftcore import FreezePlan, UserError, hookimpl\n\n\n@hookimpl\n{body}\n", encoding="utf-8")
    subject = PluginUnderTest(CheckRequest(str(file)), folder)
    with pytest.raises(UserError, match=name) as caught:
        subject.prepared("run", *others)
    return subject, caught.value


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_host_blames_on_a_plugin_is_its_fault(tmp_path: Path, name: str) -> None:
    subject, error = stopped(name, FAULTS[name], tmp_path)

    assert subject.is_fault_of_plugin(error)
    assert subject.is_fault_of_plugin(pickle.loads(pickle.dumps(error)))
    assert not subject.is_fault_of_plugin(UserError(str(error), faulty_plugins=["another"]))


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_is_no_fault_whatever_the_message_begins_with(tmp_path: Path, name: str) -> None:
    subject, error = stopped(name, REFUSALS[name], tmp_path, *(["focal"] if "focal" in name else []))

    assert not subject.is_fault_of_plugin(error)
