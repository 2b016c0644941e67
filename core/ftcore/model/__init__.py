"""Networks: heads, freezing, input sizes, stages, weights from files."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .build import Network, build_network
    from .freezing import is_submodule_of, match_modules, modules_holding_only, named_tensors, state_digest
    from .heads import choose_head, derive_backbone, find_heads, head_slot_at
    from .shape_inference import accepted_image_sizes, accepts_image_size, on_meta, output_shapes
    from .stages import block_modules, derive_stages
    from .weights import is_weights_file, load_weights

__all__ = [
    "Network",
    "accepted_image_sizes",
    "accepts_image_size",
    "block_modules",
    "build_network",
    "choose_head",
    "derive_backbone",
    "derive_stages",
    "find_heads",
    "head_slot_at",
    "is_submodule_of",
    "is_weights_file",
    "load_weights",
    "match_modules",
    "modules_holding_only",
    "named_tensors",
    "on_meta",
    "output_shapes",
    "state_digest",
]

__getattr__ = lazy(
    __name__,
    {
        "build": "Network build_network",
        "freezing": "is_submodule_of match_modules modules_holding_only named_tensors state_digest",
        "heads": "choose_head derive_backbone find_heads head_slot_at",
        "shape_inference": "accepted_image_sizes accepts_image_size on_meta output_shapes",
        "stages": "block_modules derive_stages",
        "weights": "is_weights_file load_weights",
    },
)
