"""The recommended plan beside what published planners would have done on the same tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reports.blocks import Block, Cell, Column, Note, Row, Table
from reports.points import chosen_point
from reports.section import section
from reports.units import fmt_change, fmt_si, fmt_significant, layer_span
from studies.result import StudyResult


@dataclass(frozen=True)
class PlannerLine:
    """One planner: seconds of the batch, None with the reason in ``verdict`` where it has no plan."""

    name: str
    value_s: float | None
    penalty: float | None
    stages: str
    verdict: str
    feasible: bool


@dataclass(frozen=True)
class PlannersInfo:
    """Our plan, the proven bound on every plan of its predicted loss, and the others."""

    plan: str
    stages: str
    value_s: float
    penalty: float
    bound_s: float | None
    lines: tuple[PlannerLine, ...]


def info(result: StudyResult) -> PlannersInfo | None:
    """Read the planners, None where the result has none."""
    found = result.planners
    if not found:
        return None
    lines = tuple(
        PlannerLine(
            f"{row['name']}, {precision_label(row['precision'])}" if row["precision"] else row["name"],
            row["value"],
            row["penalty"],
            _stages(row["stages"]),
            row["reason"] or "; ".join(row["breaks"]) or "feasible",
            row["value"] is not None and not row["breaks"],
        )
        for row in found["rows"]
    )
    chosen = chosen_point(result)
    stages = [] if chosen is None else chosen.plan["stages"]
    return PlannersInfo(
        found["plan"],
        _stages([(stage["devices"][0], *stage["layers"]) for stage in stages]),
        found["value_s"],
        found["max_penalty"],
        found["bound_s"],
        lines,
    )


def precision_label(name: str) -> str:
    """Return a precision without bfloat16 activations and cache, which go without saying."""
    return name.removesuffix("/bf16/bf16")


def _stages(stages: Iterable[Sequence[Any]]) -> str:
    return ", ".join(f"{device} {layer_span(first, end)}" for device, first, end in stages)


@section(
    "planners",
    title="Beside published planners",
    nav="Planners",
    order=85,
    lead="What other planners would have done with the same tables, within the predicted loss of this plan.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show every planner's time, its gap to ours, and whether its plan could be used."""
    facts = info(result)
    if facts is None:
        return (Note("This result was made before published planners were shown beside it."),)
    columns = (
        Column("Planner"),
        Column("Batch", "s", "predicted", numeric=True),
        Column("Against this plan", numeric=True),
        Column("Loss", tag="predicted", numeric=True),
        Column("Stages (layers)"),
        Column("Feasible?"),
    )
    own = Row(
        (
            Cell(f"{facts.plan}, recommended", tone="strong"),
            Cell(fmt_significant(facts.value_s, 4)),
            Cell(""),
            Cell(fmt_significant(facts.penalty)),
            Cell(facts.stages),
            Cell("feasible", tone="good"),
        ),
        "strong",
    )
    rows = (own, *(Row(_cells(line, facts.value_s)) for line in facts.lines))
    caption = "One precision per layer, as these planners have it; uniform and PipeEdge one for all layers."
    return (*_proof(facts), Table(caption, columns, rows))


def _proof(facts: PlannersInfo) -> tuple[Note, ...]:
    if facts.bound_s is None:
        return ()
    text = (
        f"Proven: no plan within this predicted loss takes less than {fmt_si(facts.bound_s, 's', 4)} a batch"
    )
    over = facts.value_s / facts.bound_s - 1
    if over <= 1e-5:
        return (Note(f"{text}; the recommended plan reaches it.", "good"),)
    return (Note(f"{text}; the recommended plan is {over:.2%} above."),)


def _cells(line: PlannerLine, own_s: float) -> tuple[Cell, ...]:
    if line.value_s is None:
        absent = (Cell("no plan", tone="muted"), Cell(""), Cell(""), Cell(""))
        return (Cell(line.name), *absent, Cell(line.verdict, tone="bad"))
    return (
        Cell(line.name),
        Cell(fmt_significant(line.value_s, 4)),
        Cell(fmt_change(line.value_s, own_s)),
        Cell(fmt_significant(line.penalty)),
        Cell(line.stages),
        Cell(line.verdict, tone="good" if line.feasible else "bad"),
    )
