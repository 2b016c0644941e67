"""A run's network as a folder for the Hugging Face hub, with a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.types.model import TokenSpec

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.types.data import Task
    from ftcore.types.model import HubExporter

    from .load import SavedModel
    from .model import Model


def hub_exporter_of(model: Model, saved: SavedModel) -> HubExporter:
    """Return how the network of a model becomes a folder.

    Raises:
        UserError: there is no way.
    """
    hub = model.single.network.backbone.hub
    if hub is None:
        name = saved.config.model.name or "a network of its own"
        raise UserError(f"{load_defaults().ADVICE['hub']}, and this is {name}; --format safetensors writes its weights")
    return hub


def write(model: Model, saved: SavedModel, hub: HubExporter, folder: Path, run: str) -> None:
    """Write what the library wants, and ``README.md``, the model card.

    Args:
        model: with one network.
        saved: what its folder says of it.
        hub: of its network.
        folder: an empty one.
        run: what the card calls it.
    """
    hub.write(model.module, folder, model.task, saved.spec)
    (folder / "README.md").write_text(model_card(model, saved, hub, run), encoding="utf-8")


def model_card(model: Model, saved: SavedModel, hub: HubExporter, run: str) -> str:
    """Return the model card, Markdown with the hub's header: what it is, how good it was, the lines that use it."""
    task, spec = model.task, saved.spec
    measured = {name: value for name, value in saved.description["metrics"].items() if isinstance(value, float)}
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    kind, things = ("text", "texts") if isinstance(spec, TokenSpec) else ("image", "images")
    seen = "" if isinstance(spec, TokenSpec) else f", mean {list(spec.mean)}, standard deviation {list(spec.std)}"
    parts = [
        f"---\nlibrary_name: {hub.library}\npipeline_tag: {kind}-classification\ntags:\n- ftcore\n---",
        f"# {run}",
        f"`{saved.config.model.name}`, fine-tuned by ftcore on {task.images:,} {things} for {task.kind}: "
        f"{', '.join(task.names)}.",
        f"On the validation split, after epoch {saved.description['epoch']}: {numbers}.",
        f"Input: {spec.preprocessing}{seen}.",
        "\n".join(["```python", *hub.usage_code("."), "```"]),
        _names(task, model.thresholds, things),
    ]
    return "\n\n".join(parts) + "\n"


def _names(task: Task, thresholds: tuple[float, ...], things: str) -> str:
    """Return a table of what each output means."""
    said, columns, values = "", [f"training {things}"], [[f"{count:,}"] for count in task.counts]
    if task.kind == "regression":
        said = "A number is its output times the standard deviation, plus the mean.\n\n"
        columns = ["mean", "standard deviation"]
        values = [[f"{mean:g}", f"{std:g}"] for mean, std in zip(task.mean, task.std, strict=True)]
    elif task.kind == "multilabel":
        columns.append("counts from the probability")
        values = [[*row, f"{least:.4g}"] for row, least in zip(values, thresholds, strict=True)]
    rows = [["name", *columns], ["---"] * (1 + len(columns))]
    rows += [[name, *row] for name, row in zip(task.names, values, strict=True)]
    return said + "\n".join(f"| {' | '.join(row)} |" for row in rows)
