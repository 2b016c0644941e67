"""Tensors that are spread over the processes of a run by rows, as `torch.distributed.tensor.DTensor`, and their files.

What is asked of all processes at a time, in the same order: `full_tensor`, `write_safetensors_streaming`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from safetensors import safe_open

from ftcore.distributed.dtensor import full_tensor, is_sharded, local_row_range, local_tensor

from .strict_json import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor


SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of the dtypes in a safetensors file."""

FIRST_ROW_KEY = "first rows"
"""In the metadata of a file of one process: tensor -> which of its rows comes first there."""


def write_safetensors_streaming(tensors: Mapping[str, Any], file: Path | None) -> None:
    """Write tensors as a safetensors file, one after the other, so that no process ever has all of them whole.

    Args:
        tensors: name -> tensor, spread or not.
        file: None in the processes that only give what they have.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that each is aligned
    header, end = {}, 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = to_json(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") if file else nullcontext() as out:
        if out:
            out.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered.values():
            given = full_tensor(tensor.detach())
            if out:
                out.write(_bytes(given))


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def local_shards(tensors: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what this process has of the tensors that are spread, and metadata for their file: its first rows."""
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    local = {name: local_tensor(tensor).detach().to("cpu", copy=True).contiguous() for name, tensor in sharded.items()}
    return local, {FIRST_ROW_KEY: to_json({name: local_row_range(tensor)[0] for name, tensor in sharded.items()})}


@frozen
class _Piece:
    """Rows of a tensor in a file.

    Attributes:
        file: a safetensors file, open.
        key: there.
        first: the first of the rows.
    """

    file: Any
    key: str
    first: int

    def read_rows(self, start: int, stop: int | None) -> Tensor:
        """Return the rows that it has of those from `start` to `stop`."""
        kept = self.file.get_slice(self.key)
        length = kept.get_shape()[0]
        begin, end = max(start - self.first, 0), length if stop is None else min(stop - self.first, length)
        found: Tensor = kept[begin : max(begin, end)] if begin < length else kept[0:0]
        return found


class ShardedReader(Mapping[str, Any]):
    """Tensors of a checkpoint by name, whole: those of one file, and of the files where each process wrote its rows."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.pieces: dict[str, list[_Piece]] = {}
        alone = folder / f"{stem}.safetensors"
        for path in [*([alone] if alone.is_file() else []), *sorted(folder.glob("rows-*.safetensors"))]:
            file: Any = safe_open(path, framework="pt")
            places = json.loads(file.metadata()[FIRST_ROW_KEY]) if path != alone else {}
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                name = key if path == alone else key.removeprefix(f"{stem}/")
                if path == alone or key.startswith(f"{stem}/"):
                    first = places.get(key, 0)
                    self.pieces.setdefault(name, []).append(_Piece(file, key, first))

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return some rows of a tensor, by default all of it."""
        pieces = self.pieces[name]
        if not self.shape(name):
            number: Tensor = pieces[0].file.get_tensor(pieces[0].key)
            return number
        found = [piece.read_rows(start, stop) for piece in sorted(pieces, key=lambda piece: piece.first)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        shapes = [piece.file.get_slice(piece.key).get_shape() for piece in self.pieces[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def fill(self, tensors: Mapping[str, Any]) -> None:
        """Give tensors the content that the files have for their names; spread ones read their rows alone.

        Raises:
            ValueError: the files have others, or other shapes of them.
        """
        other = tensors.keys() ^ self.keys()
        other |= {name for name in tensors.keys() & self.keys() if self.shape(name) != tuple(tensors[name].shape)}
        if other:
            raise ValueError(f"not the same tensors: {', '.join(sorted(other)[:5])}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                local_tensor(tensor).copy_(self.read(name, *local_row_range(tensor)))


@frozen
class LazyTensor:
    """A tensor that is in files still.

    Attributes:
        stored: the files.
        name: there.
    """

    stored: ShardedReader
    name: str

    def materialise_like(self, parameter: Any) -> Tensor:
        """Return it as a tensor that is spread as a parameter is, if it has its shape; else whole."""
        if not is_sharded(parameter) or self.stored.shape(self.name) != tuple(parameter.shape):
            return self.stored[self.name]
        from torch.distributed.tensor import DTensor

        local = self.stored.read(self.name, *local_row_range(parameter)).to(local_tensor(parameter).device)
        given: Any = {"shape": parameter.shape, "stride": parameter.stride()}
        found: Tensor = DTensor.from_local(local, parameter.device_mesh, parameter.placements, **given)
        return found
