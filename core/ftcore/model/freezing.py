"""Apply a `FreezePlan` and check that it held; only the host does."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ftcore.errors import UserError, did_you_mean, format_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from ftcore.types.model import FreezePlan


def is_submodule_of(name: str, roots: Iterable[str]) -> bool:
    """Whether a dotted name is one of `roots` or below one: ``layer1.0`` is under ``layer1``, ``layer10`` is not."""
    return any(name == root or name.startswith(f"{root}.") or not root for root in roots)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, in the order of the modules; also those that are not saved.

    A tensor that several modules share is there once.
    """
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            tensors[f"{path}.{name}" if path else name] = tensor
    return _unique(tensors)


def _unique(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out tensors that are there already under another name."""
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}


def modules_holding_only(model: nn.Module, tensors: Collection[str]) -> set[str]:
    """Return the modules that hold parameters or buffers, and none but `tensors`."""
    inside: set[str] = set()
    outside: set[str] = set()
    for name in named_tensors(model):
        segments = name.split(".")
        owners = {".".join(segments[:depth]) for depth in range(len(segments))}
        (inside if name in tensors else outside).update(owners)
    return inside - outside


def unfrozen_names(plan: FreezePlan, epoch: int) -> set[str]:
    """Names of the modules and parameters that the plan has released by `epoch` (from 0)."""
    return {name for start, names in plan.unfreeze_at.items() if start <= epoch for name in names}


def is_trainable(plan: FreezePlan, name: str, released: Collection[str]) -> bool:
    """Whether a parameter learns once the modules and parameters of `released` are."""
    return not is_submodule_of(name, plan.never_unfreeze) and (
        name not in plan.frozen or is_submodule_of(name, released)
    )


def ever_trainable_parameters(model: nn.Module, plan: FreezePlan) -> dict[str, nn.Parameter]:
    """Return the parameters that learn in some epoch, by name."""
    released = unfrozen_names(plan, max(plan.unfreeze_at, default=0))
    return {name: parameter for name, parameter in model.named_parameters() if is_trainable(plan, name, released)}


def apply_requires_grad(model: nn.Module, plan: FreezePlan, epoch: int) -> None:
    """Set ``requires_grad`` for an epoch (from 0)."""
    released = unfrozen_names(plan, epoch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable(plan, name, released))


def set_frozen_eval(model: nn.Module, plan: FreezePlan, epoch: int) -> None:
    """Put the frozen modules in eval mode, after everything was put in train mode."""
    modules = dict(model.named_modules())
    for name in plan.eval_modules:
        modules[name].eval()
    for name in unfrozen_names(plan, epoch) & modules.keys():
        modules[name].train()
    for name in plan.never_unfreeze:
        modules[name].eval()


def stays_in_eval(plan: FreezePlan, name: str, released: Collection[str]) -> bool:
    """Whether a module, or the module of a buffer, stays in eval mode."""
    return is_submodule_of(name, plan.never_unfreeze) or (
        is_submodule_of(name, plan.eval_modules) and not is_submodule_of(name, released)
    )


def frozen_tensors(model: nn.Module, plan: FreezePlan, epoch: int) -> dict[str, Tensor]:
    """Return what must not change in an epoch: parameters that do not learn, and buffers of modules in eval mode.

    Buffers that are not saved with the network are left out: networks compute them anew when they need them.
    """
    released, saved = unfrozen_names(plan, epoch), model.state_dict().keys()
    parameters = {name: p for name, p in model.named_parameters() if not is_trainable(plan, name, released)}
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {
        **parameters,
        **{name: buffer for name, buffer in buffers.items() if _buffer_is_frozen(plan, name, released)},
    }


def _buffer_is_frozen(plan: FreezePlan, buffer: str, released: Collection[str]) -> bool:
    return stays_in_eval(plan, buffer, released) or (buffer in plan.frozen and not is_submodule_of(buffer, released))


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes in hex; of its shape alone where it is on the meta device.

    Of a tensor that is spread over processes, that of what this one has.
    """
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def state_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers that are saved, in hex."""
    return hashlib.sha256(" ".join(tensor_digests(model.state_dict()).values()).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    import torch

    from ftcore.distributed.dtensor import local_tensor

    if tensor.is_meta:
        return str(tuple(tensor.shape))
    content = local_tensor(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().data).hexdigest()


def check_frozen_modules_in_eval(model: nn.Module, plan: FreezePlan, epoch: int) -> None:
    """Check, while an epoch's training ends, that what was held in eval mode still is.

    Raises:
        UserError: something put a frozen module in train mode.
    """
    released = unfrozen_names(plan, epoch)
    moved = [name for name, module in model.named_modules() if module.training and stays_in_eval(plan, name, released)]
    if moved:
        raise UserError(
            f"frozen modules were put in train mode in epoch {epoch + 1}: {_first(moved)}; an "
            "observer, a hook or the network itself called train()"
        )


def check_unchanged(digests: Mapping[str, str], tensors: Mapping[str, Tensor], epoch: int) -> None:
    """Check at the end of an epoch that the frozen tensors are, bit for bit, what they were when the run began.

    Raises:
        UserError: one of them changed, or is new; the message names it.
    """
    changed = [name for name, digest in tensor_digests(tensors).items() if digest != digests.get(name)]
    if changed:
        raise UserError(
            f"{len(changed)} of {len(tensors)} frozen tensors changed in epoch {epoch + 1}: {_first(changed)}; "
            "an observer, a hook or the network itself wrote to them"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def match_modules(pattern: str, model: nn.Module, option: str) -> list[str]:
    """Return the modules and parameters whose whole dotted name a glob matches, segment by segment.

    Args:
        pattern: ``layer1`` is not ``layer10``; ``layer*.0.bn?`` matches three segments.
        model: the network.
        option: what the pattern was given to, for the message.

    Raises:
        UserError: it matches nothing.
    """
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()] if name]
    segments = pattern.split(".")
    found = [name for name in names if _segments_match(segments, name.split("."))]
    if not found:
        tops = {name for name in names if name.count(".") <= pattern.count(".")}
        top = format_names(name for name in names if "." not in name)
        raise UserError(
            f"{option}: {pattern!r} matches no module or parameter{did_you_mean(pattern, tops)}; top level: {top}"
        )
    return found


def _segments_match(segments: list[str], name: list[str]) -> bool:
    return len(segments) == len(name) and all(map(fnmatchcase, name, segments))


def check_plan(
    make_error: Callable[[str], UserError], plan: FreezePlan, model: nn.Module, heads: Sequence[str]
) -> None:
    """Refuse a plan that names what is not there, or in which no new head learns in the first epoch.

    Args:
        make_error: puts who made the plan before what is wrong with it.
        plan: the answer of `freeze`.
        model: the network with its new heads.
        heads: their paths.
    """
    parameters = {name for name, _ in model.named_parameters()}
    modules = {name for name, _ in model.named_modules()}
    later = {name for names in plan.unfreeze_at.values() for name in names}
    for what, names, known in (
        ("parameters or buffers", plan.frozen, named_tensors(model).keys()),
        ("modules", plan.eval_modules | plan.never_unfreeze, modules),
        ("modules or parameters", later, modules | parameters),
    ):
        wrong = sorted(names - known)
        if wrong:
            raise make_error(
                f": the plan names {len(wrong)} {what} that do not exist: {', '.join(wrong[:5])}"
                f"{did_you_mean(wrong[0], known)}"
            )
    released = unfrozen_names(plan, 0)
    learning = [name for name in parameters if is_trainable(plan, name, released)]
    if not learning:
        raise make_error(": the plan freezes every parameter, so nothing is trainable in the first epoch")
    if not any(is_submodule_of(name, heads) for name in learning):
        raise make_error(
            ": no new head is trainable in the first epoch; it is zero-initialised, so the layers before it get no "
            "gradient"
        )
