"""Hugging Face's transformers for ftcore: ``--plugin hf --model hf/NAME_OR_FOLDER``, for images and for texts.

transformers is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import evolve, field, frozen, validators
from ftcore import TokenSpec, Transforms, hookimpl

if TYPE_CHECKING:
    from ftcore import Backbone, Context, Data, InputSpec
    from ftcore.config import RunConfig

__all__ = ["HuggingFace", "HuggingFaceConfig"]

MODELS = "hf/"
"""How the name of a network starts that this plugin answers for."""
TEXTS = "texts:"
"""How a source of data starts that this plugin answers for."""


@frozen
class HuggingFaceConfig:
    """Options of `hf`.

    Attributes:
        length: tokens that a text is cut to or filled up to, > 0; by default 128, or what the network takes if less.
        text: column with the texts, in a table of ``--data texts:FILE``.
        target: column to learn.
        group: column with what no split may cut, e.g. the author.
        split: column with the name of the split; by default ``split`` if there is one.
        attention: how attention is computed, as ``attn_implementation`` of transformers.
    """

    length: int | None = field(default=None, validator=validators.optional(validators.gt(0)))
    text: str = "text"
    target: str = "label"
    group: str | None = None
    split: str | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"


class HuggingFace:
    """Answers for networks ``hf/...`` and for sources ``texts:...``."""

    Config = HuggingFaceConfig

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Read a table of texts: CSV or TSV."""
        if source is None or not source.startswith(TEXTS):
            return None
        from ftcore.data import make_data, parse_targets

        from .texts import labelled

        found = labelled(source.removeprefix(TEXTS), self.config, config)
        if found.task not in {"classification", "multilabel", "regression"}:  # another plugin's reads cells itself
            rows = ([cell] for cell in found.values)
            found = evolve(found, values=parse_targets(ctx.make_task(found.task), rows, found.images.name))
        return make_data(found, config, ctx)

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build an image or a text classifier of transformers, from the hub, its cache or a folder."""
        if name is None or not name.startswith(MODELS):
            return None
        from .models import build

        return build(name.removeprefix(MODELS), weights, self.config, config.architecture)

    @hookimpl
    def make_transforms(self, spec: InputSpec, config: RunConfig) -> Transforms | None:
        """Answer for texts; pictures are made into what the network wants to see by any other plugin."""
        name = config.model.name
        if not isinstance(spec, TokenSpec) or name is None or not name.startswith(MODELS):
            return None
        from .texts import Tokenize, tokenizer_of

        tokenize = Tokenize(tokenizer_of(name.removeprefix(MODELS), config.architecture), spec)
        return Transforms(train=tokenize, evaluate=tokenize)
