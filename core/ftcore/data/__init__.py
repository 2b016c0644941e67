"""From rows of files to batches on a device: splits, decoding, loading."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .dataset import ImageSplit, PackedStrings, fingerprint, make_data
    from .decoding import decode_image, find_images, read_image
    from .files import SHOWN, ImageFiles, ScannedFolder, check_headers, file_version, scan_folders
    from .labels import Kind, LabelledImages
    from .loader import Batch, EpochLoader, make_batches
    from .splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES
    from .task import significant_digits

__all__ = [
    "SHOWN",
    "TEST_NAMES",
    "TRAIN_NAMES",
    "VAL_NAMES",
    "Batch",
    "EpochLoader",
    "ImageFiles",
    "ImageSplit",
    "Kind",
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
    "read_image",
    "scan_folders",
    "significant_digits",
]

__getattr__ = lazy(
    __name__,
    {
        "dataset": "ImageSplit PackedStrings fingerprint make_data",
        "decoding": "decode_image find_images read_image",
        "files": "SHOWN ImageFiles ScannedFolder check_headers file_version scan_folders",
        "labels": "Kind LabelledImages",
        "loader": "Batch EpochLoader make_batches",
        "splits": "TEST_NAMES TRAIN_NAMES VAL_NAMES",
        "task": "significant_digits",
    },
)
