"""How the search closed in: dominated hypervolume over the trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.blocks import Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.section import section
from reports.theme import CHOSEN, ORIGIN_COLOURS, OTHER
from reports.units import fmt_percent, fmt_significant
from studies.result import StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class ProgressInfo:
    """Hypervolumes as shares of the combined front's.

    Attributes:
        steps: (trial, share) of the sampled search so far.
        exact_frac: share of the exact solver's points alone; None where it is unknown.
        tpe_frac: share of the sampled points alone.
        combined: the hypervolume that counts as 1, in the product of the objectives' units.
        objectives: names, with the reference point's coordinates.
    """

    steps: tuple[tuple[int, float], ...]
    exact_frac: float | None
    tpe_frac: float | None
    combined: float
    objectives: tuple[tuple[str, float | None], ...]


def info(result: StudyResult) -> ProgressInfo | None:
    """Scale by the combined front; None where there is none."""
    volume = result.hypervolume
    combined = volume.get("combined")
    if not combined:
        return None
    reference = volume.get("reference") or {}
    exact, tpe = volume.get("exact"), volume.get("tpe")
    return ProgressInfo(
        steps=tuple((int(e["trial"]), float(e["hypervolume"]) / combined) for e in result.progress),
        exact_frac=None if exact is None else exact / combined,
        tpe_frac=None if tpe is None else tpe / combined,
        combined=combined,
        objectives=tuple((name, reference.get(name)) for name in volume.get("objectives", [])),
    )


def figure_of(facts: ProgressInfo) -> go.Figure:
    """Draw the share after every trial, and the exact solver's as a line."""
    import plotly.graph_objects as go

    last = facts.steps[-1][0]
    traces = [
        go.Scatter(
            x=[trial for trial, _ in facts.steps],
            y=[share for _, share in facts.steps],
            mode="lines",
            line={"shape": "hv", "color": ORIGIN_COLOURS["tpe"], "width": 2.5},
            name="search so far",
            hovertext=[hover(f"trial {trial}", fmt_percent(share, 2)) for trial, share in facts.steps],
            hoverinfo="text",
        )
    ]
    marks = [
        ("exact solver alone", facts.exact_frac, ORIGIN_COLOURS["exact"]),
        ("both together", 1.0, CHOSEN),
    ]
    traces.extend(
        go.Scatter(
            x=[facts.steps[0][0], last],
            y=[share, share],
            mode="lines",
            line={"dash": "dash", "width": 1.5, "color": colour},
            name=plotly_text(name),
            hoverinfo="skip",
        )
        for name, share, colour in marks
        if share is not None
    )
    return figure(
        traces,
        height_px=360,
        xaxis={"title": {"text": "Trial"}, "zeroline": False},
        yaxis={
            "title": {"text": "Share of the combined front"},
            "tickformat": "~%",
            "zerolinecolor": OTHER,
        },
    )


@section(
    "search",
    title="How the search went",
    nav="Search",
    order=90,
    lead="The hypervolume is the part of the objective space that the front dominates: more is better.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the progress and what each of the two searches contributed."""
    facts = info(result)
    if facts is None:
        return (Note("The result holds no hypervolume."),)
    share = {
        "the exact solver's points alone reach": facts.exact_frac,
        "the sampled points alone reach": facts.tpe_frac,
    }
    told = " and ".join(f"{who} {fmt_percent(frac)}" for who, frac in share.items() if frac is not None)
    words = f"Of the combined front's hypervolume, {told}." if told else ""
    corners = ", ".join(
        name if value is None else f"{name} = {fmt_significant(value)}" for name, value in facts.objectives
    )
    words += f" It is measured from the reference point {corners}." if corners else ""
    blocks: list[Block] = [Note(words.strip())] if words else []
    if len(facts.steps) < 2:
        return (*blocks, Note("There were too few sampled trials to draw a curve.", "muted"))
    blocks.append(
        Chart(
            "chart-progress",
            "Hypervolume over the trials",
            f"The search ends at {fmt_percent(facts.steps[-1][1])} of the combined hypervolume "
            f"after trial {facts.steps[-1][0]}.",
            (Variant("hypervolume", figure_of(facts)),),
        )
    )
    return tuple(blocks)
