"""From rows of files to batches on a device: splits, decoding, loading."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .dataset import ImageSplit, LabelledImages, PackedStrings, fingerprint, make_data, parse_targets
    from .decoding import decode_image, find_images, read_image
    from .files import SHOWN, ImageFiles, ScannedFolder, check_headers, file_version, scan_folders
    from .loader import Batch, EpochLoader, make_batches
    from .splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES

__all__ = [
    "SHOWN",
    "TEST_NAMES",
    "TRAIN_NAMES",
    "VAL_NAMES",
    "Batch",
    "EpochLoader",
    "ImageFiles",
    "ImageSplit",
    "LabelledImages",
    "PackedStrings",
    "ScannedFolder",
    "check_headers",
    "decode_image",
    "file_version",
    "find_images",
    "fingerprint",
    "make_batches",
    "make_data",
    "parse_targets",
    "read_image",
    "scan_folders",
]

__getattr__ = lazy(
    __name__,
    {
        "dataset": "ImageSplit LabelledImages PackedStrings fingerprint make_data parse_targets",
        "decoding": "decode_image find_images read_image",
        "files": "SHOWN ImageFiles ScannedFolder check_headers file_version scan_folders",
        "loader": "Batch EpochLoader make_batches",
        "splits": "TEST_NAMES TRAIN_NAMES VAL_NAMES",
    },
)
