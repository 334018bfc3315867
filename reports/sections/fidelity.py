"""Predicted against measured quality: how far the additive prediction can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.blocks import Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.section import section
from reports.stats import PowerLaw, fit_power_law, spearman
from reports.theme import CHOSEN, ORIGIN_COLOURS, ORIGIN_SYMBOLS, ORIGIN_WORDS, OTHER
from reports.units import fmt_fixed, fmt_perplexity, fmt_significant
from studies.result import Point, StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class FidelityInfo:
    """Measured plans with a positive KL on both sides, which a logarithmic axis can show.

    Attributes:
        points: the plans; ``n_left_out``: measured ones with a KL of zero or below on a side.
        rho: Spearman's rank correlation over all measured plans, None below three.
        fit: measured = factor * predicted ** exponent, by least squares on the logarithms.
    """

    points: tuple[Point, ...]
    n_measured: int
    n_left_out: int
    rho: float | None
    fit: PowerLaw | None
    chosen: str


def info(result: StudyResult) -> FidelityInfo:
    """Pair predicted with measured KL."""
    measured = [point for point in (*result.front, *result.baselines) if point.measured is not None]
    pairs = [(p.predicted.kl_nats, p.measured.kl_nats) for p in measured if p.measured is not None]
    points = tuple(point for point, (a, b) in zip(measured, pairs, strict=True) if a > 0 and b > 0)
    return FidelityInfo(
        points=points,
        n_measured=len(measured),
        n_left_out=len(measured) - len(points),
        rho=spearman([a for a, _ in pairs], [b for _, b in pairs]),
        fit=fit_power_law([a for a, _ in pairs], [b for _, b in pairs]),
        chosen=result.chosen,
    )


def figure_of(facts: FidelityInfo) -> go.Figure:
    """Draw the plans, the line where both agree, and the fitted line."""
    import plotly.graph_objects as go

    values = [p.predicted.kl_nats for p in facts.points]
    both = values + [p.measured.kl_nats for p in facts.points if p.measured is not None]
    low, high = min(both) / 1.5, max(both) * 1.5
    traces = [
        go.Scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            name="prediction is right",
            line={"color": OTHER, "dash": "dash", "width": 1.5},
            hoverinfo="skip",
        )
    ]
    if facts.fit is not None:
        ends = [min(values), max(values)]
        traces.append(
            go.Scatter(
                x=ends,
                y=[facts.fit(x) for x in ends],
                mode="lines",
                name="fitted line",
                line={"color": CHOSEN, "width": 1.5},
                hoverinfo="skip",
            )
        )
    traces.extend(
        _group(origin, [point for point in facts.points if point.origin == origin])
        for origin in dict.fromkeys(point.origin for point in facts.points)
    )
    traces.extend(_ring(point) for point in facts.points if point.name == facts.chosen)
    return figure(
        traces,
        height_px=480,
        xaxis=_axis("KL to full precision [nats] — predicted (sum over units)", low, high),
        yaxis=_axis("KL to full precision [nats] — measured", low, high),
    )


def _axis(title: str, low: float, high: float) -> dict[str, object]:
    """A logarithmic axis labelled at powers of ten, or also at 2 and 5 where it is short."""
    return {
        "type": "log",
        "title": {"text": title},
        "dtick": 1 if high / low > 100 else "D2",
        "tickformat": "~e",
    }


def _group(origin: str, points: list[Point]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[point.predicted.kl_nats for point in points],
        y=[point.measured.kl_nats for point in points if point.measured is not None],
        mode="markers",
        name=plotly_text(ORIGIN_WORDS.get(origin, origin)),
        hovertext=[_hover(point) for point in points],
        hoverinfo="text",
        marker={
            "size": 11,
            "symbol": ORIGIN_SYMBOLS.get(origin, "triangle-up"),
            "color": ORIGIN_COLOURS.get(origin, OTHER),
        },
    )


def _ring(point: Point) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[point.predicted.kl_nats],
        y=[point.measured.kl_nats] if point.measured is not None else [],
        mode="markers",
        name="chosen plan",
        hoverinfo="skip",
        marker={"size": 20, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 3}},
    )


def _hover(point: Point) -> str:
    assert point.measured is not None  # only measured plans are drawn
    return hover(
        point.name,
        f"KL predicted {fmt_significant(point.predicted.kl_nats)} nats",
        f"KL measured {fmt_significant(point.measured.kl_nats)} nats",
        f"perplexity measured {fmt_perplexity(point.measured.perplexity)}",
    )


@section(
    "fidelity",
    title="Predicted and measured quality",
    nav="Fidelity",
    order=70,
    lead="The search ranks plans by a sum of unit sensitivities; the finalists are then run. "
    "Here is how well the sum foretold the run.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the scatter with the rank correlation in its title."""
    facts = info(result)
    if not facts.points:
        return (
            Note("No plan has a measured quality, so the prediction cannot be checked.", "warn", "Unchecked"),
        )
    rho = (
        "" if facts.rho is None else f": Spearman’s ρ = {fmt_fixed(facts.rho)} over {facts.n_measured} plans"
    )
    caption = "Points above the dashed line lose more than predicted."
    if facts.fit is not None:
        caption += (
            f" Fitted: measured ≈ {fmt_significant(facts.fit.factor)} × "
            f"predicted^{fmt_fixed(facts.fit.exponent)}."
        )
    if facts.n_left_out:
        caption += f" {facts.n_left_out} plans with a KL of zero or below have no place on these axes."
    chart = Chart(
        "chart-fidelity",
        f"Predicted and measured KL{rho}",
        f"Scatter of {len(facts.points)} plans, predicted against measured KL.",
        (Variant("KL", figure_of(facts)),),
        caption=caption,
    )
    return (chart,)
