"""The network that another library builds for weights that were exported, and whether it is the run's.

A file of weights says nothing of what lies between them: a ReLU more or less fits the same file.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ftcore.errors import UserError
from ftcore.model.shape_inference import as_tuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .model import Model


TOLERANCE = 1e-4
"""Most by which the outputs of two networks may differ, relative to the largest if that is above 1."""


def usage_code(model: Model, file: str) -> list[str]:
    """Return lines of Python, imports first, that load a file of weights without ftcore; none if there are none."""
    build = model.single.network.backbone.builder_code
    if build is None:
        return []
    load_weights = f"model.load_state_dict(safetensors.torch.load_file({json.dumps(file, allow_nan=False)}))"
    return ["import safetensors.torch", *build(model.task.outputs), load_weights, "model.eval()"]


def build(model: Model, file: str) -> tuple[nn.Module | None, str]:
    """Run the lines that use a file of weights, as anybody would; return their network, or None and the reason."""
    lines = usage_code(model, file)
    if not lines:
        return None, "only ftcore can build the network for these weights"
    names: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec("\n".join(lines), names)
    except Exception as error:  # noqa: BLE001 - whatever another head makes a library say
        reason = " ".join(str(error).split())[:200]
        return None, f"these weights do not fit the library's network: {type(error).__name__}: {reason}"
    return names["model"], ""


def compare(other: nn.Module, model: Model, inputs: Tensor, what: str) -> float:
    """Return the largest difference between the outputs of another library's network and the run's, in float32.

    Both are asked with their heads as they are and with the signs of these turned round: what cuts off one side behind
    a head, such as a ReLU, shows itself whatever the run has learnt.

    Raises:
        UserError: it is more than `TOLERANCE`.
    """
    networks, differences = (model.module, other.eval()), []
    heads = [module.get_submodule(path) for module in networks for path in model.single.network.heads]
    for _ in range(2):
        with torch.inference_mode():
            ours, theirs = (as_tuple(module(inputs))[0].float() for module in networks)
            differences.append(float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max())))
        _negate(heads)  # twice: back to what they were
    if not max(differences) <= TOLERANCE:
        raise UserError(
            f"the run's network differs from the one that {what} builds: with the same weights their outputs differ "
            f"by up to "
            f"{max(differences):g}; nothing was written. Export the run's own with --format torch or --format onnx"
        )
    return max(differences)


@torch.no_grad()
def _negate(modules: list[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.neg_()
