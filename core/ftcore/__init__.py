"""ftcore: fine-tune an image network; every decision is one plugin's answer to one hook.

These are the names for plugin authors, together with the modules `ftcore.config`, `ftcore.console`, `ftcore.files`,
`ftcore.freezing`, `ftcore.heads`, `ftcore.images`, `ftcore.labelled`, `ftcore.shapes`, `ftcore.splitting`,
`ftcore.stages`, `ftcore.testing` and `ftcore.weights`; the other modules may change at any time.
Importing this package imports neither torch nor any plugin.
"""

from .backbone import Backbone, HeadSlot, InputSpec, ModelInfo
from .config import RunConfig
from .errors import DataError, UserError, closest, listed, nearest
from .events import EpochEnded, Event, Observer, RunEnded, RunFailed, RunStarted, StepLogged
from .hooks import HOOK_API, hookimpl
from .parts import (
    BatchTransform,
    Context,
    Data,
    FreezePlan,
    Loss,
    ParamGroup,
    Placement,
    Precision,
    Samples,
    Schedule,
    Steps,
    Table,
    Task,
    Transforms,
)

__all__ = [
    "HOOK_API",
    "Backbone",
    "BatchTransform",
    "Context",
    "Data",
    "DataError",
    "EpochEnded",
    "Event",
    "FreezePlan",
    "HeadSlot",
    "InputSpec",
    "Loss",
    "ModelInfo",
    "Observer",
    "ParamGroup",
    "Placement",
    "Precision",
    "RunConfig",
    "RunEnded",
    "RunFailed",
    "RunStarted",
    "Samples",
    "Schedule",
    "StepLogged",
    "Steps",
    "Table",
    "Task",
    "Transforms",
    "UserError",
    "closest",
    "hookimpl",
    "listed",
    "nearest",
]
