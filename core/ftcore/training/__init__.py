"""From a configuration to trained weights: assembly, the loop, gradients, what is saved."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .assemble import Assembly
    from .evaluation import evaluate
    from .loop import fit, train_epoch, train_step
    from .state import Progress, TrainingParts

__all__ = ["Assembly", "Progress", "TrainingParts", "evaluate", "fit", "train_epoch", "train_step"]

__getattr__ = lazy(
    __name__,
    {
        "assemble": "Assembly",
        "evaluation": "evaluate",
        "loop": "fit train_epoch train_step",
        "state": "Progress TrainingParts",
    },
)
