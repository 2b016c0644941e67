"""What the frozen part of a network computes, computed once and kept."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .features import FrozenFeatures, plan_precompute
    from .split_point import SplitPoint, find_split_point

__all__ = ["FrozenFeatures", "SplitPoint", "find_split_point", "plan_precompute"]

__getattr__ = lazy(
    __name__, {"features": "FrozenFeatures plan_precompute", "split_point": "SplitPoint find_split_point"}
)
