"""The drawings of the page of devices: peak against power, roofs, memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from hardware_specs.derived import bandwidth_bytes_per_s, capacity_bytes
from hardware_specs.spec import HardwareSpec
from reports.blocks import Chart, Variant, hover, plotly_text
from reports.device_points import (
    GROUPS,
    PeakPoint,
    Roofline,
    best_points,
    peak_points,
    place_labels,
    rooflines,
    spread,
)
from reports.figures import figure
from reports.theme import CHOSEN, OTHER, series_colour
from reports.units import fmt_si

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {group: series_colour(index) for index, group in enumerate(GROUPS.values())}
SYMBOLS = {32: "square", 16: "circle", 8: "diamond", 6: "hexagon2", 4: "star-triangle-up"}
WIDTH_PX, HEIGHT_PX = 1180.0, 560.0
EFFICIENCIES = (1e10, 1e11, 1e12, 1e13, 1e14)
SWEEPS_S = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
TOKENS = (1, 16, 256, 4096)
MAX_ROOFS = 14


def peak_against_power(specs: Sequence[HardwareSpec], highlighted: Sequence[str]) -> Chart:
    """Draw peak against power, as figure 6 of the survey, one view per width."""
    points = peak_points(specs)
    views = [("each device at its fastest", best_points(points)), ("every width", points)]
    views += [(f"{bits} bits", tuple(p for p in points if p.bits == bits)) for bits in (16, 8, 4)]
    variants = tuple(
        Variant(label, _power_figure(chosen, highlighted, widths=label == "every width"))
        for label, chosen in views
        if chosen
    )
    return Chart(
        "chart-power",
        "Peak rate against power",
        "Dense peak operations per second against thermal design power, both logarithmic, one point per "
        "device and width of its operands.",
        variants,
        picker="Show",
        caption="Dense peaks over TDP. On a dashed line all devices do the same work per joule. Points of "
        "one device stand above each other: fewer bits, more operations, the same power.",
    )


def _power_figure(points: Sequence[PeakPoint], highlighted: Sequence[str], *, widths: bool) -> go.Figure:
    x_range = _span([point.tdp_w for point in points], 1.6)
    y_range = _span([point.flop_per_s for point in points], 2.2)
    ordered = sorted(points, key=lambda p: (p.name not in highlighted, -p.flop_per_s_per_w))
    shown = best_points(ordered) if widths else tuple(ordered)
    named = sorted(shown, key=lambda p: (p.name not in highlighted, -p.flop_per_s_per_w))
    sides = place_labels(
        [(p.tdp_w, p.flop_per_s, p.name) for p in named],
        x_range,
        y_range,
        (WIDTH_PX, HEIGHT_PX),
        others=[(p.tdp_w, p.flop_per_s) for p in points if p not in named],
    )
    labels = {(p.name, p.bits): side for p, side in zip(named, sides, strict=True) if side}
    traces: list[Any] = [_diagonal(x_range, y_range, slope) for slope in EFFICIENCIES]
    if widths:
        traces += _columns(points)
    for group in GROUPS.values():
        members = [point for point in points if point.group == group]
        if members:
            traces.append(_markers(group, members, labels, highlighted, widths=widths))
    traces += _legend([group for group in GROUPS.values() if any(p.group == group for p in points)])
    if widths:
        traces += _width_legend(sorted({point.bits for point in points}, reverse=True))
    return figure(
        [trace for trace in traces if trace is not None],
        height_px=int(HEIGHT_PX) + 110,
        xaxis=_log_axis("Thermal design power [W]", x_range),
        yaxis=_log_axis("Dense peak [operations/s]", y_range),
        annotations=_diagonal_labels(x_range, y_range, EFFICIENCIES, lambda e: f"{e / 1e12:g} TOPS/W"),
    )


def _markers(
    group: str,
    points: Sequence[PeakPoint],
    labels: dict[tuple[str, int], str],
    highlighted: Sequence[str],
    *,
    widths: bool,
) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[p.tdp_w for p in points],
        y=[p.flop_per_s for p in points],
        mode="markers+text",
        name=group,
        text=[plotly_text(p.name) if (p.name, p.bits) in labels else "" for p in points],
        textposition=[labels.get((p.name, p.bits), "top center") for p in points],
        textfont={"size": 11, "color": COLOURS[group]},
        hovertext=[_power_hover(p) for p in points],
        hoverinfo="text",
        cliponaxis=False,
        legendgroup=group,
        showlegend=False,
        marker={
            "color": [CHOSEN if p.name in highlighted else COLOURS[group] for p in points],
            "symbol": [SYMBOLS[p.bits] if widths else "circle" for p in points],
            "size": [15 if p.name in highlighted else 10 for p in points],
            "opacity": 0.9,
            "line": {"width": 1, "color": "rgba(255,255,255,0.75)"},
        },
    )


def _legend(groups: Sequence[str]) -> list[Any]:
    """One entry per class, whatever the symbols of its points; a click hides the class."""
    import plotly.graph_objects as go

    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=group,
            legendgroup=group,
            marker={"color": COLOURS[group], "size": 10},
        )
        for group in groups
    ]


def _width_legend(widths: Sequence[int]) -> list[Any]:
    """What the symbols mean."""
    import plotly.graph_objects as go

    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=f"{bits} bits",
            legendgroup="widths",
            marker={"color": OTHER, "size": 10, "symbol": SYMBOLS[bits]},
        )
        for bits in widths
    ]


def _power_hover(point: PeakPoint) -> str:
    return hover(
        point.name,
        f"{', '.join(point.kinds)}: {fmt_si(point.flop_per_s, 'OP/s')} dense",
        f"{fmt_si(point.tdp_w, 'W')}, {point.flop_per_s_per_w / 1e12:.3g} TOPS/W",
        point.group,
    )


def _columns(points: Sequence[PeakPoint]) -> list[Any]:
    """Thin lines that join the widths of one device."""
    import plotly.graph_objects as go

    x: list[float | None] = []
    y: list[float | None] = []
    for name in dict.fromkeys(point.name for point in points):
        rates = [point.flop_per_s for point in points if point.name == name]
        power = next(point.tdp_w for point in points if point.name == name)
        x += [power, power, None]
        y += [min(rates), max(rates), None]
    line = {"color": OTHER, "width": 1}
    return [go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.45, hoverinfo="skip", showlegend=False)]


def _diagonal(x_range: tuple[float, float], y_range: tuple[float, float], slope: float) -> go.Scatter | None:
    """A dashed line y = slope * x inside the drawing, None where it lies outside."""
    import plotly.graph_objects as go

    low = max(x_range[0], y_range[0] / slope)
    high = min(x_range[1], y_range[1] / slope)
    if low >= high:
        return None
    return go.Scatter(
        x=[low, high],
        y=[low * slope, high * slope],
        mode="lines",
        line={"color": OTHER, "width": 1, "dash": "dash"},
        opacity=0.55,
        hoverinfo="skip",
        showlegend=False,
    )


def _diagonal_labels(
    x_range: tuple[float, float], y_range: tuple[float, float], slopes: Sequence[float], text: Any
) -> list[dict[str, Any]]:
    """Labels at the upper ends of the diagonals, at the right or the upper edge."""
    labels = []
    for slope in slopes:
        low = max(x_range[0], y_range[0] / slope)
        high = min(x_range[1], y_range[1] / slope)
        if log10(high / low) < 0.35 if high > low else True:
            continue
        at_right = high >= x_range[1] * 0.999
        labels.append(
            {
                "x": log10(high),
                "y": log10(high * slope),
                "text": text(slope),
                "showarrow": False,
                "xanchor": "right",
                "yanchor": "bottom" if at_right else "top",
                "xshift": -4 if at_right else -8,
                "yshift": 2 if at_right else -2,
                "font": {"size": 11},
            }
        )
    return labels


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
    import plotly.graph_objects as go

    ridges = [line.ridge_flop_per_byte for line in lines]
    low, high = min(0.3, min(ridges) / 3), max(10000.0, max(ridges) * 4)
    bottom = min(line.bytes_per_s for line in lines) * low * 0.9
    y_range = (bottom, max(line.flop_per_s for line in lines) * 2.5)
    decades = log10(y_range[1] / y_range[0])
    height = max(HEIGHT_PX - 40, 20.0 * len(lines) + 200)
    levels = spread([log10(line.flop_per_s) for line in lines], decades * 15.0 / height)
    traces = []
    annotations = []
    for index, (line, level) in enumerate(zip(lines, levels, strict=True)):
        colour = series_colour(index)
        x = [low, line.ridge_flop_per_byte, high]
        traces.append(
            go.Scatter(
                x=x,
                y=[line.bytes_per_s * low, line.flop_per_s, line.flop_per_s],
                mode="lines+markers",
                name=line.name,
                showlegend=False,
                line={"color": colour, "width": 2, "dash": "solid" if index < 8 else "dash"},
                marker={"size": [0, 7, 0], "color": colour},
                hovertext=_roof_hover(line),
                hoverinfo="text",
            )
        )
        annotations.append(
            {
                "x": 1.0,
                "xref": "paper",
                "y": level,
                "text": plotly_text(line.name),
                "showarrow": False,
                "xanchor": "left",
                "xshift": 6,
                "font": {"size": 11, "color": colour},
            }
        )
    for tokens in TOKENS:
        traces.append(_token_line(tokens, y_range))
        annotations.append(
            {
                "x": log10(tokens),
                "y": log10(y_range[0]),
                "text": f"{tokens} token" + ("s" if tokens > 1 else ""),
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "bottom",
                "xshift": 3,
                "font": {"size": 11},
            }
        )
    widest = max(len(line.name) for line in lines)
    return figure(
        traces,
        height_px=int(height) + 60,
        margin={"l": 56, "r": int(16 + 6.6 * widest), "t": 16, "b": 48},
        xaxis=_log_axis("Arithmetic intensity [FLOP per byte of main memory]", (low, high)),
        yaxis=_log_axis("Attainable 16-bit rate [FLOP/s]", y_range),
        annotations=annotations,
    )


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


def memory(specs: Sequence[HardwareSpec], highlighted: Sequence[str]) -> Chart:
    """Draw main bandwidth against capacity; diagonals are the time to read all of it once."""
    known = [
        (spec, capacity, bandwidth)
        for spec in sorted(specs, key=lambda s: (s.name not in highlighted, -(bandwidth_bytes_per_s(s) or 0)))
        if (capacity := capacity_bytes(spec)) and (bandwidth := bandwidth_bytes_per_s(spec))
    ]
    x_range = _span([capacity for _, capacity, _ in known], 2.0)
    y_range = _span([bandwidth for _, _, bandwidth in known], 2.2)
    sides = place_labels(
        [(capacity, bandwidth, spec.name) for spec, capacity, bandwidth in known],
        x_range,
        y_range,
        (WIDTH_PX, HEIGHT_PX),
    )
    traces: list[Any] = [_diagonal(x_range, y_range, 1 / sweep) for sweep in SWEEPS_S]
    for group in GROUPS.values():
        members = [
            (entry, side)
            for entry, side in zip(known, sides, strict=True)
            if GROUPS[entry[0].device_class] == group
        ]
        if members:
            traces.append(_memory_markers(group, members, highlighted))
    traces += _legend([g for g in GROUPS.values() if any(GROUPS[e[0].device_class] == g for e in known)])
    drawing = figure(
        [trace for trace in traces if trace is not None],
        height_px=int(HEIGHT_PX) + 110,
        xaxis=_log_axis("Main memory [B]", x_range),
        yaxis=_log_axis("Bandwidth [B/s]", y_range),
        annotations=_diagonal_labels(
            x_range, y_range, [1 / sweep for sweep in SWEEPS_S], lambda slope: fmt_si(1 / slope, "s", 1)
        ),
    )
    return Chart(
        "chart-memory-devices",
        "Main memory",
        "Main memory bandwidth against capacity, both logarithmic, one point per device.",
        (Variant("all", drawing),),
        caption="On a dashed line it takes the same time to read the whole memory once: the least time of a "
        "token at batch 1 when weights and KV cache fill it.",
    )


def _memory_markers(
    group: str,
    members: Sequence[tuple[tuple[HardwareSpec, float, float], str | None]],
    highlighted: Sequence[str],
) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[capacity for (_, capacity, _), _ in members],
        y=[bandwidth for (_, _, bandwidth), _ in members],
        mode="markers+text",
        name=group,
        text=[plotly_text(spec.name) if side else "" for (spec, _, _), side in members],
        textposition=[side or "top center" for _, side in members],
        textfont={"size": 11, "color": COLOURS[group]},
        hovertext=[
            hover(
                spec.name,
                f"{spec.main_memory.kind}: {capacity / 2**30:.4g} GiB at {fmt_si(bandwidth, 'B/s')}",
                f"all of it in {fmt_si(capacity / bandwidth, 's')}",
                group,
            )
            for (spec, capacity, bandwidth), _ in members
        ],
        hoverinfo="text",
        cliponaxis=False,
        legendgroup=group,
        showlegend=False,
        marker={
            "color": [CHOSEN if spec.name in highlighted else COLOURS[group] for (spec, _, _), _ in members],
            "size": [15 if spec.name in highlighted else 10 for (spec, _, _), _ in members],
            "opacity": 0.9,
            "line": {"width": 1, "color": "rgba(255,255,255,0.75)"},
        },
    )


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    return min(values) / margin, max(values) * margin


def _log_axis(title: str, bounds: tuple[float, float]) -> dict[str, Any]:
    return {
        "type": "log",
        "title": {"text": title},
        "range": [log10(bounds[0]), log10(bounds[1])],
        "dtick": 1,
        "tickformat": "~s",
    }
