"""A network of timm as a folder for the Hugging Face hub: what timm, and transformers through it, load by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore import UserError
from ftcore.runs import to_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ftcore import InputSpec, Task


LEFT_OUT = frozenset({"fixed_input_size", "min_input_size", "pool_size", "tag", "test_crop_pct", "test_input_size"})
"""Of what timm says of its pre-trained weights, that which is not so of the run's."""


@frozen
class TimmHub:
    """See `ftcore.HubExporter`."""

    library: str = "timm"

    def write(self, network: nn.Module, folder: Path, task: Task, spec: InputSpec) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        from timm.models import save_for_hf

        described: Any = network
        described.pretrained_cfg = _pretrained_cfg(described, spec)
        described.num_classes = task.outputs
        save_for_hf(described, str(folder), {"label_names": list(task.names)}, safe_serialization=True)
        _leave_to_transformers(folder / "config.json")

    def read(self, folder: Path) -> nn.Module:
        """Build what a folder holds.

        Raises:
            UserError: timm cannot.
        """
        import timm

        try:
            network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except Exception as error:  # whatever another head or another block makes timm say
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"timm cannot rebuild this network: {reason[:300]}; nothing was written") from error
        return network

    def usage_code(self, folder: str) -> list[str]:
        """Return lines of Python that use a folder."""
        return [
            "import timm",
            "",
            f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        ]


def _leave_to_transformers(config: Path) -> None:
    """Leave the number of classes out of the arguments: it is beside them, and transformers passes it by itself."""
    described = json.loads(config.read_text(encoding="utf-8"))
    described.get("model_args", {}).pop("num_classes", None)
    config.write_text(to_json(described, indent=2) + "\n", encoding="utf-8")


def _pretrained_cfg(network: Any, spec: InputSpec) -> dict[str, Any]:
    """Return timm's description of the network, with the run's own input."""
    known = {key: value for key, value in dict(network.pretrained_cfg).items() if key not in LEFT_OUT}
    return {**known, **spec.data_config()}
