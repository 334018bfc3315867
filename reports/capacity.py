"""One page about a capacity plan: the fleet with its proof, the simulation, and the questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.content import write_atomic
from reports.build import RenderedSection, render_page
from reports.capacity_curves import (
    break_even_map,
    cost_curve,
    losses,
    other_answers,
    price_table,
    quantization_table,
    two_years_chart,
)
from reports.capacity_fleet import fleet_blocks, latency_blocks, source_blocks, utilisation_blocks
from reports.units import fmt_usd


@dataclass(frozen=True)
class CapacityHeading:
    """The top of the page."""

    title: str
    lead: str
    facts: str


def write_capacity_report(result: dict[str, Any], path: Path) -> Path:
    """Write the page, in place of an older one only once it is whole; return ``path``."""
    write_atomic(path, render_capacity_report(result))
    return path


def render_capacity_report(result: dict[str, Any]) -> str:
    """Return the page of a result of ``studies.capacity_run`` as one HTML text, byte by byte the same."""
    fleet, load = result["fleet"], result["load"]
    machines = " + ".join(f"{n}× {name}" for name, n in fleet["nodes"].items())
    levels = "; ".join(
        f"{entry['request_class']}: {entry['metric']} within {entry['limit_s']:g} s for "
        f"{entry['percentile']:g} % of the requests"
        for entry in result["simulated"]["levels"]
    )
    heading = CapacityHeading(
        f"{result['model']['name']} for {fmt_usd(fleet['usd_per_h'])} an hour",
        f"{machines} for {load['rate_per_s']:.3g} requests/s",
        f"{levels or 'no service levels'} · catalogue {result['catalogue']['name']}",
    )
    asked = result["questions"]
    sections = [
        RenderedSection("fleet", "The fleet", "Fleet", "", fleet_blocks(result)),
        RenderedSection(
            "latency", "Latency over time", "Latency", "By the time of arrival.", latency_blocks(result)
        ),
        RenderedSection(
            "utilisation",
            "Utilisation",
            "Use",
            "How busy the replicas are, and how full their caches.",
            utilisation_blocks(result),
        ),
    ]
    more = (
        ("rate", "Cost against rate", "Rate", "cost-vs-rate", cost_curve),
        ("levels", "Cost against service level", "Levels", "cost-vs-level", cost_curve),
        ("context", "Cost against length of prompts", "Context", "cost-vs-context", cost_curve),
        ("break-even", "Which machine wins where", "Break-even", "break-even", break_even_map),
        ("quantization", "What quantization saves", "Precision", "quantization", quantization_table),
        ("losses", "When a machine fails", "Failure", "lose-node", losses),
        ("price", "Sensitivity to prices", "Prices", "price", price_table),
        ("growth", "Two years of growth", "Growth", "two-years", two_years_chart),
    )
    for name, title, nav, question, render in more:
        if question in asked:
            sections.append(RenderedSection(name, title, nav, "", render(question, asked[question], result)))
    others = other_answers(asked)
    if others:
        sections.append(RenderedSection("more", "More answers", "More", "", others))
    sections.append(
        RenderedSection(
            "sources", "Prices, sources, and what is absent", "Sources", "", source_blocks(result)
        )
    )
    return render_page("capacity.html.j2", heading, tuple(sections))
