"""Choices that were ruled out before the search, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from reports.blocks import Block, Cell, Column, Details, Note, Row, Table
from reports.section import section
from reports.units import plural
from studies.result import StudyResult


@dataclass(frozen=True)
class DroppedInfo:
    """(device, reason, precisions), equal reasons of one device joined."""

    groups: tuple[tuple[str, str, tuple[str, ...]], ...]

    @property
    def n_choices(self) -> int:
        """How many (device, precision) pairs were dropped."""
        return sum(len(precisions) for _, _, precisions in self.groups)


def info(result: StudyResult) -> DroppedInfo:
    """Group by device and reason, in the order of the result."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in result.dropped:
        groups.setdefault((entry["device"], entry["reason"]), []).append(entry["precision"])
    return DroppedInfo(tuple((device, reason, tuple(names)) for (device, reason), names in groups.items()))


@section(
    "dropped",
    title="Choices ruled out",
    nav="Ruled out",
    order=100,
    lead="What a device or the runtime cannot do is absent from the search, not priced at infinity.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the reasons in a folded table."""
    facts = info(result)
    if not facts.groups:
        return (Note("Nothing was ruled out: every device runs every precision of the study."),)
    rows = tuple(
        Row((Cell(device), Cell(", ".join(names)), Cell(reason))) for device, reason, names in facts.groups
    )
    table = Table(
        "Ruled out before the search", (Column("Device"), Column("Precisions"), Column("Why")), rows
    )
    return (Details(f"{plural(facts.n_choices, 'choice')} ruled out, with reasons", (table,)),)
