"""When each device works: prefill and the first decode rounds of the chosen plan."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.blocks import Block, Chart, Note, Variant, hover, plotly_text
from reports.figures import figure
from reports.section import section
from reports.theme import PHASE_COLOURS, series_colour
from reports.units import fmt_percent, fmt_si
from studies.result import StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go
MAX_LEGEND = 8


@dataclass(frozen=True)
class Span:
    """One micro-batch on one device, or on the link between two (``first → second``)."""

    device: str
    phase: str
    micro_batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class TimelineInfo:
    """All spans; ``busy_frac[phase][device]`` is the share of the phase's time that a device works."""

    spans: tuple[Span, ...]
    devices: tuple[str, ...]
    phases: tuple[str, ...]
    busy_frac: dict[str, dict[str, float]]


def info(result: StudyResult) -> TimelineInfo:
    """Read the spans and add up how busy each device is."""
    spans = tuple(
        Span(
            str(e["device"]).replace("->", "→"),
            e["phase"],
            int(e["micro_batch"]),
            float(e["start_s"]),
            float(e["end_s"]),
        )
        for e in result.timeline
    )
    devices = tuple(dict.fromkeys(span.device for span in spans))
    phases = tuple(dict.fromkeys(span.phase for span in spans))
    busy: dict[str, dict[str, float]] = {}
    for phase in phases:
        here = [span for span in spans if span.phase == phase]
        length = max(span.end_s for span in here) - min(span.start_s for span in here)
        work: dict[str, float] = defaultdict(float)
        for span in here:
            work[span.device] += span.end_s - span.start_s
        busy[phase] = {device: work[device] / length if length > 0 else 0.0 for device in devices}
    return TimelineInfo(spans, devices, phases, busy)


def figure_of(facts: TimelineInfo, phase: str | None) -> go.Figure:
    """Draw one phase coloured by micro-batch, or all phases coloured by phase; time starts at 0."""
    spans = [span for span in facts.spans if phase in (None, span.phase)]
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        groups[span.phase if phase is None else f"micro-batch {span.micro_batch}"].append(span)
    origin = min(span.start_s for span in spans)
    devices = tuple(name for name in facts.devices if any(span.device == name for span in spans))
    traces = [
        _bars(
            name,
            members,
            devices,
            origin,
            PHASE_COLOURS.get(name, series_colour(index)) if phase is None else series_colour(index),
        )
        for index, (name, members) in enumerate(groups.items())
    ]
    busy = facts.busy_frac.get(phase or "", {})
    ticks = [
        plotly_text(device) + (f"<br>{fmt_percent(busy[device], 0)} busy" if device in busy else "")
        for device in devices
    ]
    start = "the start of the job" if phase is None else f"the start of the {phase}"
    return figure(
        traces,
        height_px=150 + 56 * len(devices),
        showlegend=len(groups) <= MAX_LEGEND,
        barmode="overlay",
        bargap=0.35,
        xaxis={
            "title": {"text": plotly_text(f"Time since {start} [s] — predicted")},
            "tickformat": "~s",
            "ticksuffix": "s",
            "rangemode": "tozero",
        },
        yaxis={
            "autorange": "reversed",
            "tickvals": list(range(len(devices))),
            "ticktext": ticks,
            "showgrid": False,
        },
    )


def _bars(name: str, spans: list[Span], devices: tuple[str, ...], origin_s: float, colour: str) -> go.Bar:
    import plotly.graph_objects as go

    return go.Bar(
        orientation="h",
        name=plotly_text(name),
        y=[devices.index(span.device) for span in spans],
        x=[span.end_s - span.start_s for span in spans],
        base=[span.start_s - origin_s for span in spans],
        marker={"color": colour, "line": {"width": 0.5, "color": "rgba(255,255,255,0.5)"}},
        hovertext=[
            hover(
                f"{span.device}, {span.phase}",
                f"micro-batch {span.micro_batch}",
                f"{fmt_si(span.start_s, 's', 4)} to {fmt_si(span.end_s, 's', 4)}",
                f"{fmt_si(span.end_s - span.start_s, 's')}, predicted",
            )
            for span in spans
        ],
        hoverinfo="text",
        showlegend=True,
    )


@section(
    "timeline",
    title="Pipeline timeline",
    nav="Timeline",
    order=60,
    lead="When each device and link of the chosen plan works, and when it waits for the others.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show a Gantt chart per phase."""
    facts = info(result)
    if not facts.spans:
        return (Note("The result holds no timeline, so the pipeline cannot be drawn."),)
    views = [Variant(phase, figure_of(facts, phase)) for phase in facts.phases]
    if len(facts.phases) > 1:
        views.append(Variant("all phases", figure_of(facts, None)))
    chart = Chart(
        "chart-timeline",
        "Who works when",
        f"Gantt chart of {len(facts.devices)} devices over {', '.join(facts.phases)}.",
        tuple(views),
        picker="Phase",
        caption="Decode shows its first rounds only: later rounds repeat the pattern with a longer context.",
    )
    return (chart,)
