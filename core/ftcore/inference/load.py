"""A model read back from the folder of a run, an ensemble or a soup."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import evolve, frozen

from ftcore.checkpoints import atomic, manifest
from ftcore.config import load as config_load
from ftcore.config import schema
from ftcore.config.structure import structure
from ftcore.errors import UserError
from ftcore.plugins import trust
from ftcore.system.files import read_json
from ftcore.types.abilities import Averaged, require
from ftcore.types.model import InputSpec, input_spec_from_dict
from ftcore.types.training import Moment

from .model import Member, Model
from .saved_checks import check_input, check_share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from ftcore.model.reference_outputs import ReferenceOutputs
    from ftcore.plugins.calls import HookCalls
    from ftcore.types.task import Task


T = TypeVar("T")


@frozen
class SavedModel:
    """What a folder says of one network.

    Attributes:
        description: the JSON that `ftcore.runs.folder` wrote.
        file: its weights; names in messages are those of `file` and of the ``model.json`` in its folder.
        config: what builds it again.
        calls: its plugins.
        task: what its outputs mean.
        spec: what its images must look like.
        share: of its say in an ensemble, > 0; all add up to 1.
        reference: outputs of the evaluated network for known inputs; None for older runs.
        moment: when that was; None where nothing listened.
    """

    description: dict[str, Any]
    file: Path
    config: schema.RunConfig
    calls: HookCalls
    task: Task
    spec: InputSpec
    share: float = 1.0
    reference: ReferenceOutputs | None = None
    moment: Moment | None = None


def load(run: str | Path, plugins: Sequence[str] = ()) -> Model:
    """Load the model of a run, an ensemble or a soup: ``ftcore.load("runs/first").predict("image.jpg")``.

    Args:
        run: its folder.
        plugins: those of its plugins that are code of yours, as in ``--plugin``: ``["./hooks.py"]``. What it was made
            with on this machine, and what `ftcore trust` has listed, need not be named.

    Raises:
        UserError: the folder is none of these, a plugin that built a network is gone, its code is not trusted, or a
            network does not answer as the one that its run measured.
    """
    with trust.allow(plugins):
        saved = read_saved(Path(run))
        model = build(saved)
    for one, member in zip(saved, model.members, strict=True):
        check_reference(one, member.module)
    return model


def build(saved: Sequence[SavedModel]) -> Model:
    """Build what a folder holds, as `load` does, and do not ask whether it answers as what was measured."""
    members = tuple(_build(one) for one in saved)
    task = members[0].task
    if len(members) > 1:
        tasks, shares = [member.task for member in members], [member.weight for member in members]
        task = cast("Task", require(task, Averaged, "an ensemble").join(tasks, shares))
    return Model(members, task)


def check_reference(saved: SavedModel, module: nn.Module, autocast: Callable[[], Any] = nullcontext) -> None:
    """Check that a network, wrapped or not, answers as the one that its run measured; `autocast` is that of the run.

    Raises:
        UserError: it does not; the message names what may have changed it.
    """
    if saved.reference is None:
        return
    from ftcore.model.reference_outputs import reference_outputs

    found = reference_outputs(module, saved.spec, autocast)
    difference = saved.reference.difference(found) if found else math.inf
    if difference <= saved.reference.tolerance:
        return
    described, plugins = saved.file.parent / "model.json", ", ".join(saved.description.get("wrapped_by", []))
    cause = (
        f"wrap_devices of {plugins} changes what the network computes, but only in a run and in `ftcore evaluate`; "
        f"change "
        "the network in build_model or build_head instead, and train again"
        if plugins
        else "a library or plugin that builds it has changed; the manifest.json of the run has the versions"
    )
    raise UserError(
        f"the network that {described} describes does not answer as the one that the run measured: its outputs differ "
        f"by {difference:.2g} of their size, where {saved.reference.tolerance:.2g} is rounding: {cause}"
    )


def read_saved(folder: Path) -> tuple[SavedModel, ...]:
    """Read what a folder holds, and build nothing: one network, or several for an ensemble.

    Raises:
        UserError: the folder is not that of a run with a finished epoch, of an ensemble or of a soup.
    """
    return tuple(_of_each(folder, _saved))


def read_configs(folder: Path) -> tuple[schema.RunConfig, ...]:
    """Read what builds the networks of a folder again, and load none of its plugins.

    Raises:
        UserError: as `read_saved`.
    """
    return tuple(_of_each(folder, _config))


def _of_each(folder: Path, read: Callable[[dict[str, Any], Path], T]) -> list[T]:
    file = atomic.resolve_current(folder / "model") / "model.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is not a run folder with a model: it has no {file}; "
            "`ftcore run` writes one when the first epoch is done"
        )
    try:
        description = read_json(file)
        _check_format(description["format"], file)
        first, *others = description.get("members", [description])
        return [read(first, file), *(read(one, file) for one in others)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None


def _check_format(version: object, file: Path) -> None:
    if version not in {1, manifest.MODEL_FORMAT}:
        raise UserError(f"{file} has format {version!r}; this ftcore reads formats 1 and {manifest.MODEL_FORMAT}")


def _config(description: dict[str, Any], file: Path) -> schema.RunConfig:
    """Say what builds a network again."""
    _check_format(description["format"], file)
    origin = str(file)
    if Path(_weights(description)).name != _weights(description):
        raise ValueError(f"its weights are {_weights(description)!r}, not in the same folder")
    named = description["plugins"]
    if not isinstance(named, list) or not all(isinstance(text, str) for text in named):
        raise ValueError(f"its plugins are {named!r:.80}, not a list of names")
    keys = [f"model.{key}" for key in description["model"]]
    options = {name: values for name, values in description["options"].items() if values}
    asked = schema.RunConfig(
        model=structure(description["model"], schema.ModelConfig, "model", dict.fromkeys(keys, origin)),
        plugins=config_load.plugins_of_run(named, [origin] * len(named), file.parent, file.parent.parent),
        options=options,
        origins={f"plugin.{name}.{key}": origin for name, values in options.items() for key in values},
        architecture=description.get("architecture", {}),
    )
    check_input(description["input"])
    check_share(description.get("share", 1.0))
    return evolve(asked, model=evolve(asked.model, weights="none"))  # its own are beside it; none is fetched


def _weights(description: dict[str, Any]) -> str:
    return str(description.get("file", "model.safetensors"))


def _saved(description: dict[str, Any], file: Path) -> SavedModel:
    """Turn the description of a network into what was asked for and what was learnt; activates its plugins."""
    asked = _config(description, file)
    calls = _activated(asked, file)
    return SavedModel(
        description=description,
        file=file.parent / _weights(description),
        config=asked,
        calls=calls,
        task=_read_task(description, calls, file),
        spec=input_spec_from_dict(_tuples(description["input"])),
        share=description.get("share", 1.0),
        reference=_reference(description.get("reference")),
        moment=Moment(**description["moment"]) if "moment" in description else None,
    )


def _activated(config: schema.RunConfig, file: Path) -> HookCalls:
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    try:
        return HookCalls(activate(config))
    except UserError as error:
        raise UserError(f"cannot build the network that {file} describes: {error}") from None


def _read_task(description: dict[str, Any], calls: HookCalls, file: Path) -> Task:
    """Read the task as it is with the metrics of the best epoch; format 1 has a kind and no state."""
    given = description["task"]
    name, state = (given["name"], given["state"]) if "state" in given else _format_1(given)
    kind = calls.make_task(name)
    try:
        task = kind.read(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"no task {name!r} can be read of it: {type(error).__name__}: {error}"
        raise UserError(f"cannot read {file}: {wrong}") from None
    return task.after(description["metrics"])


def _format_1(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return given["kind"], {key: value for key, value in given.items() if key != "kind" and value != []}


def _reference(values: Mapping[str, Any] | None) -> ReferenceOutputs | None:
    from ftcore.model.reference_outputs import ReferenceOutputs

    return ReferenceOutputs(tuple(map(tuple, values["values"])), float(values["eps"])) if values else None


def _build(saved: SavedModel) -> Member:
    from ftcore.model.build import build_network

    described = saved.file.parent / "model.json"
    try:
        network = build_network(saved.config, saved.calls, saved.task, saved.spec)
    except UserError as error:
        raise UserError(f"cannot build the network that {described} describes: {error}") from None
    wrapping = ", ".join(saved.description.get("wrapped_by", []))
    changed = f", which wrap_devices of {wrapping} may have changed" if wrapping else ""
    load_tensors(network.module, saved.file, f"that {described} describes{changed}")
    return Member(network.module.eval(), network, saved.task, saved.share)


def load_tensors(module: nn.Module, file: Path, which: str) -> None:
    """Load weights into a network, in place.

    Raises:
        UserError: the file cannot be read, or is that of another network than `which`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ftcore.model.weights import load_state_dict

    try:
        load_state_dict(module, load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"cannot load {file} into the network {which}: {error}") from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists -> the tuples that the attrs classes hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
