"""A network of transformers as a folder for the Hugging Face hub: what ``from_pretrained`` loads by name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen
from ftcore import InputSpec, Task, TokenSpec, UserError, format_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import nn

RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers, which transformers uses."""
PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


@frozen
class TransformersHub:
    """See `ftcore.HubExporter`.

    Attributes:
        kind: class of transformers that loads the network.
        wrap: what makes of its network one that ftcore trains.
        tokenizer: of a network that reads texts.
    """

    kind: Any
    wrap: Callable[[nn.Module], nn.Module]
    tokenizer: Tokenizer | None = None
    library: str = "transformers"

    def write(self, network: nn.Module, folder: Path, task: Task, spec: InputSpec) -> None:
        """Write configuration, weights, and the processor or the tokenizer."""
        model: Any = network.model
        names = dict(enumerate(task.names))
        model.config.id2label, model.config.label2id = names, {name: place for place, name in names.items()}
        if task.name not in PROBLEMS:
            raise UserError(
                f"transformers has no problem type for a task {task.name!r}; it has {format_names(PROBLEMS)}"
            )
        model.config.problem_type = PROBLEMS[task.name]
        with _quiet():
            model.save_pretrained(folder)
        feeds = _tokenizer(self.tokenizer, spec) if self.tokenizer else _processor(spec)
        feeds.save_pretrained(folder)

    def read(self, folder: Path) -> nn.Module:
        """Build what a folder holds.

        Raises:
            UserError: it holds other weights than transformers' network of its configuration has.
        """
        with _quiet():
            network, found = self.kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        others = sorted({*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]})
        if others:
            raise UserError(
                f"transformers does not build this network again: it has another {format_names(others)}; nothing was "
                "written"
            )
        return self.wrap(network).eval()

    def usage_code(self, folder: str) -> list[str]:
        """Return lines of Python that use a folder."""
        kind, name = self.kind.__name__, "tokenizer" if self.tokenizer else "processor"
        feeds = "AutoTokenizer" if self.tokenizer else "AutoImageProcessor"
        return [
            f"from transformers import {feeds}, {kind}",
            "",
            f'model = {kind}.from_pretrained("{folder}").eval()',
            f'{name} = {feeds}.from_pretrained("{folder}")',
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars of files that are written and read in no time, and reports that are judged here, from people."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _processor(spec: InputSpec) -> Any:
    """Return what resizes, crops the middle and normalises, as ftcore's transform does.

    Raises:
        UserError: no processor of transformers does that.
    """
    from transformers import BitImageProcessor

    (height, width), (tall, wide) = spec.size, spec.resize_size
    if spec.crop_mode == "pad" or (spec.crop_mode == "center" and tall != wide):
        raise UserError(
            f"no processor of transformers does what this run did ({spec.preprocessing}); one of model.crop = 'squash' "
            "can be exported as hf, or this one with --format safetensors, onnx or torch"
        )
    return BitImageProcessor(
        size={"height": tall, "width": wide} if spec.crop_mode == "squash" else {"shortest_edge": tall},
        crop_size={"height": height, "width": width},
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        resample=RESAMPLING[spec.interpolation],
        do_convert_rgb=spec.channels == 3,
    )


def _tokenizer(tokenizer: Tokenizer, spec: InputSpec) -> Any:
    """Return a tokenizer that fills up with what the network does not look at."""
    from transformers import PreTrainedTokenizerFast

    assert isinstance(spec, TokenSpec)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=tokenizer.id_to_token(spec.padding), model_max_length=spec.length
    )
