"""The page of a comparison: one HTML file that asks nothing of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


LEFT, WIDTH, ROW = 260.0, 440.0, 34.0
"""Of the chart, in its own units: where its axis begins, how long it is, the height of a run."""

MAX_NAME_CHARS = 34
"""Of a run's name in the chart, at most: its end."""

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
    lower_is_better = values["score"].endswith("error")
    template = environment.get_template("comparison.html.jinja")
    return template.render(
        values=values,
        metrics=metrics,
        chart=_chart(runs),
        verdict=lambda found: _verdict(found, lower_is_better=lower_is_better),
    )


def _verdict(found: Mapping[str, float], *, lower_is_better: bool) -> str:
    if found["p"] >= SIGNIFICANCE:
        return ""
    return "better" if (found["difference"] < 0) == lower_is_better else "worse"


def _chart(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Place scores and their intervals on one axis."""
    scores = [run["score"] for run in runs]
    low, high = min(score["low"] for score in scores), max(score["high"] for score in scores)
    width = high - low or 1.0

    def at(value: float) -> float:
        return float(round(LEFT + WIDTH * (value - low) / width, 1))

    rows = [
        {
            "name": name if len(name := str(run["folder"])) <= MAX_NAME_CHARS else f"…{name[-MAX_NAME_CHARS + 1 :]}",
            "y": ROW * (place + 0.5),
            **{end: at(run["score"][end]) for end in ("low", "high")},
            "at": at(run["score"]["mean"]),
        }
        for place, run in enumerate(runs)
    ]
    ticks = [{"at": at(low + width * part), "text": f"{low + width * part:.3g}"} for part in (0.0, 0.5, 1.0)]
    return {"rows": rows, "ticks": ticks, "height": ROW * len(rows) + 28}
