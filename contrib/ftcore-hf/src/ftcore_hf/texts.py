"""Texts with labels as data, and texts as tokens."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from attrs import field, frozen
from ftcore import TokenSpec, UserError, did_you_mean
from ftcore.data import LabelledImages, PackedStrings, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore.config import RunConfig
    from tokenizers import Tokenizer
    from torch import Tensor

    from . import HuggingFaceConfig


@frozen(eq=False)
class Table:
    """The texts of a table, by row.

    Attributes:
        file: the table.
        texts: in its order.
    """

    file: str
    texts: PackedStrings

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, row: int, side: int | None) -> Any:
        """Return a text; there are no other scales of it."""
        del side
        return self.texts[row]

    def name(self, row: int) -> str:
        """Return file and row, from 1, the header left out."""
        return f"{self.file}, row {row + 1}"

    def version(self, row: int) -> str:
        """Return the text."""
        return self.texts[row]


def labelled(file: str, options: HuggingFaceConfig, config: RunConfig) -> LabelledImages:
    """Read a table of texts.

    Raises:
        UserError: it cannot be read, or a column or a value is missing.
    """
    path, kind = Path(file), config.data.task or "classification"
    rows = _rows(path)
    columns = {name: _column(rows, path, name) for name in (options.text, options.target)}
    values: Sequence[Any] = columns[options.target]
    names: tuple[str, ...] = (options.target,)
    if kind == "regression":
        values = _numbers(values, path, options.target)
    elif kind == "multilabel":
        names, values = (), [[label.strip() for label in value.split(";") if label.strip()] for value in values]
    split = options.split or ("split" if "split" in rows[0] else None)
    return LabelledImages(
        images=cast("Any", Table(file, PackedStrings.of(columns[options.text]))),
        task=kind,
        values=values,
        fingerprint=fingerprint(tuple(row.items()) for row in rows),
        names=names,
        splits=_column(rows, path, split) if split else None,
        groups=_column(rows, path, options.group) if options.group else None,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table of texts {path}: {error}") from None
    if not rows:
        raise UserError(f"the table of texts {path} has no rows")
    return rows


def _column(rows: Sequence[Mapping[str, str]], path: Path, name: str) -> list[str]:
    if name not in rows[0]:
        raise UserError(f"{path} has no column {name!r}{did_you_mean(name, rows[0])}; it has {', '.join(rows[0])}")
    values = [row[name] for row in rows]
    missing = [place for place, value in enumerate(values, start=1) if value is None or not value.strip()]
    if missing:
        raise UserError(f"{path}: row {missing[0]} has no {name!r} ({len(missing)} of {len(rows)} rows)")
    return values


def _numbers(values: Sequence[str], path: Path, name: str) -> Any:
    try:
        return np.array([[float(value)] for value in values])
    except ValueError as error:
        raise UserError(f"{path}: column {name!r}: {error}") from None


def found(kind: Any, network: str, **settings: Any) -> Any:
    """Load something of a network from a folder, the hub or its cache.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        return kind.from_pretrained(network, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"hf/{network}: {' '.join(str(error).split())}") from None


def tokenizer_of(network: str, kept: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a network, or the one that a run kept of it."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    if kept:
        return Tokenizer.from_str(kept["tokenizer"])
    tokenizer = found(AutoTokenizer, network)
    if not tokenizer.is_fast:
        raise UserError(f"hf/{network}: {type(tokenizer).__name__} has no fast version, which this plugin needs")
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def padding_of(config: Any) -> int:
    """Return the id of what fills a text up: the network's own, or its end of a text."""
    ids = (config.pad_token_id, config.eos_token_id)
    return next((number for number in ids if isinstance(number, int)), 0)


@frozen
class Tokenize:
    """Text -> token ids (length,) int64.

    Attributes:
        tokenizer: of the network.
        spec: how long texts are made.
    """

    tokenizer: Tokenizer = field(eq=lambda tokenizer: tokenizer.to_str())
    spec: TokenSpec

    def __attrs_post_init__(self) -> None:
        self.tokenizer.enable_truncation(self.spec.length)
        self.tokenizer.enable_padding(length=self.spec.length, pad_id=self.spec.padding)

    def __call__(self, text: str) -> Tensor:
        """Tokenize one text."""
        import torch

        return torch.tensor(self.tokenizer.encode(text).ids)
