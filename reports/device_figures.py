"""The scatter plots of the page of devices: peak against power, bandwidth against capacity."""

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
    best_points,
    peak_points,
    place_labels,
)
from reports.figures import figure, log_axis
from reports.theme import CHOSEN, OTHER, series_colour
from reports.units import fmt_si

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {group: series_colour(index) for index, group in enumerate(GROUPS.values())}
SYMBOLS = {32: "square", 16: "circle", 8: "diamond", 6: "hexagon2", 4: "star-triangle-up"}
WIDTH_PX, HEIGHT_PX = 1140.0, 560.0
LABELS_FROM_PX = 900
EFFICIENCIES = (1e10, 1e11, 1e12, 1e13, 1e14)
SWEEPS_S = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


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
    labels = {
        (p.name, p.bits): side or "middle left"
        for p, side in zip(named, sides, strict=True)
        if side or p.name in highlighted
    }
    traces: list[Any] = [_diagonal(x_range, y_range, slope) for slope in EFFICIENCIES]
    if widths:
        traces += _columns(points)
    for group in GROUPS.values():
        members = [p for p in points if p.group == group and p.name not in highlighted]
        if members:
            traces.append(
                _markers(group, members, labels, COLOURS[group], widths=widths, faint=bool(highlighted))
            )
    chosen = [point for point in points if point.name in highlighted]
    if chosen:
        traces.append(_markers("chosen", chosen, labels, CHOSEN, widths=widths, faint=False))
    traces += _legend([group for group in GROUPS.values() if any(p.group == group for p in points)])
    if widths:
        traces += _width_legend(sorted({point.bits for point in points}, reverse=True))
    return figure(
        [trace for trace in traces if trace is not None],
        height_px=int(HEIGHT_PX) + 110,
        meta={"labelsFromPx": LABELS_FROM_PX},
        xaxis=log_axis("Thermal design power [W]", x_range),
        yaxis=log_axis("Dense peak [operations/s]", y_range),
        annotations=_diagonal_labels(x_range, y_range, EFFICIENCIES, lambda e: f"{e / 1e12:g} TOPS/W"),
    )


def _markers(
    group: str,
    points: Sequence[PeakPoint],
    labels: dict[tuple[str, int], str],
    colour: str,
    *,
    widths: bool,
    faint: bool,
) -> go.Scatter:
    return _scatter(
        group,
        [(p.tdp_w, p.flop_per_s) for p in points],
        [p.name if (p.name, p.bits) in labels else "" for p in points],
        [labels.get((p.name, p.bits), "top center") for p in points],
        [_power_hover(p) for p in points],
        colour,
        faint=faint,
        symbols=[SYMBOLS[p.bits] if widths else "circle" for p in points],
    )


def _scatter(
    group: str,
    places: Sequence[tuple[float, float]],
    names: Sequence[str],
    sides: Sequence[str],
    hovers: Sequence[str],
    colour: str,
    *,
    faint: bool,
    symbols: Sequence[str] | str = "circle",
) -> go.Scatter:
    """Labelled points of one class; the page leaves the labels out where it is narrow."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers+text",
        name=group,
        customdata=[plotly_text(name) for name in names],
        texttemplate="%{customdata}",
        textposition=list(sides),
        textfont={"size": 11, "color": colour},
        hovertext=list(hovers),
        hoverinfo="text",
        cliponaxis=False,
        legendgroup=group,
        showlegend=False,
        opacity=0.45 if faint else 1.0,
        marker={
            "color": colour,
            "symbol": symbols,
            "size": 14 if group == "chosen" else 10,
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
    entries = list(zip(known, sides, strict=True))
    for group in GROUPS.values():
        members = [
            e for e in entries if GROUPS[e[0][0].device_class] == group and e[0][0].name not in highlighted
        ]
        if members:
            traces.append(_memory_markers(group, members, COLOURS[group], faint=bool(highlighted)))
    chosen = [e for e in entries if e[0][0].name in highlighted]
    if chosen:
        traces.append(_memory_markers("chosen", chosen, CHOSEN, faint=False))
    traces += _legend([g for g in GROUPS.values() if any(GROUPS[e[0].device_class] == g for e in known)])
    drawing = figure(
        [trace for trace in traces if trace is not None],
        height_px=int(HEIGHT_PX) + 110,
        meta={"labelsFromPx": LABELS_FROM_PX},
        xaxis=log_axis("Main memory [B]", x_range),
        yaxis=log_axis("Bandwidth [B/s]", y_range),
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
    colour: str,
    *,
    faint: bool,
) -> go.Scatter:
    return _scatter(
        group,
        [(capacity, bandwidth) for (_, capacity, bandwidth), _ in members],
        [spec.name if side or group == "chosen" else "" for (spec, _, _), side in members],
        [side or "top center" for _, side in members],
        [
            hover(
                spec.name,
                f"{spec.main_memory.kind}: {capacity / 2**30:.4g} GiB at {fmt_si(bandwidth, 'B/s')}",
                f"all of it in {fmt_si(capacity / bandwidth, 's')}",
                GROUPS[spec.device_class],
            )
            for (spec, capacity, bandwidth), _ in members
        ],
        colour,
        faint=faint,
    )


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    return min(values) / margin, max(values) * margin
