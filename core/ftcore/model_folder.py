"""A run's network as a folder for the Hugging Face hub: what timm, and transformers through it, load by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from .backbone import InputSpec
    from .ensemble import Model
    from .predict import Saved

CARD_HEADER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---"""
LEFT_OUT = frozenset({"fixed_input_size", "min_input_size", "pool_size", "tag", "test_crop_pct", "test_input_size"})
"""Of what timm says of its pre-trained weights, that which is not so of the run's."""


def write(model: Model, saved: Saved, folder: Path, run: str) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``README.md``, the model card.

    Args:
        model: with one network, of timm.
        saved: what its folder says of it.
        folder: an empty one.
        run: what the card calls it.

    Raises:
        UserError: the network is not timm's.
    """
    from timm.models import save_for_hf

    network: Any = model.module
    name = saved.asked.model.name or ""
    if not (name.startswith("timm/") and hasattr(network, "pretrained_cfg")):
        raise UserError(
            f"the hub's format is for networks that timm builds, and this is {name or 'a network of its own'}; "
            "--format safetensors writes its weights"
        )
    network.pretrained_cfg = _described(network, saved.spec)
    network.num_classes = model.task.outputs
    save_for_hf(network, str(folder), {"label_names": list(model.task.names)}, safe_serialization=True)
    _leave_to_transformers(folder / "config.json")
    (folder / "README.md").write_text(card(model, saved, run), encoding="utf-8")


def _leave_to_transformers(config: Path) -> None:
    """Leave the number of classes out of the arguments: it is beside them, and transformers passes it by itself."""
    described = json.loads(config.read_text(encoding="utf-8"))
    described.get("model_args", {}).pop("num_classes", None)
    config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _described(network: Any, spec: InputSpec) -> dict[str, Any]:
    """Return timm's description of the network, with the run's own input."""
    known = {key: value for key, value in dict(network.pretrained_cfg).items() if key not in LEFT_OUT}
    ours = {
        "input_size": (spec.channels, *spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_fraction,
        "crop_mode": "center",
    }
    return {**known, **ours}


def card(model: Model, saved: Saved, run: str) -> str:
    """Return the model card, Markdown with the hub's header: what it is, how good it was, the lines that use it."""
    task, spec = model.task, saved.spec
    measured = {name: value for name, value in saved.description["metrics"].items() if isinstance(value, float)}
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    names = [f"| {name} | {count:,} |" for name, count in zip(task.names, task.counts, strict=False)]
    parts = [
        CARD_HEADER,
        f"# {run}",
        f"`{saved.asked.model.name}`, fine-tuned by ftcore on {task.images:,} images for {task.kind}: "
        f"{', '.join(task.names)}.",
        f"On the validation split, after epoch {saved.description['epoch']}: {numbers}.",
        f"Input: {spec}, mean {list(spec.mean)}, standard deviation {list(spec.std)}.",
        "\n".join(["```python", "import timm", "", *lines("."), "```"]),
        "\n".join(["| name | training images |", "|---|---|", *names]) if names else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def lines(folder: str) -> list[str]:
    """Return lines of Python that use the folder."""
    return [
        f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
    ]


def read(folder: Path) -> nn.Module:
    """Build what a folder holds, as anybody does with timm.

    Raises:
        UserError: timm cannot.
    """
    import timm

    try:
        network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # whatever another head or another block makes timm say
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"timm does not build this network again: {reason[:300]}; nothing was written") from error
    return network
