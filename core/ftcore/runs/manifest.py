"""What made a run: every plugin with its version, origin and source, the libraries, the data."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve

from ftcore.checkpoints import manifest as checkpoints_manifest
from ftcore.checkpoints import to_json
from ftcore.errors import UserError
from ftcore.hooks import HOOK_API
from ftcore.model import freezing
from ftcore.plugins import trust
from ftcore.plugins.discovery import load_defaults
from ftcore.plugins.host import summary
from ftcore.system.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ftcore.config.schema import RunConfig
    from ftcore.plugins.activation import Plugin
    from ftcore.training.state import TrainingParts
    from ftcore.types.data import Data
    from ftcore.types.distributed import Placement

    from .prepared import PreparedRun


REQUIRED_KEYS = frozenset({"hook_api", "hooks", "plugins", "libraries", "data", "config", "weights", "machine"})
"""What must be in a manifest."""

RESULT_NEUTRAL_KEYS = frozenset({"data.cache", "data.cache_gb", "train.workers", "train.log_every", "train.on_oom"})
"""Keys of the config that change no result."""


_INPUT_BEFORE = {"crop_mode": "center"}
"""What was so in every run whose manifest does not describe the input."""


def manifest(ready: PreparedRun) -> dict[str, Any]:
    """Say what answered, with which versions of everything, and what the run starts from."""
    host, data = ready.host, ready.data
    sections = {name: asdict(getattr(host.config, name)) for name in ("model", "data", "train")}
    return {
        "format": checkpoints_manifest.RUN_FORMAT,
        "hook_api": list(HOOK_API),
        "hooks": summary(host),
        "wrappers": {hook: [p.name for p in record.wrapped] for hook, record in host.record.items() if record.wrapped},
        "plugins": [plugin_record(plugin, host.config) for plugin in host.used_plugins()],
        "libraries": {name: metadata.version(name) for name in _libraries()},
        "data": {"source": host.config.data.source, **data_record(data)},
        "config": {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()},
        "input": asdict(ready.assembly.network.spec),
        "weights": _weights(ready.assembly.parts),
        "machine": machine_info(ready.assembly.parts.placement),
        "git_commit": _git_commit(),
    }


def _libraries() -> tuple[str, ...]:
    return ("ftcore", "torch", *load_defaults().LIBRARIES, "pluggy", "torchmetrics", "safetensors")


def _weights(parts: TrainingParts) -> str:
    sharding = parts.placement.sharding
    return sharding.weights if sharding else freezing.state_digest(parts.network)


def machine_info(placement: Placement) -> dict[str, Any]:
    """Say what rounds sums in its own way: the same run on another machine may end in other bits."""
    import torch

    device = placement.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": placement.world_size,
    }


def plugin_record(plugin: Plugin, config: RunConfig) -> dict[str, Any]:
    """Say which plugin this is, so that another one of the same name is told apart."""
    reference = plugin.reference
    options = None if plugin.config is None else asdict(plugin.config)
    return {
        "name": plugin.name,
        "source": reference.source,
        "target": reference.target,
        "origin": plugin.origin,
        "direct_url": direct_url(reference.distribution),
        "sha256": trust.digest(reference.file, reference.module),
        "options": options,
        "option_origins": {key: config.origin(f"plugin.{plugin.name}.{key}") for key in options or {}},
    }


def direct_url(distribution: str | None) -> dict[str, Any] | None:
    """Return where a distribution was installed from (PEP 610): a folder, perhaps editable, or a commit of a VCS.

    None for one that came from an index by name and version, and for what is no distribution.
    """
    text = metadata.distribution(distribution).read_text("direct_url.json") if distribution else None
    return None if text is None else dict(json.loads(text))


def _git_commit() -> str | None:
    """Return the commit of the user's working folder, None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    found = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def read_manifest(run: Path) -> dict[str, Any]:
    """Read the manifest of a run folder.

    Raises:
        UserError: there is none, or it is of another format.
    """
    file = run / "manifest.json"
    try:
        found: dict[str, Any] = read_json(file)
        written = found["format"]
    except FileNotFoundError:
        raise UserError(f"{run} is not a run folder: it has no {file}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None
    if written != checkpoints_manifest.RUN_FORMAT:
        raise UserError(f"{file} has format {written!r}; this ftcore reads format {checkpoints_manifest.RUN_FORMAT}")
    missing = sorted(REQUIRED_KEYS - found.keys())
    if missing:
        raise UserError(f"{file} has no {', '.join(missing)}; another version of ftcore wrote it")
    return found


def data_record(data: Data) -> dict[str, Any]:
    """Say what the data of a run is: its fingerprint, how many samples each split has, and the order of its names."""
    lengths = {"train": len(data.train), "val": len(data.val), "test": 0 if data.test is None else len(data.test)}
    return {"fingerprint": data.fingerprint, **lengths, "names": list(data.task.names)}


def validated_on_test(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say whether a run of an older ftcore validated on its test split; empty where it did not.

    Args:
        old: what the manifest of the run says of its data.
        new: `data_record` of the same data, split as it is now.
    """
    lengths = [(record["train"], record["val"]) for record in (old, new)]
    if "test" in old or not new["test"] or lengths[0] == lengths[1]:
        return ""
    return "an older ftcore validated it on its test split and trained it on images that are now held out"


def drop_run_folder(config: RunConfig, run: Path) -> RunConfig:
    """Forget the run folder that a run's own config names; one that a flag names stays."""
    named_there = config.origin("run.folder") == str(run / "config.toml")
    return evolve(config, run=evolve(config.run, folder=None)) if named_there else config


def version_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in what the making of two runs differs: hook API, libraries, data, and plugins that both use."""
    changes = [f"{name}: {was} then, {now} now" for name, was, now in _pairs(old, new) if was != now]
    return [*changes, *filter(None, [validated_on_test(old["data"], new["data"])])]


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in what a resumed run is not the one that was begun: versions, its config, and who answers."""
    pairs = [(f"config {key}", value, new["config"].get(key)) for key, value in old["config"].items()]
    pairs = [pair for pair in pairs if pair[0].removeprefix("config ") not in RESULT_NEUTRAL_KEYS]
    pairs += [(f"input {key}", value, new["input"].get(key)) for key, value in old.get("input", _INPUT_BEFORE).items()]
    pairs += [(f"hook {hook}", answer, new["hooks"].get(hook)) for hook, answer in old["hooks"].items()]
    then, now = ({p["name"]: p["options"] or {} for p in one["plugins"]} for one in (old, new))
    for name in sorted(then.keys() & now.keys()):
        pairs += [(f"option {name}.{key}", value, now[name].get(key)) for key, value in then[name].items()]
    plain = [(name, was, json.loads(to_json(value))) for name, was, value in pairs]
    changes = (f"{name}: {was} then, {value} now" for name, was, value in plain if was != value)
    return [*version_changes(old, new), *changes]


def machine_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in what the machine differs on which a run is resumed."""
    pairs = [(name, was, new["machine"].get(name)) for name, was in old["machine"].items()]
    return [f"{name}: {was} then, {now} now" for name, was, now in pairs if was != now]


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    yield "hook API", old["hook_api"], new["hook_api"]
    for name, version in old["libraries"].items():
        yield name, version, new["libraries"].get(name)
    yield "starting weights", old["weights"], new["weights"]
    for name in ("fingerprint", "train", "val"):
        yield f"data {name}", old["data"][name], new["data"][name]
    plugins = {plugin["name"]: plugin for plugin in new["plugins"]}
    for plugin in old["plugins"]:
        for name in ("source", "target", "direct_url", "sha256"):
            if plugin["name"] in plugins:
                yield f"plugin {plugin['name']}, {name}", plugin[name], plugins[plugin["name"]][name]
