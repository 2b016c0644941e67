"""State as JSON and tensors: what is unpacked is what was packed, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftcore.distributed.dtensor import is_sharded
from ftcore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def serialize(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return state as what JSON can spell, and add its tensors to `tensors`, as copies on the CPU.

    Those that are spread over processes are added as they are.

    Plain values are texts, numbers, truth values and None, in lists, tuples and mappings. What JSON has no word for
    becomes an object of one key that begins with ``$``.

    Args:
        value: the state.
        name: its dotted name; its tensors have names below it.
        tensors: the tensors so far.

    Raises:
        UserError: there is something else in it; the message gives its dotted name.
    """
    import torch

    def inside(item: Any, key: object) -> Any:
        return serialize(item, f"{name}.{key}", tensors)

    match value:
        case torch.Tensor():
            packed: Any = _tensor(value, name, tensors)
        case Mapping():
            packed = {key: inside(item, key) for key, item in value.items()}
            if not all(isinstance(key, str) and not key.startswith("$") for key in value):
                packed = {"$items": [[key, item] for key, item in packed.items()]}
        case list() | tuple():
            items = [inside(item, place) for place, item in enumerate(value)]
            packed = items if isinstance(value, list) else {"$tuple": items}
        case float():
            packed = float(value) if math.isfinite(value) else {"$float": str(float(value))}
        case str() | int() | None:
            packed = value
        case _:
            raise UserError(f"{name} is {value!r:.80}, a {type(value).__name__}, which a checkpoint cannot store")
    return packed


def _tensor(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    sharded = is_sharded(tensor)  # which is written where it is, by all processes
    copy = tensor.detach() if sharded else tensor.detach().to("cpu", copy=True)
    name = f"{name}#{len(tensors)}" if name in tensors else name  # {"a.b": ...} beside {"a": {"b": ...}}
    tensors[name] = copy.contiguous()
    return {"$tensor": name} if sharded or copy.is_contiguous() else {"$tensor": name, "stride": list(copy.stride())}


def deserialize(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `serialize` was given."""
    match value:
        case {"$tensor": name}:
            found: Any = _restore_stride(tensors[name], value.get("stride"))
        case {"$items": items}:
            found = {key: deserialize(item, tensors) for key, item in items}
        case {"$tuple": items}:
            found = tuple(deserialize(item, tensors) for item in items)
        case {"$float": text}:
            found = float(text)
        case dict():
            found = {key: deserialize(item, tensors) for key, item in value.items()}
        case list():
            found = [deserialize(item, tensors) for item in value]
        case _:
            found = value
    return found


def _restore_stride(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """Lay a tensor out in memory as it was: sums over it may round differently otherwise."""
    import torch

    if stride is None or not isinstance(tensor, torch.Tensor):  # but is in files still
        return tensor
    laid: Tensor = torch.empty_strided(tuple(tensor.shape), stride, dtype=tensor.dtype).copy_(tensor)
    return laid
