"""How much every unit suffers from every precision, and whether the metrics agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.blocks import Block, Cell, Chart, Column, Note, Row, Table, Variant, hover, plotly_text
from reports.figures import figure
from reports.points import SOURCE_WORDS
from reports.section import section
from reports.theme import HEAT_SCALE
from reports.units import fmt_fixed, fmt_significant
from studies.result import StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_DECADES = 6


@dataclass(frozen=True)
class MetricTable:
    """One sensitivity table, precisions in order of growing penalty.

    Attributes:
        penalty: ``penalty[precision][unit]``; a precision without any penalty is in ``harmless`` instead.
        layers: (layer, position of its first unit, number of its units), for the axis.
        parts: what the units of a layer are called, empty for whole blocks.
    """

    metric: str
    unit: str
    source: str
    n_tokens: int | None
    units: tuple[str, ...]
    precisions: tuple[str, ...]
    penalty: tuple[tuple[float, ...], ...]
    harmless: tuple[str, ...]
    layers: tuple[tuple[int, int, int], ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SensitivityInfo:
    """All tables, and the rank correlations between them as (first, second, Spearman)."""

    tables: tuple[MetricTable, ...]
    correlations: tuple[tuple[str, str, float | None], ...]


def info(result: StudyResult) -> SensitivityInfo:
    """Transpose the tables and sort their precisions, the gentlest first."""
    layer_of = {unit["name"]: int(unit["layer"]) for unit in result.units}
    tables = tuple(_table(entry, layer_of) for entry in result.sensitivity.get("tables", []))
    correlations = tuple(
        (entry["first"], entry["second"], entry.get("spearman"))
        for entry in result.sensitivity.get("correlations", [])
    )
    return SensitivityInfo(tables, correlations)


def _table(entry: dict[str, Any], layer_of: dict[str, int]) -> MetricTable:
    rows, units = entry["penalty"], tuple(entry["units"])
    columns = [[float(row[index]) for row in rows] for index in range(len(entry["precisions"]))]
    names = [precision_label(precision) for precision in entry["precisions"]]
    order = sorted(range(len(names)), key=lambda index: (math.fsum(columns[index]), names[index]))
    shown = [index for index in order if any(value != 0 for value in columns[index])]
    return MetricTable(
        metric=entry["metric"],
        unit=entry.get("unit", ""),
        source=SOURCE_WORDS.get(entry.get("provenance", ""), "predicted"),
        n_tokens=entry.get("n_tokens"),
        units=units,
        precisions=tuple(names[index] for index in shown),
        penalty=tuple(tuple(columns[index]) for index in shown),
        harmless=tuple(names[index] for index in order if index not in shown),
        layers=_layers(units, layer_of),
        parts=_parts(units, layer_of),
    )


def _layers(units: tuple[str, ...], layer_of: dict[str, int]) -> tuple[tuple[int, int, int], ...]:
    """Return runs of units of one layer as (layer, first position, length)."""
    runs: list[tuple[int, int, int]] = []
    for position, unit in enumerate(units):
        layer = layer_of.get(unit, position)
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((layer, position, 1))
    return tuple(runs)


def _parts(units: tuple[str, ...], layer_of: dict[str, int]) -> tuple[str, ...]:
    """Return the last part of the units' names without their layer, each once, in model order."""
    names = (unit.removeprefix(f"layers.{layer_of.get(unit)}").rsplit(".", 1)[-1] for unit in units)
    return tuple(dict.fromkeys(name for name in names if name))


def precision_label(precision: dict[str, str] | str) -> str:
    """Return the weight format, and activations and KV cache only where they are quantized too."""
    if isinstance(precision, str):
        return precision
    weights, activations, kv = (precision.get(key, "") for key in ("weights", "activations", "kv"))
    floats = {"bf16", "fp16", "fp32", ""}
    parts = [weights]
    if activations not in floats:
        parts.append(f"act {activations}")
    if kv not in floats:
        parts.append(f"KV {kv}")
    return ", ".join(parts)


def figure_of(table: MetricTable) -> go.Figure:
    """Draw units against precisions, coloured by the logarithm of the penalty; blank is zero or below."""
    import plotly.graph_objects as go

    logs = [[math.log10(value) if value > 0 else None for value in row] for row in table.penalty]
    known = [value for row in logs for value in row if value is not None]
    top = max(known, default=0.0)
    bottom = max(min(known, default=-1.0), top - MAX_DECADES)
    ticks = list(range(math.ceil(bottom), math.floor(top) + 1))
    unit = f" {table.unit}" if table.unit and table.unit != "arbitrary" else ""
    texts = [
        [
            hover(
                f"{name} at {precision}", f"{table.metric}: {fmt_significant(value)}{unit} ({table.source})"
            )
            for name, value in zip(table.units, row, strict=True)
        ]
        for precision, row in zip(table.precisions, table.penalty, strict=True)
    ]
    heat = go.Heatmap(
        z=logs,
        x=list(range(len(table.units))),
        y=list(range(len(table.precisions))),
        hovertext=texts,
        hoverinfo="text",
        zmin=bottom,
        zmax=max(top, bottom + 1e-9),
        colorscale=HEAT_SCALE,
        xgap=1,
        ygap=2,
        colorbar={
            "title": {"text": plotly_text(table.unit or "penalty"), "side": "top"},
            "tickvals": [float(tick) for tick in ticks] or [bottom, top],
            "ticktext": [f"1e{tick}".replace("-", "−") for tick in ticks]
            or [fmt_significant(10**bottom, 2), fmt_significant(10**top, 2)],
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    step = max(1, math.ceil(len(table.layers) / 20))
    shown = table.layers[::step]
    parts = f" (in each: {', '.join(table.parts)})" if 1 < len(table.parts) <= 8 else ""
    return figure(
        [heat],
        height_px=130 + 36 * len(table.precisions),
        xaxis={
            "tickvals": [first + (count - 1) / 2 for _, first, count in shown],
            "ticktext": [str(layer) for layer, _, _ in shown],
            "title": {"text": plotly_text(f"Layer{parts}")},
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(range(len(table.precisions))),
            "ticktext": [plotly_text(name) for name in table.precisions],
            "showgrid": False,
            "zeroline": False,
        },
    )


def _correlation_table(facts: SensitivityInfo) -> tuple[Block, ...]:
    if not facts.correlations:
        return (Note("There is one metric at most, so there is no rank correlation to show.", "muted"),)
    rows = tuple(
        Row(
            (
                Cell(first),
                Cell(second),
                Cell("not defined", tone="muted")
                if rho is None
                else Cell(fmt_fixed(rho), sort=rho, bar_frac=abs(rho)),
            )
        )
        for first, second, rho in facts.correlations
    )
    columns = (Column("Metric"), Column("Against"), Column("Spearman’s ρ", numeric=True))
    return (Table("Do the metrics rank the choices alike? 1 is the same order, 0 none.", columns, rows),)


@section(
    "sensitivity",
    title="Sensitivity",
    nav="Sensitivity",
    order=30,
    lead="What one unit costs in quality when it alone goes to a precision: the reason for the bits above.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show a heatmap per metric and the rank correlations between metrics."""
    facts = info(result)
    tables = [table for table in facts.tables if table.units and table.precisions]
    if not tables:
        return (Note("No sensitivities were measured in this study."),)
    views = tuple(
        Variant(f"{table.metric} ({table.source}{_tokens(table)})", figure_of(table)) for table in tables
    )
    chart = Chart(
        "chart-sensitivity",
        "Penalty of each unit and precision, logarithmic colour",
        f"Heatmap of {len(tables[0].units)} units by {len(tables[0].precisions)} precisions.",
        views,
        picker="Metric",
        caption=_caption(tables[0]),
    )
    return (chart, *_correlation_table(facts))


def _caption(table: MetricTable) -> str:
    harmless = f" Without any penalty, so not drawn: {', '.join(table.harmless)}." if table.harmless else ""
    return (
        "Red hurts, blue does not; a blank cell is a penalty of zero or below. "
        f"Colours span at most {MAX_DECADES} decades.{harmless}"
    )


def _tokens(table: MetricTable) -> str:
    return f" on {table.n_tokens:,} tokens" if table.n_tokens else ""
