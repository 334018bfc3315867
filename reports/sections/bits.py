"""Bits of every layer: over all plans, and of one plan with its tensors and devices."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.blocks import Block, Chart, Note, Variant, elided, hover, plotly_text
from reports.figures import figure
from reports.points import (
    device_names,
    format_bits,
    plan_label,
    plans_chosen_first,
    stage_name,
    stages_of,
)
from reports.section import section
from reports.theme import BITS_SCALE, CHOSEN, series_colour
from reports.units import fmt_fixed
from studies.result import Point, StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

TICK_BITS = (2, 3, 4, 5, 6, 8, 16)
CELL_LABEL_PX = 25


@dataclass(frozen=True)
class BitCell:
    """Mean bits of some tensors of one layer (None where a format is unknown) and their formats by unit."""

    bits: float | None
    formats: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PlanBits:
    """One plan: ``rows`` are (label, one cell per layer), ``mean`` the weights of each whole layer.

    ``stages`` are (devices, first layer, last layer + 1).
    """

    name: str
    label: str
    rows: tuple[tuple[str, tuple[BitCell, ...]], ...]
    mean: tuple[BitCell, ...]
    stages: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True)
class BitsInfo:
    """All plans with their bits by layer; ``devices`` fixes the colours."""

    n_layers: int
    plans: tuple[PlanBits, ...]
    overview: tuple[str, ...]
    chosen: str
    devices: tuple[str, ...]


def info(result: StudyResult) -> BitsInfo:
    """Arrange every plan's formats by layer."""
    layer_of = {unit["name"]: int(unit["layer"]) for unit in result.units}
    n_layers = 1 + max(layer_of.values(), default=-1)
    plans = tuple(
        _plan_bits(point, layer_of, n_layers, result.chosen) for point in plans_chosen_first(result)
    )
    return BitsInfo(n_layers, plans, tuple(p.name for p in result.front), result.chosen, device_names(result))


def _plan_bits(point: Point, layer_of: dict[str, int], n_layers: int, chosen: str) -> PlanBits:
    """Weights by role of the unit; activations and KV cache over all units of a layer."""
    cells: dict[str, dict[int, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for unit, names in point.plan.get("assignment", {}).items():
        if unit not in layer_of:
            continue
        layer = layer_of[unit]
        role = unit.removeprefix(f"layers.{layer}").strip(".")
        cells[f"{_short(role)} weights".strip()][layer].append((unit, names["weights"]))
        cells["*"][layer].append((unit, names["weights"]))
        cells["activations"][layer].append((unit, names["activations"]))
        cells["KV cache"][layer].append((unit, names["kv"]))
    last = ("activations", "KV cache")
    order = [label for label in cells if label not in {"*", *last}] + [
        label for label in last if label in cells
    ]

    def row(label: str) -> tuple[BitCell, ...]:
        return tuple(_cell(cells[label][layer]) for layer in range(n_layers))

    stages = tuple(
        (stage_name(stage), stage["devices"][0], int(stage["layers"][0]), int(stage["layers"][1]))
        for stage in stages_of(point)
    )
    rows = tuple((label, row(label)) for label in order)
    return PlanBits(point.name, plan_label(point, chosen), rows, row("*"), stages)


def _short(role: str) -> str:
    """Return the last part of a module path: ``self_attn.q_proj`` becomes ``q_proj``."""
    return role.rsplit(".", 1)[-1]


def _cell(formats: list[tuple[str, str]]) -> BitCell:
    bits = [format_bits(name) for _, name in formats]
    known = [value for value in bits if value is not None]
    complete = bool(known) and len(known) == len(bits)
    return BitCell(math.fsum(known) / len(known) if complete else None, tuple(formats))


def overview_figure(facts: BitsInfo) -> go.Figure:
    """Draw plans against layers; dark cuts show where a plan changes device."""
    plans = [plan for plan in facts.plans if plan.name in facts.overview]
    plans.sort(key=lambda plan: facts.overview.index(plan.name))
    heat = _heatmap(
        [plan.mean for plan in plans],
        [[_device_at(plan, layer) for layer in range(facts.n_layers)] for plan in plans],
        [plan.label for plan in plans],
        facts.n_layers,
    )
    cuts = [
        _cut(first - 0.5, row)
        for row, plan in enumerate(plans)
        for _, _, first, _ in plan.stages
        if first > 0
    ]
    labels = [plotly_text(elided(plan.label)) for plan in plans]
    ticks = [
        f"<b>{label}</b>" if plan.name == facts.chosen else label
        for plan, label in zip(plans, labels, strict=True)
    ]
    return figure(
        [heat],
        height_px=130 + 34 * len(plans),
        xaxis=_layer_axis(facts.n_layers),
        yaxis={
            "tickvals": list(range(len(plans))),
            "ticktext": ticks,
            "autorange": "reversed",
            "showgrid": False,
        },
        shapes=cuts,
        meta=_label_width(facts.n_layers),
    )


def plan_figure(plan: PlanBits, facts: BitsInfo) -> go.Figure:
    """Draw one plan: tensors against layers, with the devices as a band on top."""
    devices = [_device_at(plan, layer) for layer in range(facts.n_layers)]
    heat = _heatmap(
        [cells for _, cells in plan.rows],
        [devices] * len(plan.rows),
        [label for label, _ in plan.rows],
        facts.n_layers,
    )
    height_px = 170 + 36 * len(plan.rows)
    band_frac = 34 / (height_px - 110)
    return figure(
        [heat, *_bands(plan, facts)],
        height_px=height_px,
        meta=_label_width(facts.n_layers),
        barmode="overlay",
        bargap=0,
        xaxis=_layer_axis(facts.n_layers),
        yaxis={
            "tickvals": list(range(len(plan.rows))),
            "ticktext": [plotly_text(label) for label, _ in plan.rows],
            "autorange": "reversed",
            "showgrid": False,
            "domain": [0, 1 - 1.25 * band_frac],
        },
        yaxis2={
            "domain": [1 - band_frac, 1],
            "tickvals": [0],
            "ticktext": ["device"],
            "showgrid": False,
            "zeroline": False,
        },
    )


def _bands(plan: PlanBits, facts: BitsInfo) -> list[go.Bar]:
    import plotly.graph_objects as go

    bands = []
    for label, device, first, end in plan.stages:
        fits = len(label) * 7 < (end - first) / facts.n_layers * 700
        bands.append(
            go.Bar(
                y=[0],
                x=[end - first],
                base=[first - 0.5],
                orientation="h",
                yaxis="y2",
                name=plotly_text(label),
                text=[plotly_text(label)] if fits else None,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "#ffffff", "size": 12},
                hovertext=[hover(label, f"layers {first} to {end - 1}")],
                hoverinfo="text",
                marker={"color": series_colour(facts.devices.index(device)), "line": {"width": 0}},
                showlegend=True,
            )
        )
    return bands


def _device_at(plan: PlanBits, layer: int) -> str:
    return next((label for label, _, first, end in plan.stages if first <= layer < end), "no device")


def _heatmap(
    rows: list[tuple[BitCell, ...]], devices: list[list[str]], labels: list[str], n_layers: int
) -> go.Heatmap:
    """Colour by log2 of the bits, so that 2 to 3 bits is as visible as 8 to 16."""
    import plotly.graph_objects as go

    texts = [
        [
            hover(f"layer {layer}, {label}", f"on {where[layer]}", *_formats_text(cell))
            for layer, cell in enumerate(cells)
        ]
        for label, cells, where in zip(labels, rows, devices, strict=True)
    ]
    return go.Heatmap(
        z=[[None if cell.bits is None else math.log2(cell.bits) for cell in cells] for cells in rows],
        x=list(range(n_layers)),
        y=list(range(len(rows))),
        text=[["" if cell.bits is None else f"{cell.bits:.3g}"[:4] for cell in cells] for cells in rows],
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=texts,
        hoverinfo="text",
        zmin=1,
        zmax=4,
        colorscale=BITS_SCALE,
        xgap=2,
        ygap=3,
        colorbar={
            "title": {"text": "bits", "side": "top"},
            "tickvals": [math.log2(bits) for bits in TICK_BITS],
            "ticktext": [str(bits) for bits in TICK_BITS],
            "thickness": 12,
            "outlinewidth": 0,
        },
    )


def _formats_text(cell: BitCell) -> list[str]:
    names = sorted({name for _, name in cell.formats})
    if not names:
        return ["not assigned"]
    if len(names) == 1:
        return [names[0]]
    return [f"mean {fmt_fixed(cell.bits)} bits"] + [f"{unit}: {name}" for unit, name in cell.formats]


def _cut(x: float, row: int) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": row - 0.5,
        "y1": row + 0.5,
        "line": {"color": CHOSEN, "width": 3},
    }


def _label_width(n_layers: int) -> dict[str, int]:
    """Tell the page's script from which width of the chart on the numbers in the cells can be read."""
    return {"labelsFromPx": CELL_LABEL_PX * n_layers + 220}


def _layer_axis(n_layers: int) -> dict[str, Any]:
    return {
        "title": {"text": "Layer"},
        "range": [-0.5, n_layers - 0.5],
        "dtick": 1 if n_layers <= 24 else 2 if n_layers <= 48 else 10,
        "showgrid": False,
        "zeroline": False,
    }


@section(
    "bits",
    title="Bits per layer",
    nav="Bits",
    order=20,
    lead="How each plan spends its bits, and which device runs each layer.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the overview of all plans, then one plan by menu."""
    facts = info(result)
    if not facts.plans or facts.n_layers == 0:
        return (Note("There is no plan with units to draw."),)
    charts: list[Block] = []
    if facts.overview:
        charts.append(
            Chart(
                "chart-bits-overview",
                "Weight bits of all front plans",
                f"Heatmap of {len(facts.overview)} plans over {facts.n_layers} layers, coloured by bits.",
                (Variant("all plans", overview_figure(facts)),),
                caption="Bits of one element, without scales; the mean where the units of a layer differ. "
                "A red line marks where a plan moves to its next device.",
            )
        )
    views = tuple(Variant(plan.label, plan_figure(plan, facts)) for plan in facts.plans)
    charts.append(
        Chart(
            "chart-bits-plan",
            "One plan in detail",
            "Heatmap of weights, activations and KV cache over the layers, under a band of devices.",
            views,
            picker="Plan",
        )
    )
    return tuple(charts)
