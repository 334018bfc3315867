"""Mixed against uniform precision: who wins at no more bits, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from reports.blocks import Block, Cell, Column, Note, Row, Table
from reports.section import section
from reports.units import fmt_change, fmt_difference, fmt_fixed, fmt_perplexity
from studies.result import StudyResult


@dataclass(frozen=True)
class Duel:
    """One uniform plan and the best mixed plan of at most its bits; ``mixed`` is None where there is none."""

    uniform: str
    uniform_bits: float
    uniform_perplexity: float | None
    mixed: str | None
    mixed_bits: float | None
    mixed_perplexity: float | None
    wins: bool

    @property
    def decided(self) -> bool:
        """Whether both sides were measured."""
        return self.mixed_perplexity is not None and self.uniform_perplexity is not None

    @property
    def verdict(self) -> str:
        """Say who wins and by how much in perplexity."""
        if self.mixed is None:
            return "no mixed plan of at most these bits"
        if self.mixed_perplexity is None or self.uniform_perplexity is None:
            return "not measured"
        change = fmt_change(self.mixed_perplexity, self.uniform_perplexity).lstrip("+−")
        return f"mixed wins by {change}" if self.wins else f"mixed falls short by {change}"


@dataclass(frozen=True)
class UniformInfo:
    """All duels, small bits first."""

    duels: tuple[Duel, ...]

    @property
    def n_wins(self) -> int:
        """How many the mixed plan wins."""
        return sum(duel.wins for duel in self.duels)


def info(result: StudyResult) -> UniformInfo:
    """Read the comparisons."""
    duels = [
        Duel(
            entry["uniform"],
            entry["uniform_bits"],
            entry.get("uniform_perplexity"),
            entry.get("mixed"),
            entry.get("mixed_bits"),
            entry.get("mixed_perplexity"),
            bool(entry.get("wins")),
        )
        for entry in result.comparisons
    ]
    return UniformInfo(tuple(sorted(duels, key=lambda duel: (duel.uniform_bits, duel.uniform))))


@section(
    "uniform",
    title="Mixed against uniform",
    nav="Uniform",
    order=80,
    lead="For every uniform plan, the best mixed plan that spends no more bits.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the duels as a table, with the score in a sentence."""
    facts = info(result)
    if not facts.duels:
        return (Note("No uniform plan was compared with a mixed one."),)
    columns = (
        Column("Uniform plan"),
        Column("Bits", numeric=True),
        Column("Perplexity", tag="measured", numeric=True),
        Column("Mixed plan"),
        Column("Bits", numeric=True),
        Column("Difference", "bits", numeric=True),
        Column("Perplexity", tag="measured", numeric=True),
        Column("Verdict"),
    )
    rows = tuple(Row(_cells(duel)) for duel in facts.duels)
    return (_score(facts), Table("Measured perplexity at no more bits; lower is better.", columns, rows))


def _score(facts: UniformInfo) -> Note:
    decided = sum(duel.decided for duel in facts.duels)
    if not decided:
        return Note("None of the comparisons was measured, so none is decided.", "warn")
    score = f"Mixed precision wins {facts.n_wins} of {decided} measured comparisons"
    if facts.n_wins == decided:
        return Note(f"{score}.", "good")
    return Note(f"{score}; what it does not win is marked in red.", "warn")


def _cells(duel: Duel) -> tuple[Cell, ...]:
    return (
        Cell(duel.uniform),
        Cell(fmt_fixed(duel.uniform_bits)),
        Cell(fmt_perplexity(duel.uniform_perplexity)),
        Cell(duel.mixed or "none", tone="" if duel.mixed else "muted"),
        Cell(fmt_fixed(duel.mixed_bits)),
        Cell(fmt_difference(duel.mixed_bits, duel.uniform_bits)),
        Cell(fmt_perplexity(duel.mixed_perplexity)),
        Cell(duel.verdict, tone="good" if duel.wins else "bad" if duel.decided else "muted"),
    )
