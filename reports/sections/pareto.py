"""Every plan as a point, on axes that the reader picks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.blocks import AxisChoice, AxisPicker, Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.points import METRICS, Metric, stages_of
from reports.section import section
from reports.stats import non_dominated
from reports.theme import CHOSEN, ORIGIN_COLOURS, ORIGIN_SYMBOLS, ORIGIN_WORDS, OTHER
from reports.units import layer_span
from studies.result import Point, StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOG_FROM_RATIO = 30.0
SI_SUFFIXES = {"s": "s", "J": "J", "B": "B", "tokens/s": ""}


@dataclass(frozen=True)
class Axis:
    """One quantity over all groups: ``values[group][point]``; ``log`` where it spans over a factor of 30."""

    metric: Metric
    values: tuple[tuple[float | None, ...], ...]
    log: bool


@dataclass(frozen=True)
class ParetoInfo:
    """Plans grouped by how they were found, and the axes on which at least one plan has a value.

    ``x`` and ``y`` are positions in ``axes`` that the page starts with.
    """

    groups: tuple[tuple[str, tuple[Point, ...]], ...]
    chosen: Point | None
    axes: tuple[Axis, ...]
    x: int
    y: int

    @property
    def points(self) -> tuple[Point, ...]:
        """All points in the order of the groups."""
        return tuple(point for _, points in self.groups for point in points)


def info(result: StudyResult) -> ParetoInfo:
    """Group the plans and collect the axes."""
    everything = (*result.front, *result.baselines)
    origins = dict.fromkeys(point.origin for point in everything)
    groups = tuple((origin, tuple(p for p in everything if p.origin == origin)) for origin in origins)
    axes = []
    for metric in METRICS:
        values = tuple(tuple(metric.value(point) for point in points) for _, points in groups)
        known = [value for column in values for value in column if value is not None]
        if known:
            log = min(known) > 0 and max(known) / min(known) >= LOG_FROM_RATIO
            axes.append(Axis(metric, values, log))
    names = [axis.metric.name for axis in axes]
    return ParetoInfo(
        groups=groups,
        chosen=next((point for point in everything if point.name == result.chosen), None),
        axes=tuple(axes),
        x=_first(names, "bits", "tpot"),
        y=_first(names, "perplexity", "kl_predicted"),
    )


def _first(names: list[str], *wanted: str) -> int:
    return next((names.index(name) for name in wanted if name in names), 0)


def front_line(facts: ParetoInfo, x: Metric, y: Metric) -> tuple[tuple[float, float], ...]:
    """Return the non-dominated points on two axes as (x, y), each axis in its own sense, by increasing x."""
    points = facts.points
    best = non_dominated([x.cost(point) for point in points], [y.cost(point) for point in points])
    corners = [(x.value(points[index]), y.value(points[index])) for index in best]
    return tuple(sorted((a, b) for a, b in corners if a is not None and b is not None))


def figure_of(facts: ParetoInfo) -> go.Figure:
    """Draw the starting axes; the page's script swaps in other values."""
    import plotly.graph_objects as go

    x, y = facts.axes[facts.x], facts.axes[facts.y]
    line = front_line(facts, x.metric, y.metric)
    traces: list[go.Scatter] = [
        go.Scatter(
            x=[a for a, _ in line],
            y=[b for _, b in line],
            mode="lines",
            name="best trade-offs on these axes",
            line={"dash": "dot", "color": OTHER, "width": 1.5},
            hoverinfo="skip",
        )
    ]
    for index, (origin, points) in enumerate(facts.groups):
        traces.append(_group(origin, points, x.values[index], y.values[index]))
    if facts.chosen is not None:
        traces.append(_chosen(facts.chosen, x.metric, y.metric))
    return figure(
        traces,
        height_px=520,
        xaxis=_axis(x),
        yaxis=_axis(y),
    )


def _axis(axis: Axis) -> dict[str, object]:
    return {
        "title": {"text": axis.metric.axis_title},
        "type": "log" if axis.log else "linear",
        "tickformat": tick_format(axis.metric),
        "ticksuffix": SI_SUFFIXES.get(axis.metric.unit, ""),
    }


def tick_format(metric: Metric) -> str:
    """Return the d3 format of an axis: SI prefixes for physical units, percent for shares, else plain."""
    if metric.unit in SI_SUFFIXES:
        return "~s"
    return "~%" if metric.name == "top1" else "~g"


def _group(
    origin: str, points: tuple[Point, ...], x: tuple[float | None, ...], y: tuple[float | None, ...]
) -> go.Scatter:
    import plotly.graph_objects as go

    base = ORIGIN_SYMBOLS.get(origin, "triangle-up")
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        name=plotly_text(ORIGIN_WORDS.get(origin, origin)),
        hovertext=[plan_hover(point) for point in points],
        hoverinfo="text",
        marker={
            "size": 11,
            "symbol": [base if point.measured else f"{base}-open" for point in points],
            "color": ORIGIN_COLOURS.get(origin, OTHER),
            "line": {"width": 1.5, "color": ORIGIN_COLOURS.get(origin, OTHER)},
        },
    )


def _chosen(point: Point, x: Metric, y: Metric) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[x.value(point)],
        y=[y.value(point)],
        mode="markers+text",
        name="chosen plan",
        text=["chosen"],
        textposition="top center",
        textfont={"color": CHOSEN, "size": 13},
        hovertext=[plan_hover(point)],
        hoverinfo="text",
        cliponaxis=False,
        marker={"size": 22, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 3, "color": CHOSEN}},
    )


def plan_hover(point: Point) -> str:
    """Return the plan's numbers and arrangement for a hover label."""
    lines = [f"{point.name} ({ORIGIN_WORDS.get(point.origin, point.origin)})"]
    for metric in METRICS:
        value = metric.value(point)
        if value is not None:
            unit = f" {metric.unit}" if metric.unit in {"nats", "bits"} else ""
            origin = f" ({metric.tag})" if metric.tag in {"predicted", "measured"} else ""
            lines.append(f"{metric.label}: {metric.text(value)}{unit}{origin}")
    if point.measured is None:
        lines.append("quality not measured")
    lines.extend(
        f"{', '.join(stage['devices'])}: {layer_span(*stage['layers'])}" for stage in stages_of(point)
    )
    return hover(*lines)


def picker(facts: ParetoInfo) -> AxisPicker:
    """Return the values of every trace on every axis: line, groups, chosen plan."""
    choices = tuple(_choice(facts, axis) for axis in facts.axes)
    fronts = tuple(tuple(front_line(facts, x.metric, y.metric) for x in facts.axes) for y in facts.axes)
    return AxisPicker(choices, facts.x, facts.y, 0, fronts)


def _choice(facts: ParetoInfo, axis: Axis) -> AxisChoice:
    metric = axis.metric
    chosen = () if facts.chosen is None else ((metric.value(facts.chosen),),)
    return AxisChoice(
        label=metric.label if metric.tag in {"", "given"} else f"{metric.label} ({metric.tag})",
        title=metric.axis_title,
        suffix=SI_SUFFIXES.get(metric.unit, ""),
        tick_format=tick_format(metric),
        log=axis.log,
        values=((), *axis.values, *chosen),
    )


@section(
    "tradeoffs",
    title="Trade-offs",
    nav="Trade-offs",
    order=10,
    lead="Every plan of the front and every uniform baseline. Filled markers have a measured quality, "
    "open ones only a predicted one.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the scatter with its axis menus."""
    facts = info(result)
    if not facts.axes:
        return (Note("There is no plan to draw: the front and the baselines are empty."),)
    unmeasured = sum(point.measured is None for point in facts.points)
    captions = []
    if facts.chosen is not None:
        captions.append(f"The ring marks the chosen plan, {facts.chosen.name}.")
    if unmeasured == len(facts.points):
        captions.append("No plan was measured, so every quality here is predicted.")
    elif unmeasured:
        captions.append(
            f"{unmeasured} of {len(facts.points)} plans were not measured and are absent from measured axes."
        )
    x, y = facts.axes[facts.x].metric, facts.axes[facts.y].metric
    chart = Chart(
        "chart-pareto",
        "Plans by quality and cost",
        f"Scatter of {len(facts.points)} plans, {x.label} against {y.label}; the table above has them all.",
        (Variant("plans", figure_of(facts)),),
        caption=" ".join(captions),
        axes=picker(facts),
    )
    return (chart,)
