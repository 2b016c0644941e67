"""A run from its configuration to its report, and the folder that it leaves."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from ftcore.checkpoints.atomic import write_file
    from ftcore.checkpoints.strict_json import to_json

    from .log import RunLog, read_lines, read_warnings
    from .prepared import PreparedRun, prepare
    from .run import fit, replay, resume

__all__ = [
    "PreparedRun",
    "RunLog",
    "fit",
    "prepare",
    "read_lines",
    "read_warnings",
    "replay",
    "resume",
    "to_json",
    "write_file",
]

__getattr__ = lazy(
    __name__,
    {
        ".checkpoints.atomic": "write_file",
        ".checkpoints.strict_json": "to_json",
        "log": "RunLog read_lines read_warnings",
        "prepared": "PreparedRun prepare",
        "run": "fit replay resume",
    },
)
