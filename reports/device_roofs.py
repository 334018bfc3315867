"""The roofs of devices: attainable 16-bit rate against arithmetic intensity (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from hardware_specs.spec import HardwareSpec
from reports.blocks import Chart, Variant, hover, plotly_text
from reports.device_points import GROUPS, Roofline, rooflines, spread
from reports.figures import figure, log_axis
from reports.theme import OTHER, SERIES, series_colour
from reports.units import fmt_si, plural

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOKENS = (1, 16, 256, 4096)
MAX_ROOFS = 14
HEIGHT_PX = 520.0


def roofs(specs: Sequence[HardwareSpec], highlighted: Sequence[str]) -> Chart:
    """Draw the roofs of the chosen devices, then those of each class."""
    lines = rooflines(specs)
    views: list[tuple[str, list[Roofline]]] = []
    chosen = [line for line in lines if line.name in highlighted]
    if chosen:
        views.append(("the chosen devices", chosen))
    for group in GROUPS.values():
        members = sorted((line for line in lines if line.group == group), key=lambda r: -r.flop_per_s)
        parts = [members[start : start + MAX_ROOFS] for start in range(0, len(members), MAX_ROOFS)]
        for number, part in enumerate(parts, start=1):
            views.append((group if len(parts) == 1 else f"{group}, {number} of {len(parts)}", part))
    return Chart(
        "chart-roofs",
        "Roofs",
        "Attainable 16-bit operations per second against arithmetic intensity, both logarithmic, one line "
        "per device.",
        tuple(Variant(label, _roof_figure(members)) for label, members in views),
        picker="Show",
        caption="Native 16-bit rate and main memory. With 16-bit weights a matrix product does one operation "
        "per byte and token, so the dotted lines say how many tokens at once it takes; left of its corner a "
        "device waits for memory, and fewer weight bits move the work to the right.",
    )


def _roof_figure(lines: Sequence[Roofline]) -> go.Figure:
    ridges = [line.ridge_flop_per_byte for line in lines]
    low, high = min(0.3, min(ridges) / 3), max(10000.0, max(ridges) * 4)
    bottom = min(line.bytes_per_s for line in lines) * low * 0.9
    y_range = (bottom, max(line.flop_per_s for line in lines) * 2.5)
    decades = log10(y_range[1] / y_range[0])
    height = max(HEIGHT_PX, 20.0 * len(lines) + 200)
    levels = spread([log10(line.flop_per_s) for line in lines], decades * 17.0 / height)
    y_range = (bottom, max(y_range[1], 10.0 ** (max(levels) + decades * 10.0 / height)))
    traces = [_roof(line, index, low, high) for index, line in enumerate(lines)]
    traces += [_token_line(tokens, y_range) for tokens in TOKENS]
    annotations = [
        _name(line, level, index) for index, (line, level) in enumerate(zip(lines, levels, strict=True))
    ]
    annotations += [_token_label(tokens, y_range[0]) for tokens in TOKENS]
    widest = max(len(line.name) for line in lines)
    return figure(
        traces,
        height_px=int(height) + 60,
        margin={"l": 56, "r": int(16 + 6.6 * widest), "t": 16, "b": 48},
        xaxis=log_axis("Arithmetic intensity [FLOP per byte of main memory]", (low, high)),
        yaxis=log_axis("Attainable 16-bit rate [FLOP/s]", y_range),
        annotations=annotations,
    )


def _roof(line: Roofline, index: int, low: float, high: float) -> go.Scatter:
    import plotly.graph_objects as go

    colour = series_colour(index)
    return go.Scatter(
        x=[low, line.ridge_flop_per_byte, high],
        y=[line.bytes_per_s * low, line.flop_per_s, line.flop_per_s],
        mode="lines+markers",
        name=line.name,
        showlegend=False,
        line={"color": colour, "width": 2, "dash": "solid" if index < len(SERIES) else "dash"},
        marker={"size": [0, 7, 0], "color": colour},
        hovertext=_roof_hover(line),
        hoverinfo="text",
    )


def _name(line: Roofline, level: float, index: int) -> dict[str, Any]:
    """The name of a roof at its right end; ``level`` is where on the logarithmic axis there is room."""
    return {
        "x": 1.0,
        "xref": "paper",
        "y": level,
        "text": plotly_text(line.name),
        "showarrow": False,
        "xanchor": "left",
        "xshift": 6,
        "font": {"size": 11, "color": series_colour(index)},
    }


def _token_label(tokens: int, bottom: float) -> dict[str, Any]:
    return {
        "x": log10(tokens),
        "y": log10(bottom),
        "text": plural(tokens, "token"),
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 3,
        "font": {"size": 11},
    }


def _token_line(tokens: int, y_range: tuple[float, float]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[tokens, tokens],
        y=list(y_range),
        mode="lines",
        line={"color": OTHER, "width": 1, "dash": "dot"},
        opacity=0.7,
        hoverinfo="skip",
        showlegend=False,
    )


def _roof_hover(line: Roofline) -> str:
    return hover(
        line.name,
        f"{line.kind}: {fmt_si(line.flop_per_s, 'FLOP/s')}",
        f"memory: {fmt_si(line.bytes_per_s, 'B/s')}",
        f"corner at {line.ridge_flop_per_byte:.3g} FLOP/B",
    )
