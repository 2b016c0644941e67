"""Adapters of Hugging Face's PEFT for ftcore: ``--plugin lora``, ``--plugin peft``.

Neither torch nor peft is imported before a hook is called, so that listing the plugins costs no more than their
options.
"""

from .merging import merge
from .plugins import Lora, LoraOptions, Peft, PeftOptions

__all__ = ["Lora", "LoraOptions", "Peft", "PeftOptions", "merge"]
