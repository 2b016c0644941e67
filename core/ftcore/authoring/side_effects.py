"""What a plugin may leave behind: in the process, and in a run folder."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
from hashlib import sha256
from pathlib import Path
from pickle import dumps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def process_state() -> dict[str, Any]:
    """Return what belongs to the process and not to a plugin, by what it is called."""
    import torch

    root = logging.getLogger()
    return {
        "environment variables": dict(os.environ),
        "the working directory": str(Path.cwd()),
        "running threads": sorted(thread.name for thread in threading.enumerate()),
        "the logging configuration": (root.level, [repr(handler) for handler in root.handlers]),
        "signal handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "whether gradients are computed": torch.is_grad_enabled(),
    }


def rng_states() -> dict[str, Any]:
    """Return the states of the global random generators, and whether CUDA is initialised."""
    import numpy as np
    import torch

    return {
        "the state of torch's random generator": _digest(torch.get_rng_state().numpy()),
        "the state of numpy's random generator": _digest(np.random.get_state()),  # noqa: NPY002 - the global one is meant
        "the state of Python's random generator": _digest(random.getstate()),
        "whether CUDA is initialised": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
    }


def _digest(value: object) -> str:
    return sha256(dumps(value)).hexdigest()[:12]


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say what has changed, how; of environment variables only which, for what is in them may be secret."""
    lines = []
    for what, old in before.items():
        new = after[what]
        if old != new:
            how = differences(new, old) if isinstance(old, dict) else f"from {old} to {new}"
            lines.append(f"{what} ({how})")
    return "; ".join(lines)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Name what differs between two mappings."""
    return ", ".join(sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)))


def run_digests(folder: Path) -> dict[str, str]:
    """Return a digest of everything that a run left, but for times, by name."""
    times = dict.fromkeys(("seconds", "training_seconds", "samples_per_second", "data_wait"))
    newest = max((folder / "checkpoints").iterdir())
    state: dict[str, Any] = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    progress = state["progress"] | times | {"current": state["progress"]["current"] | times}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = state | {"progress": progress, "metrics_bytes": 0, "metrics": [json.loads(line) | times for line in lines]}
    spelt = {
        f"{name} in state.json": json.dumps(value, sort_keys=True, allow_nan=False).encode()
        for name, value in values.items()
    }
    files = {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}
    return {name: sha256(content).hexdigest() for name, content in (files | spelt).items()}
