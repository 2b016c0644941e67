"""Folders that appear whole or not at all; tensors in safetensors, everything else in JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import asdict
from safetensors.torch import save_file, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from .loop import Parts, Progress

FORMAT = 1
"""Version of the files below; a reader refuses another."""


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make `target` appear whole: write it aside, fsync every file, rename, fsync the parent.

    A folder that is already there is replaced; a process killed in between leaves the old or the new one, or the
    old one beside it under its hidden name.
    """
    mark = uuid.uuid4().hex[:8]
    aside, old = (target.with_name(f".{kind}-{target.name}-{mark}") for kind in ("new", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.mkdir()
    try:
        write(aside)
        for file in aside.iterdir():
            file.chmod(aside.stat().st_mode & 0o666)  # safetensors makes files for the owner alone
            _sync(file)
        _sync(aside)
    except BaseException:
        shutil.rmtree(aside)
        raise
    if target.exists():
        target.rename(old)
    aside.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any, indent: int | None = None) -> str:
    """Spell plain data as JSON; a number that is not finite becomes null, anything but plain data is an error."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write plain data to a file."""
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def save(folder: Path, parts: Parts, progress: Progress) -> Path:
    """Save the state of a run after an epoch as ``folder/step-N``, then drop all but the newest and the best."""
    target = folder / f"step-{progress.step:08d}"
    write_folder(target, lambda aside: _write_state(aside, parts, progress))
    for other in folder.glob("step-*"):
        state = json.loads((other / "state.json").read_text(encoding="utf-8"))
        if other != target and state["progress"]["epoch"] != progress.best["epoch"]:
            shutil.rmtree(other)
    return target


def _write_state(folder: Path, parts: Parts, progress: Progress) -> None:
    tensors, plain = optimizer_state(parts.network, parts.optimizer)
    save_model(parts.network, str(folder / "model.safetensors"))
    save_file(tensors, folder / "optimizer.safetensors")
    state = {
        "format": FORMAT,
        "progress": asdict(progress),
        "optimizer": plain,
        "schedule": {k: v for k, v in parts.schedule.scheduler.state_dict().items() if not k.startswith("lr_lambda")},
        "scaler": parts.precision.scaler.state_dict(),
    }
    write_json(folder / "state.json", state)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state by parameter *name*: its tensors, and its plain values with the groups' settings."""
    import torch

    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors, plain = {}, {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{names[parameter]}/{key}"] = value.detach().cpu().contiguous()
            else:
                plain[f"{names[parameter]}/{key}"] = value
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [names[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"state": plain, "groups": groups}
