"""Roofline of every device: what binds each operator of the chosen plan (Williams et al. 2009)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.blocks import Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.points import device_entry
from reports.section import section
from reports.theme import BOUND_COLOURS, OTHER
from reports.units import fmt_percent, fmt_si
from studies.result import StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

SYMBOLS = {"prefill": "circle", "decode": "diamond"}


@dataclass(frozen=True)
class OpPoint:
    """One operator class in one phase; ``time_frac`` is its share of the phase's time on the device."""

    phase: str
    name: str
    intensity_flop_per_byte: float
    achieved_flop_per_s: float
    time_s: float
    time_frac: float
    bound_by: str


@dataclass(frozen=True)
class Roof:
    """A horizontal roof; compute kinds of one rate share it."""

    label: str
    peak_flop_per_s: float


@dataclass(frozen=True)
class DeviceRoofline:
    """Roofs and operators of one device; the bandwidth is None where it is unknown."""

    device: str
    bandwidth_bytes_per_s: float | None
    roofs: tuple[Roof, ...]
    points: tuple[OpPoint, ...]
    n_without_work: int


@dataclass(frozen=True)
class RooflineInfo:
    """One roofline per device that runs something."""

    devices: tuple[DeviceRoofline, ...]


def info(result: StudyResult) -> RooflineInfo:
    """Group the operators by device; those without multiply-adds have no place on a logarithmic axis."""
    by_device: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in result.roofline:
        by_device[entry["device"]].append(entry)
    return RooflineInfo(tuple(_device(result, name, rows) for name, rows in by_device.items()))


def _device(result: StudyResult, name: str, rows: list[dict[str, Any]]) -> DeviceRoofline:
    entry = device_entry(result, name) or {}
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        total[row["phase"]] += row["time_s"]
    points = tuple(
        OpPoint(
            row["phase"],
            row["name"],
            row["intensity_flop_per_byte"],
            row["achieved_flop_per_s"],
            row["time_s"],
            row["time_s"] / total[row["phase"]] if total[row["phase"]] > 0 else 0.0,
            row["bound_by"],
        )
        for row in rows
        if row["intensity_flop_per_byte"] > 0 and row["achieved_flop_per_s"] > 0
    )
    kinds: dict[float, list[str]] = defaultdict(list)
    for kind, peak in (entry.get("peaks") or {}).items():
        if peak:
            kinds[float(peak)].append(kind)
    roofs = tuple(Roof(", ".join(sorted(kinds[peak])), peak) for peak in sorted(kinds))
    return DeviceRoofline(
        name, entry.get("memory_bandwidth_bytes_per_s"), roofs, points, len(rows) - len(points)
    )


def figure_of(device: DeviceRoofline) -> go.Figure:
    """Draw the roofs and the operators on logarithmic axes; the area of a marker follows its time."""
    low, high = intensity_range(device)
    traces: list[go.Scatter] = [_roof(device, roof, low, high) for roof in device.roofs]
    groups: dict[tuple[str, str], list[OpPoint]] = defaultdict(list)
    for point in device.points:
        groups[point.phase, point.bound_by].append(point)
    traces.extend(_points(phase, bound, groups[phase, bound]) for phase, bound in sorted(groups))
    annotations = [_roof_label(roof, high) for roof in device.roofs]
    if device.bandwidth_bytes_per_s and device.roofs:
        annotations.append(_bandwidth_label(device.bandwidth_bytes_per_s, low))
    return figure(
        traces,
        height_px=500,
        xaxis={
            "type": "log",
            "title": {"text": "Arithmetic intensity [FLOP per byte of main memory]"},
            "range": [math.log10(low), math.log10(high)],
            "dtick": 1,
            "tickformat": "~s",
        },
        yaxis={
            "type": "log",
            "title": {"text": "Rate [FLOP/s] — predicted"},
            "dtick": 1,
            "tickformat": "~s",
        },
        annotations=annotations,
    )


def intensity_range(device: DeviceRoofline) -> tuple[float, float]:
    """Return the ends of the intensity axis: all operators and every ridge point, with some air."""
    values = [point.intensity_flop_per_byte for point in device.points]
    if device.bandwidth_bytes_per_s:
        values += [roof.peak_flop_per_s / device.bandwidth_bytes_per_s for roof in device.roofs]
    return min(values, default=0.1) / 3, max(values, default=1000.0) * 12


def _roof(device: DeviceRoofline, roof: Roof, low: float, high: float) -> go.Scatter:
    """One roof: along the bandwidth up to its ridge point, then flat."""
    import plotly.graph_objects as go

    x, y = [low, high], [roof.peak_flop_per_s] * 2
    if device.bandwidth_bytes_per_s:
        ridge = roof.peak_flop_per_s / device.bandwidth_bytes_per_s
        x = [low, ridge, high]
        y = [low * device.bandwidth_bytes_per_s, roof.peak_flop_per_s, roof.peak_flop_per_s]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": OTHER, "width": 2},
        name=plotly_text(f"{roof.label} roof"),
        showlegend=False,
        hoverinfo="skip",
    )


def _roof_label(roof: Roof, high: float) -> dict[str, Any]:
    return {
        "x": math.log10(high),
        "y": math.log10(roof.peak_flop_per_s),
        "text": plotly_text(f"{roof.label}: {fmt_si(roof.peak_flop_per_s, 'FLOP/s')}"),
        "xanchor": "right",
        "yanchor": "bottom",
        "showarrow": False,
    }


def _bandwidth_label(bandwidth_bytes_per_s: float, low: float) -> dict[str, Any]:
    return {
        "x": math.log10(low * 1.15),
        "y": math.log10(low * bandwidth_bytes_per_s * 1.15),
        "text": f"memory: {fmt_si(bandwidth_bytes_per_s, 'B/s')}",
        "xanchor": "left",
        "yanchor": "top",
        "showarrow": False,
    }


def _points(phase: str, bound: str, points: list[OpPoint]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[point.intensity_flop_per_byte for point in points],
        y=[point.achieved_flop_per_s for point in points],
        mode="markers",
        name=plotly_text(f"{phase}, {bound}-bound"),
        hovertext=[_hover(point) for point in points],
        hoverinfo="text",
        marker={
            "symbol": SYMBOLS.get(phase, "square"),
            "size": [8 + 18 * math.sqrt(point.time_frac) for point in points],
            "color": BOUND_COLOURS.get(bound, OTHER),
            "opacity": 0.85,
            "line": {"width": 1, "color": "rgba(255,255,255,0.6)"},
        },
    )


def _hover(point: OpPoint) -> str:
    return hover(
        f"{point.name} ({point.phase})",
        f"{fmt_si(point.intensity_flop_per_byte, 'FLOP/B')}, {fmt_si(point.achieved_flop_per_s, 'FLOP/s')}",
        f"{fmt_si(point.time_s, 's')} ({fmt_percent(point.time_frac)} of the phase), predicted",
        f"bound by {point.bound_by}",
    )


@section(
    "roofline",
    title="Roofline",
    nav="Roofline",
    order=40,
    lead="What limits each operator on each device: compute, memory bandwidth, or its kernel's launch.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show one roofline per device, by menu."""
    facts = info(result)
    drawable = [device for device in facts.devices if device.points]
    if not drawable:
        return (Note("The result holds no operator times, so there is no roofline to draw."),)
    hidden = sum(device.n_without_work for device in facts.devices)
    caption = "The larger a marker, the more of its phase's time the operator takes. Peaks are dense."
    if hidden:
        caption += f" {hidden} operators without multiply-adds are not shown."
    chart = Chart(
        "chart-roofline",
        "Operators under the roofs of their device",
        f"Log-log roofline of {len(drawable)} devices: rate against arithmetic intensity.",
        tuple(Variant(device.device, figure_of(device)) for device in drawable),
        picker="Device",
        caption=caption,
    )
    return (chart,)
