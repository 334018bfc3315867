"""How the figures of all sections are made: one base layout, and their exact text in the page."""

from __future__ import annotations

from math import log10
from typing import TYPE_CHECKING, Any

from dse.content import canonical_json
from reports.blocks import Chart

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figure(traces: list[Any], *, height_px: int, **layout: Any) -> go.Figure:
    """Return a figure with the report's margins and legend; ``layout`` holds plotly layout keys."""
    import plotly.graph_objects as go

    base: dict[str, Any] = {
        "height": height_px,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hovermode": "closest",
        "dragmode": False,
    }
    return go.Figure(data=traces, layout=base | layout)


def chart_json(chart: Chart) -> str:
    """Return the data of a chart for the page's script: canonical JSON without the theme's template.

    The characters ``<``, ``>`` and ``&`` are escaped, so that no text can close the script element.
    """
    views = []
    for variant in chart.variants:
        drawing = variant.figure.to_plotly_json()
        drawing["layout"].pop("template", None)
        views.append({"label": variant.label, "data": drawing["data"], "layout": drawing["layout"]})
    document: dict[str, Any] = {"views": views}
    if chart.axes is not None:
        picker = chart.axes
        document["axes"] = {
            "x": picker.x,
            "y": picker.y,
            "front": picker.front_trace,
            "fronts": picker.fronts,
            "choices": [
                {
                    "title": c.title,
                    "suffix": c.suffix,
                    "format": c.tick_format,
                    "log": c.log,
                    "values": c.values,
                }
                for c in picker.choices
            ],
        }
    text = canonical_json(document)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def log_axis(title: str, bounds: tuple[float, float]) -> dict[str, Any]:
    """Return a logarithmic axis that shows ``bounds``, one tick per decade."""
    return {
        "type": "log",
        "title": {"text": title},
        "range": [log10(bounds[0]), log10(bounds[1])],
        "dtick": 1,
        "tickformat": "~s",
    }
