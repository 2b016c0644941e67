"""What is shown about a run, a network or data, before and after training."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .comparison import compare
    from .data_quality import check
    from .explain import explain_without_building
    from .model_summary import summarize_model
    from .redraw import rewrite_reports

__all__ = ["check", "compare", "explain_without_building", "rewrite_reports", "summarize_model"]

__getattr__ = lazy(
    __name__,
    {
        "comparison": "compare",
        "data_quality": "check",
        "explain": "explain_without_building",
        "model_summary": "summarize_model",
        "redraw": "rewrite_reports",
    },
)
