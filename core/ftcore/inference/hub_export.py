"""A run's network as a folder for the Hugging Face hub, with a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.system.text import escape_markdown, printable
from ftcore.types.model import TokenSpec

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.types.model import HubExporter
    from ftcore.types.task import Task

    from .load import SavedModel
    from .model import Model


def hub_exporter_of(model: Model, saved: SavedModel) -> HubExporter:
    """Return how the network of a model becomes a folder.

    Raises:
        UserError: there is no way.
    """
    hub = model.single.network.backbone.hub
    if hub is None:
        name = saved.config.model.name or "a custom network"
        raise UserError(
            f"{load_defaults().ADVICE['hub']}, but this is {name}; use --format safetensors for its weights"
        )
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
    task, spec, network = model.task, saved.spec, printable(str(saved.config.model.name)).replace("`", "'")
    measured = {name: value for name, value in saved.description["metrics"].items() if isinstance(value, float)}
    numbers = ", ".join(f"{escape_markdown(name)} {value:.4f}" for name, value in measured.items())
    kind, things = ("text", "texts") if isinstance(spec, TokenSpec) else ("image", "images")
    seen = "" if isinstance(spec, TokenSpec) else f", mean {list(spec.mean)}, standard deviation {list(spec.std)}"
    parts = [
        f"---\nlibrary_name: {hub.library}\npipeline_tag: {kind}-classification\ntags:\n- ftcore\n---",
        f"# {escape_markdown(run)}",
        f"`{network}`, fine-tuned by ftcore on {task.images:,} {things} for {task.name}: "
        f"{', '.join(map(escape_markdown, task.names))}.",
        f"On the validation split, after epoch {saved.description['epoch']}: {numbers}.",
        f"Input: {spec.preprocessing}{seen}.",
        "\n".join(["```python", *hub.usage_code("."), "```"]),
        _legend(task, things),
    ]
    return "\n\n".join(parts) + "\n"


def _legend(task: Task, things: str) -> str:
    """Return a table of what each output means."""
    table = task.legend(things)
    cells = [[escape_markdown(cell) for cell in row] for row in table.rows]
    rows = [table.columns, ["---"] * len(table.columns), *cells]
    said = f"{table.title}\n\n" if table.title else ""
    return said + "\n".join(f"| {' | '.join(row)} |" for row in rows)
