"""What a network gave, saved with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from ftcore import InputSpec, TokenSpec
from ftcore.model.reference_outputs import ReferenceOutputs, reference_inputs, reference_outputs

SPEC = InputSpec(size=(9, 12))


def network(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Linear(280, 3, bias=False)
    nn.init.normal_(head.weight)
    head.weight.data *= scale
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), head)


def given(module: nn.Module, **options: Any) -> ReferenceOutputs:
    found = reference_outputs(module, SPEC, **options)
    assert found is not None
    return found


def test_they_are_what_the_network_gives_in_eval_mode_which_it_is_left_as() -> None:
    module = network().train()
    module[1].eval()
    modes = [child.training for child in module.modules()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    found = given(module)

    assert [child.training for child in module.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found.values), module.eval()(reference_inputs(SPEC)))


def test_the_inputs_are_known_and_differ() -> None:
    first, second = reference_inputs(SPEC)

    assert first.shape == (3, 9, 12)
    assert float(first[2, 4, 5]) == pytest.approx(math.sin(0.11 * 5 + 2) + math.cos(0.07 * 4 + 0.23 * 5))
    assert not torch.equal(first, second)


def test_texts_are_of_tokens_that_there_are() -> None:
    tokens = reference_inputs(TokenSpec(length=5, vocabulary=11))

    assert (tokens.shape, tokens.dtype) == ((2, 5), torch.int64)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 11


def test_the_difference_is_relative_to_the_norm() -> None:
    ours, theirs = ReferenceOutputs(((3.0, 4.0),), 0.0), ReferenceOutputs(((3.0, 4.5),), 0.0)

    assert ours.difference(theirs) == pytest.approx(0.1)
    assert ReferenceOutputs(((0.0, 0.0),), 0.0).difference(ReferenceOutputs(((0.0, 0.0),), 0.0)) == 0


@pytest.mark.parametrize("change", [0.99, 1.01])
def test_one_per_cent_shows_and_another_layout_of_memory_does_not(change: float) -> None:
    ours = given(network())

    assert ours.difference(given(network(change))) > ours.tolerance
    assert ours.difference(given(network().to(memory_format=torch.channels_last))) < ours.tolerance


def test_half_precision_allows_for_its_own_rounding() -> None:
    ours = given(network())
    half = given(network().bfloat16(), autocast=lambda: torch.autocast("cpu", torch.bfloat16))

    assert half.eps == torch.finfo(torch.bfloat16).eps
    assert 0 < half.difference(ours) < half.tolerance
    assert ours.tolerance == 1e-3


def test_a_compiled_network_is_not_compiled_for_them() -> None:
    module, graphs = network(), list[Any]()

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = given(module)
    module.compile(backend=backend)

    assert given(module) == expected
    assert graphs == []


def test_outputs_that_are_not_finite_are_none() -> None:
    assert reference_outputs(network(math.nan), SPEC) is None
