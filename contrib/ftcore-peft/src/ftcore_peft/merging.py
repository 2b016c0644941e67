"""Merge what adapters have learnt into the weights of the plain network."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import UserError
from ftcore.runs import to_json

if TYPE_CHECKING:
    from torch import nn

PLUGINS = ("lora", "peft")


def merge(run: str | Path, out: str | Path) -> Path:
    """Write a folder that `ftcore predict` and `ftcore evaluate` take like the run, without PEFT and this package.

    Args:
        run: folder of a run with adapters, or of a soup of such runs.
        out: folder to write, whole or not at all; it may exist if it is empty.

    Returns:
        `out`.

    Raises:
        UserError: the run has no adapters, they do not merge, or `out` holds something.
    """
    from ftcore import load
    from ftcore.inference import read_saved

    run, out = Path(run), Path(out)
    _check_new(out)
    saved = read_saved(run)
    if len(saved) > 1:
        raise UserError(f"{run} is an ensemble; merge its runs one by one")
    module = load(run).module
    merge_adapters(module, str(run))
    _write(run, out, module, plain(saved[0].description))
    return out


def merge_adapters(model: nn.Module, named: str) -> None:
    """Replace each adapted layer by a plain one with the adapter in its weight, in place, by PEFT's own merge.

    Raises:
        UserError: there are none, or what comes out is not finite; `named` is the network in messages.
    """
    from .adapters import tuners

    layers = tuners(model)
    if not layers:
        raise UserError(f"{named} has no adapters to merge")
    for name, layer in layers.items():
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise UserError(f"{named}: the adapter of {name} does not merge: {error}") from error
        model.set_submodule(name, layer.get_base_layer())


def plain(description: dict[str, Any]) -> dict[str, Any]:
    """Return what ``model.json`` says of a network without the plugins of this package."""
    options = {name: values for name, values in description["options"].items() if name not in PLUGINS}
    return {
        **description,
        "plugins": [text for text in description["plugins"] if not is_ours(text)],
        "options": options,
    }


def is_ours(text: str) -> bool:
    """Whether a plugin as it is written in a run folder is one of this package."""
    name, _, distribution = text.partition("@")
    return text.partition(":")[0].partition(".")[0] == "ftcore_peft" or (
        name in PLUGINS and distribution in {"", "ftcore-peft"}
    )


def _write(run: Path, out: Path, module: nn.Module, description: dict[str, Any]) -> None:
    from safetensors.torch import save_model

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        folder = Path(aside) / "new"
        (folder / "model").mkdir(parents=True)
        save_model(module, str(folder / "model" / "model.safetensors"))
        text = to_json(description, indent=2)
        (folder / "model" / "model.json").write_text(text + "\n", encoding="utf-8")
        _copy(run, folder)
        if out.exists():
            out.rmdir()  # it is empty
        folder.rename(out)


def _copy(run: Path, folder: Path) -> None:
    """Copy what `ftcore evaluate` reads: the configuration without these plugins, and what the data was."""
    import tomlkit

    if (run / "manifest.json").is_file():
        shutil.copyfile(run / "manifest.json", folder / "manifest.json")
    if (run / "config.toml").is_file():
        document: Any = tomlkit.parse((run / "config.toml").read_text(encoding="utf-8"))
        document["plugins"] = [text for text in document["plugins"] if not is_ours(text)]
        for name in PLUGINS:
            document["plugin"].pop(name, None)
        for order in document.get("hooks", {}).values():
            order[:] = [name for name in order if name not in PLUGINS]
        (folder / "config.toml").write_text(tomlkit.dumps(document), encoding="utf-8")


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; choose another")
