"""The numbers of tensors, their stages or blocks, for a test to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.models._manipulate import group_parameters

from ftcore.model.freezing import is_submodule_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def by_module(numbers: Mapping[str, int], *, parameters_alone: bool = False) -> dict[str, int]:
    """Module -> the number that all its tensors have."""
    found: dict[str, set[int]] = {}
    for name, number in numbers.items():
        if not parameters_alone or name.endswith(("weight", "bias")):
            found.setdefault(name.rpartition(".")[0], set()).add(number)
    assert {name: some for name, some in found.items() if len(some) > 1} == {}
    return {name: some.pop() for name, some in found.items()}


def timms_own(model: Any, *, coarse: bool) -> dict[str, int]:
    """Number the parameters before the head as timm does."""
    numbers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    return {name: number for name, number in numbers.items() if not is_submodule_of(name, ["fc"])}


def parameters_in(numbers: Mapping[str, int], model: nn.Module) -> dict[str, int]:
    return {name: numbers[name] for name, _ in model.named_parameters() if name in numbers}
