"""Colours and plotly templates. Trace colours are mid-tones that read on light and on dark ground."""

from __future__ import annotations

import itertools
import math
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

CHOSEN = "#e0533d"
ORIGIN_COLOURS = {"exact": "#4f6bed", "tpe": "#0f9d8a", "uniform": "#8a8f98"}
OTHER = "#8a8f98"
TAG_COLOURS = {"predicted": "#4f6bed", "measured": "#0f9d8a", "calibrated": "#c98a1b", "mixed": "#9a5fc7"}
PHASE_COLOURS = {"prefill": "#4f6bed", "decode": "#0f9d8a"}
BOUND_COLOURS = {"compute": "#e0533d", "memory": "#4f6bed", "launch": "#c98a1b"}
PART_COLOURS = {"weights": "#4f6bed", "kv": "#0f9d8a", "activations": "#c98a1b", "reserve": "#8a8f98"}
ORIGIN_WORDS = {"exact": "exact solver", "tpe": "TPE search", "uniform": "uniform baseline"}
ORIGIN_SYMBOLS = {"exact": "circle", "tpe": "diamond", "uniform": "square"}
SERIES = ("#4f6bed", "#0f9d8a", "#c98a1b", "#c2558f", "#6f9f3c", "#9a5fc7", "#2f93c4", "#b5653a")

# Few bits dark, many bits bright; the ends stay clear of both page colours.
# The stops are log2 of 2, 3, 4, 5, 6, 8 and 16 bits on the range 1 to 4.
BITS_SCALE: tuple[tuple[float, str], ...] = (
    (0.0, "#553081"),
    (0.195, "#434a8c"),
    (0.333, "#32678e"),
    (0.44, "#27818e"),
    (0.528, "#1f978a"),
    (0.667, "#8fdc94"),
    (1.0, "#f0e05a"),
)
HEAT_SCALE = [
    [0.0, "#2c4a6e"],
    [0.25, "#4f7aa8"],
    [0.5, "#a9b8b0"],
    [0.75, "#e39a55"],
    [1.0, "#c23b2e"],
]


def series_colour(index: int) -> str:
    """Return the colour of a series; after the last it starts again."""
    return SERIES[index % len(SERIES)]


def bits_colour(bits: float) -> str:
    """Return the colour of a bit width on ``BITS_SCALE``, mixed linearly between the stops."""
    place = min(max((math.log2(bits) - 1) / 3, 0.0), 1.0)
    for (low, first), (high, second) in itertools.pairwise(BITS_SCALE):
        if place <= high:
            share = (place - low) / (high - low)
            mixed = (
                round(int(first[i : i + 2], 16) * (1 - share) + int(second[i : i + 2], 16) * share)
                for i in (1, 3, 5)
            )
            return "#" + "".join(f"{channel:02x}" for channel in mixed)
    return BITS_SCALE[-1][1]


def templates() -> dict[str, dict[str, Any]]:
    """Return the plotly templates of the light and the dark page."""
    return {
        "light": _template(text="#1d2330", muted="#5b6472", grid="#e4e7ec", hover_ground="#ffffff"),
        "dark": _template(text="#e6e9ef", muted="#a3acba", grid="#333b49", hover_ground="#1c222d"),
    }


def _template(*, text: str, muted: str, grid: str, hover_ground: str) -> dict[str, Any]:
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"color": muted, "size": 12},
        "title": {"font": {"color": text, "size": 13}, "standoff": 12},
        "automargin": True,
        "ticks": "outside",
        "ticklen": 5,
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"font": {"color": text, "size": 12}, "bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {
                "bgcolor": hover_ground,
                "bordercolor": grid,
                "font": {"color": text, "family": FONT, "size": 12},
                "align": "left",
            },
            "annotationdefaults": {"font": {"color": muted, "size": 12}},
            "coloraxis": {"colorbar": {"outlinewidth": 0}},
        },
        "data": {
            "heatmap": [{"colorbar": {"outlinewidth": 0, "tickfont": {"color": muted, "size": 12}}}],
        },
    }
