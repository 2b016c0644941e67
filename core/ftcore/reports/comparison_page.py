"""The page of a comparison: one HTML file that asks nothing of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore.charts import Interval, axis_for, intervals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup


SIGNIFICANCE = 0.05
"""Probability below which a difference has a colour."""


def render_html(values: Mapping[str, Any]) -> str:
    """Draw what `ftcore.reports.comparison.compare` returns as values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ftcore.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    runs = values["runs"]
    shared = [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]
    metrics = [name for name in shared if name != values["score"]]
    lower_is_better = not values["higher_is_better"]
    template = environment.get_template("comparison.html.jinja")
    return template.render(
        values=values,
        metrics=metrics,
        chart=_chart(values),
        verdict=lambda found: _verdict(found, lower_is_better=lower_is_better),
    )


def _verdict(found: Mapping[str, float], *, lower_is_better: bool) -> str:
    if found["p"] >= SIGNIFICANCE:
        return ""
    return "better" if (found["difference"] < 0) == lower_is_better else "worse"


def _chart(values: Mapping[str, Any]) -> Markup:
    """Draw scores and their intervals on one axis."""
    scores = [(str(run["folder"]), run["score"]) for run in values["runs"]]
    rows = [Interval(name, score["mean"], score["low"], score["high"]) for name, score in scores]
    axis = axis_for([end for row in rows for end in (row.low, row.high)], values["score"])
    return intervals(f"{values['score']} of each run with its 95 % interval", rows, axis)
