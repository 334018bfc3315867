"""One page about a front of plans: every pair of its axes as a drawing, and the plans as a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.content import write_atomic
from dse.partition.pareto import Axis
from reports.blocks import Cell, Chart, Column, Row, Table, Variant, hover
from reports.build import RenderedSection, render_page
from reports.figures import figure
from reports.units import plural
from studies.comparison import FrontRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNITS: dict[Axis, str] = {
    "time": "s for the batch",
    "ttft": "s to the first tokens",
    "tpot": "s between two tokens",
    "throughput": "tokens/s",
    "energy": "J per token",
    "cost": "USD per million tokens",
}
HEIGHT_PX = 460
FAR = 20.0


@dataclass(frozen=True)
class FrontHeading:
    """The top of the page."""

    title: str
    lead: str
    facts: str


def write_front_page(
    rows: Sequence[FrontRow], axes: Sequence[Axis], path: Path, *, title: str, quality_unit: str
) -> Path:
    """Write the page of a front with at least one plan; return ``path``."""
    write_atomic(path, render_front_page(rows, axes, title=title, quality_unit=quality_unit))
    return path


def render_front_page(
    rows: Sequence[FrontRow], axes: Sequence[Axis], *, title: str, quality_unit: str
) -> str:
    """Return the page as one HTML text that loads nothing."""
    units = {**UNITS, "quality": f"penalty, {quality_unit}"}
    widest = max(row.gap_frac for row in rows)
    heading = FrontHeading(
        title,
        "No plan found is better than one of these in one quantity without being worse in another.",
        f"{plural(len(rows), 'plan')} · over {', '.join(axes)} · largest proven gap {widest:.1%} in the "
        "quantity that each minimises",
    )
    views = tuple(
        Variant(f"{y} against {x}", _view(rows, x, y, units)) for x, y in itertools.combinations(axes, 2)
    )
    chart = Chart(
        "front",
        "The front",
        f"{len(rows)} plans by {', '.join(axes)}; the table below has every number.",
        views,
        picker="Axes" if len(views) > 1 else "",
        caption="Plans are the best in all axes together, so that a pair of axes may show some above its own "
        "edge. Colour: effective bits of the linears. All values are predicted.",
    )
    section = RenderedSection("front", "Plans", "Plans", "", (chart, _table(rows, axes, units)))
    return render_page("front.html.j2", heading, (section,))


def _view(rows: Sequence[FrontRow], x: Axis, y: Axis, units: dict[Axis, str]) -> go.Figure:
    import plotly.graph_objects as go

    ordered = sorted(rows, key=lambda row: row.values[x])
    marker: dict[str, Any] = {
        "size": 11,
        "color": [row.linear_bits for row in ordered],
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "bits"}, "thickness": 12},
        "line": {"width": 1, "color": "rgba(128,128,128,0.9)"},
    }
    trace = go.Scatter(
        x=[row.values[x] for row in ordered],
        y=[row.values[y] for row in ordered],
        mode="markers",
        marker=marker,
        hovertext=[_hover(row) for row in ordered],
        hoverinfo="text",
        showlegend=False,
    )
    return figure(
        [trace],
        height_px=HEIGHT_PX,
        xaxis=_scale(rows, x, units),
        yaxis=_scale(rows, y, units),
    )


def _scale(rows: Sequence[FrontRow], axis: Axis, units: dict[Axis, str]) -> dict[str, Any]:
    """Return an axis, logarithmic where its values are far apart."""
    values = [row.values[axis] for row in rows]
    far = min(values) > 0 and max(values) > FAR * min(values)
    title = {"text": f"{axis} ({units[axis]})"}
    return {"title": title, "automargin": True, "type": "log" if far else "linear"}


def _hover(row: FrontRow) -> str:
    values = [f"{axis}: {value:.4g}" for axis, value in row.values.items()]
    return hover(f"{row.linear_bits:.2f} bits", *values, *_stages(row))


def _stages(row: FrontRow) -> list[str]:
    return [f"{device}: layers {first} to {end - 1}" for device, first, end in row.stages]


def _table(rows: Sequence[FrontRow], axes: Sequence[Axis], units: dict[Axis, str]) -> Table:
    columns = (
        *(Column(axis, units[axis], "predicted", numeric=True) for axis in axes),
        Column("Bits", numeric=True),
        Column("Gap", "of what is minimised", numeric=True),
        Column("Minimised"),
        Column("Stages"),
    )
    lines = []
    for row in rows:
        values = tuple(Cell(f"{row.values[axis]:.4g}", row.values[axis]) for axis in axes)
        bits = Cell(f"{row.linear_bits:.2f}", row.linear_bits)
        gap = Cell(f"{row.gap_frac:.1g}", row.gap_frac)
        lines.append(Row((*values, bits, gap, Cell(row.minimised), Cell("; ".join(_stages(row))))))
    return Table("Every plan; a click on a heading sorts", columns, tuple(lines), sortable=True)
