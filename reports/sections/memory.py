"""Memory of every device against its capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.blocks import Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.points import device_entry, plan_label, plans_chosen_first
from reports.section import section
from reports.theme import CHOSEN, PART_COLOURS, TAG_COLOURS
from reports.units import fmt_percent, fmt_si
from studies.result import Point, StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

PART_WORDS = {
    "weights": "weights",
    "kv": "KV cache",
    "activations": "activations",
    "reserve": "runtime reserve",
}
OFF_SCALE_RATIO = 4.0


@dataclass(frozen=True)
class DeviceMemory:
    """Use of one device; ``parts`` are (name, bytes) and sum to ``used_bytes`` up to rounding."""

    device: str
    used_bytes: float
    capacity_bytes: float | None
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class PlanMemory:
    """One plan; devices in the order of its memory map."""

    label: str
    devices: tuple[DeviceMemory, ...]


@dataclass(frozen=True)
class MemoryInfo:
    """All plans, the chosen one first."""

    plans: tuple[PlanMemory, ...]


def info(result: StudyResult) -> MemoryInfo:
    """Look up the capacity of every device that a plan uses."""
    plans = (_plan(result, point) for point in plans_chosen_first(result))
    return MemoryInfo(tuple(plan for plan in plans if plan.devices))


def _plan(result: StudyResult, point: Point) -> PlanMemory:
    devices = []
    for name, used in point.predicted.memory_bytes.items():
        entry = device_entry(result, name)
        parts = (point.predicted.memory_parts or {}).get(name, {"total": used})
        devices.append(DeviceMemory(name, used, usable_bytes(entry, name), tuple(parts.items())))
    return PlanMemory(plan_label(point, result.chosen), tuple(devices))


def usable_bytes(entry: dict[str, Any] | None, device: str) -> float | None:
    """Return what the model may use of a device, None where the result does not say."""
    if entry is None:
        return None
    usable: float | None = entry.get("usable_bytes", {}).get(device)
    return entry.get("memory_capacity_bytes") if usable is None else usable


def axis_end_bytes(plan: PlanMemory) -> float:
    """Return where the axis ends: the capacities, unless they dwarf what is used (then off the scale)."""
    used = max(device.used_bytes for device in plan.devices)
    near = [
        device.capacity_bytes
        for device in plan.devices
        if device.capacity_bytes is not None and device.capacity_bytes <= OFF_SCALE_RATIO * used
    ]
    return 1.3 * max([used, *near])


def figure_of(plan: PlanMemory) -> go.Figure:
    """Draw a stacked bar per device and a line at its capacity."""
    import plotly.graph_objects as go

    end = axis_end_bytes(plan)
    names = list(dict.fromkeys(name for device in plan.devices for name, _ in device.parts))
    labels = [plotly_text(device.device) for device in plan.devices]
    bars = [
        go.Bar(
            y=labels,
            x=[dict(device.parts).get(name, 0.0) for device in plan.devices],
            orientation="h",
            name=plotly_text(PART_WORDS.get(name, name)),
            marker={"color": PART_COLOURS.get(name, TAG_COLOURS["predicted"])},
            hovertext=[_hover(device, name) for device in plan.devices],
            hoverinfo="text",
        )
        for name in names
    ]
    shapes = [
        _capacity_line(row, device.capacity_bytes)
        for row, device in enumerate(plan.devices)
        if device.capacity_bytes is not None and device.capacity_bytes <= end
    ]
    return figure(
        bars,
        height_px=130 + 66 * len(plan.devices),
        barmode="stack",
        bargap=0.6,
        showlegend=len(names) > 1,
        xaxis={
            "title": {"text": "Memory [B] — predicted"},
            "range": [0, end],
            "tickformat": "~s",
            "ticksuffix": "B",
        },
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category"},
        shapes=shapes,
        annotations=[_label(device, row) for row, device in enumerate(plan.devices)],
    )


def _hover(device: DeviceMemory, part: str) -> str:
    size = fmt_si(dict(device.parts).get(part, 0.0), "B")
    word = PART_WORDS.get(part, part)
    return hover(device.device, f"{word}: {size} (predicted)", f"together: {usage_text(device)}")


def usage_text(device: DeviceMemory) -> str:
    """Return what is used of what there is, e.g. ``212 MB of 8.00 GB (2.7 %)``."""
    used = fmt_si(device.used_bytes, "B")
    if not device.capacity_bytes:
        return f"{used} (capacity unknown)"
    share = fmt_percent(device.used_bytes / device.capacity_bytes)
    return f"{used} of {fmt_si(device.capacity_bytes, 'B')} ({share})"


def _capacity_line(row: int, capacity_bytes: float) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": capacity_bytes,
        "x1": capacity_bytes,
        "y0": row - 0.27,
        "y1": row + 0.27,
        "line": {"color": CHOSEN, "width": 3},
    }


def _label(device: DeviceMemory, row: int) -> dict[str, Any]:
    return {
        "x": 0,
        "y": row,
        "text": plotly_text(usage_text(device)),
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 14,
        "showarrow": False,
    }


@section(
    "memory",
    title="Memory",
    nav="Memory",
    order=50,
    lead="What each device holds: weights with scales, KV cache of the whole batch, and activations.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show a bar per device, by plan."""
    facts = info(result)
    if not facts.plans:
        return (Note("No plan says how much memory it needs."),)
    chart = Chart(
        "chart-memory",
        "Memory of each device against its capacity",
        "; ".join(f"{d.device}: {usage_text(d)}" for d in facts.plans[0].devices),
        tuple(Variant(plan.label, figure_of(plan)) for plan in facts.plans),
        picker="Plan",
        caption="A red line is the capacity; where it would be far off the scale, only the label tells it.",
    )
    return (chart,)
