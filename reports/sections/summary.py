"""The answer, on top: the chosen plan, its numbers, and whether it beats uniform precision."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from reports.blocks import Block, Cell, Column, Note, Part, Row, Strip, Table, Tile, Tiles, Tone
from reports.points import (
    METRIC,
    SOURCE_WORDS,
    chosen_point,
    device_names,
    format_bits,
    stage_name,
    stages_of,
)
from reports.section import section
from reports.theme import OTHER, bits_colour, series_colour
from reports.units import (
    fmt_change,
    fmt_difference,
    fmt_fixed,
    fmt_percent,
    fmt_perplexity,
    fmt_si,
    fmt_usd,
    layer_span,
    plural,
)
from studies.result import Point, StudyResult

TABLE_METRICS = (
    "bits",
    "linear_bits",
    "perplexity",
    "kl_measured",
    "kl_predicted",
    "ttft",
    "tpot",
    "energy",
    "memory",
    "cost",
)
LABELS = {
    "bits": "Bits",
    "linear_bits": "Linear bits",
    "kl_measured": "KL",
    "kl_predicted": "KL",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "energy": "Energy",
    "memory": "Memory",
    "cost": "$/Mtok",
}


@dataclass(frozen=True)
class Rival:
    """A uniform plan beside the chosen one.

    ``larger`` says whether it spends at least as many bits (the chosen plan should be better or equal
    although it spends less) or fewer (the chosen plan should be better for what it spends more).
    """

    point: Point
    larger: bool
    chosen_wins: bool


@dataclass(frozen=True)
class SummaryInfo:
    """What the first screen says.

    Attributes:
        chosen, reason: the recommended plan and why.
        rivals: the uniform plans next to it in bits (at most one larger, one smaller) with measured quality.
        line_perplexity: of a uniform plan of the same bits, interpolated between the rivals (linear in
            bits and log perplexity); None where there are not both.
        n_wins, n_comparisons: how often a mixed plan beats a uniform one (result.comparisons).
        formats: (weight format, units that have it) of the chosen plan, few bits first.
        reference_perplexity: of the unquantized model, None where it was not measured.
    """

    chosen: Point | None
    reason: str
    rivals: tuple[Rival, ...]
    line_perplexity: float | None
    n_wins: int
    n_comparisons: int
    formats: tuple[tuple[str, int], ...]
    reference_perplexity: float | None
    devices: tuple[str, ...]
    points: tuple[Point, ...]


def info(result: StudyResult) -> SummaryInfo:
    """Collect the answer."""
    chosen = chosen_point(result)
    rivals = _rivals(chosen, result.baselines)
    formats: Counter[str] = Counter()
    if chosen is not None:
        formats.update(names["weights"] for names in chosen.plan.get("assignment", {}).values())
    return SummaryInfo(
        chosen=chosen,
        reason=result.chosen_reason,
        rivals=rivals,
        line_perplexity=_line_perplexity(chosen, rivals),
        n_wins=sum(bool(entry.get("wins")) for entry in result.comparisons),
        n_comparisons=len(result.comparisons),
        formats=tuple(sorted(formats.items(), key=lambda item: (format_bits(item[0]) or 0.0, item[0]))),
        reference_perplexity=result.reference.get("perplexity"),
        devices=device_names(result),
        points=(*result.front, *result.baselines),
    )


def _rivals(chosen: Point | None, baselines: list[Point]) -> tuple[Rival, ...]:
    """Return the nearest measured uniform plans with at least as many and with fewer bits."""
    if chosen is None or chosen.measured is None:
        return ()
    bits, quality = chosen.predicted.effective_bits, chosen.measured.perplexity
    measured = [point for point in baselines if point.measured is not None and point.name != chosen.name]
    larger = [point for point in measured if point.predicted.effective_bits >= bits]
    smaller = [point for point in measured if point.predicted.effective_bits < bits]
    rivals = []
    for point, is_larger in (
        (min(larger, key=lambda p: p.predicted.effective_bits, default=None), True),
        (max(smaller, key=lambda p: p.predicted.effective_bits, default=None), False),
    ):
        if point is not None and point.measured is not None:
            rival = point.measured.perplexity
            rivals.append(Rival(point, is_larger, quality <= rival if is_larger else quality < rival))
    return tuple(rivals)


def _line_perplexity(chosen: Point | None, rivals: tuple[Rival, ...]) -> float | None:
    """Interpolate the uniform rivals' log perplexity at the chosen plan's bits."""
    if chosen is None or len(rivals) != 2:
        return None
    (high, low) = (rival.point for rival in rivals)
    if high.measured is None or low.measured is None:
        return None
    span = high.predicted.effective_bits - low.predicted.effective_bits
    share = (chosen.predicted.effective_bits - low.predicted.effective_bits) / span
    logs = math.log(low.measured.perplexity), math.log(high.measured.perplexity)
    return math.exp(logs[0] + share * (logs[1] - logs[0]))


@section("summary", title="The answer", nav="Answer", order=0)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the chosen plan in words, key figures and bars, the verdict, and the table of all plans."""
    facts = info(result)
    if facts.chosen is None:
        lead: tuple[Block, ...] = (
            Note("This result recommends no plan.", tone="warn", title="No plan chosen"),
        )
    else:
        lead = (
            Note(answer_text(facts, facts.chosen), "strong", headline(facts.chosen)),
            Tiles(_tiles(facts, facts.chosen)),
            *_strips(facts, facts.chosen),
            *verdict(facts, facts.chosen),
            *_energy_note(facts.chosen),
        )
    return (*lead, *_table(facts, result.chosen))


def headline(chosen: Point) -> str:
    """Return the recommendation in a few words."""
    n_devices = sum(len(stage["devices"]) for stage in stages_of(chosen))
    return f"Serve {chosen.name} on {plural(n_devices, 'device')}" if n_devices else f"Serve {chosen.name}"


def answer_text(facts: SummaryInfo, chosen: Point) -> str:
    """Return what the plan spends, and why it is the one."""
    text = (
        f"It spends {fmt_fixed(chosen.predicted.linear_effective_bits)} bits per weight in the linears of "
        f"the blocks, {fmt_fixed(chosen.predicted.effective_bits)} over all parameters, scales included."
    )
    return f"{text} Why this one: {facts.reason}" if facts.reason else text


def _tiles(facts: SummaryInfo, chosen: Point) -> tuple[Tile, ...]:
    predicted = chosen.predicted
    source = SOURCE_WORDS.get(predicted.provenance, "predicted")
    share = fmt_usd(predicted.cost_usd_per_mtok)
    cost_detail = (
        "the price of a device is not known" if predicted.cost_usd_per_mtok is None else "per million tokens"
    )
    return (
        _quality_tile(facts, chosen),
        Tile(
            "Time to first token",
            fmt_si(predicted.ttft_s, "s"),
            f"whole job {fmt_si(predicted.total_s, 's')}",
            source,
        ),
        Tile(
            "Time per token",
            fmt_si(predicted.tpot_s, "s"),
            f"{fmt_si(predicted.throughput_tokens_per_s, 'tokens/s')} for the batch",
            source,
        ),
        Tile("Energy per token", fmt_si(predicted.energy_j_per_token, "J"), _energy_detail(chosen), source),
        Tile(
            "Memory",
            fmt_si(predicted.memory_total_bytes, "B"),
            f"over {plural(len(predicted.memory_bytes), 'device')}",
            source,
        ),
        Tile("Cost", share, cost_detail, source),
    )


def _quality_tile(facts: SummaryInfo, chosen: Point) -> Tile:
    if chosen.measured is None:
        kl = METRIC["kl_predicted"].text(chosen.predicted.kl_nats)
        return Tile("KL to full precision", f"{kl} nats", "quality was not measured", "predicted")
    change = fmt_change(chosen.measured.perplexity, facts.reference_perplexity)
    detail = (
        f"{fmt_percent(chosen.measured.top1_agreement_frac)} top-1 agreement"
        if facts.reference_perplexity is None
        else f"{change} vs unquantized {fmt_perplexity(facts.reference_perplexity)}"
    )
    return Tile("Perplexity", fmt_perplexity(chosen.measured.perplexity), detail, "measured")


def _energy_detail(chosen: Point) -> str:
    return "part of the static power is unknown" if chosen.predicted.energy_excludes_static else "all devices"


def _energy_note(chosen: Point) -> tuple[Note, ...]:
    unknown = chosen.predicted.energy_excludes_static
    if not unknown:
        return ()
    return (
        Note(
            f"Energy leaves out the static power of {', '.join(unknown)}: nobody published it. "
            "Compare energies between plans on the same devices only.",
            tone="muted",
        ),
    )


def _strips(facts: SummaryInfo, chosen: Point) -> tuple[Strip, ...]:
    stages = stages_of(chosen)
    strips = []
    if stages:
        parts = tuple(
            Part(
                stage_name(stage),
                layer_span(*stage["layers"]),
                float(stage["layers"][1] - stage["layers"][0]),
                series_colour(facts.devices.index(stage["devices"][0])),
            )
            for stage in stages
        )
        strips.append(Strip("Where the layers run", parts))
    if facts.formats:
        parts = tuple(
            Part(name, plural(count, "unit"), float(count), _format_colour(name))
            for name, count in facts.formats
        )
        strips.append(Strip("Weight formats", parts))
    return tuple(strips)


def _format_colour(name: str) -> str:
    bits = format_bits(name)
    return OTHER if bits is None else bits_colour(bits)


def verdict(facts: SummaryInfo, chosen: Point) -> tuple[Note, ...]:
    """Say whether the plan beats uniform precision, and by how much; a loss is said as plainly as a win."""
    if not facts.rivals or chosen.measured is None:
        return (
            Note(
                "No uniform plan beside it has a measured quality, so whether mixing precisions pays off "
                "is not shown here.",
                tone="warn",
                title="Not compared",
            ),
        )
    lines = [_rival_text(rival, chosen) for rival in facts.rivals]
    if facts.line_perplexity is not None:
        lines.append(
            f"Between the two, a uniform plan of exactly these bits would be near "
            f"{fmt_perplexity(facts.line_perplexity)} (interpolated): "
            f"{fmt_change(chosen.measured.perplexity, facts.line_perplexity)}."
        )
    if facts.n_comparisons:
        lines.append(
            f"Over the whole front, a mixed plan beats {facts.n_wins} of {facts.n_comparisons} "
            "uniform plans without spending more bits."
        )
    title, tone = _judge(facts, chosen.measured.perplexity)
    return (Note("", tone, title, tuple(lines)),)


def _judge(facts: SummaryInfo, perplexity: float) -> tuple[str, Tone]:
    lost = [rival for rival in facts.rivals if not rival.chosen_wins]
    if not lost:
        return "It beats uniform precision", "good"
    names = " and ".join(rival.point.name for rival in lost)
    if all(rival.larger for rival in lost):
        if facts.line_perplexity is not None and perplexity < facts.line_perplexity:
            return f"Better than uniform precision of these bits, but it does not beat {names}", ""
        return f"It does not beat {names}, which spends more bits", "warn"
    return f"Mixing does not pay off here: {names} is at least as good", "warn"


def _rival_text(rival: Rival, chosen: Point) -> str:
    assert chosen.measured is not None  # there are rivals only for a measured plan
    assert rival.point.measured is not None
    ours, theirs = chosen.measured.perplexity, rival.point.measured.perplexity
    bits = fmt_difference(chosen.predicted.effective_bits, rival.point.predicted.effective_bits)
    tpot = fmt_change(chosen.predicted.tpot_s, rival.point.predicted.tpot_s)
    return (
        f"Against {rival.point.name}: {bits} bits, measured perplexity {fmt_perplexity(ours)} instead of "
        f"{fmt_perplexity(theirs)} ({fmt_change(ours, theirs)}), predicted time per token {tpot}."
    )


def _table(facts: SummaryInfo, chosen: str) -> tuple[Block, ...]:
    if not facts.points:
        return (Note("The search found no plan."),)
    shown = tuple(
        name for name in TABLE_METRICS if any(METRIC[name].value(point) is not None for point in facts.points)
    )
    columns = [Column("Plan"), Column("Found by")]
    for name in shown:
        metric = METRIC[name]
        unit = metric.unit if name.startswith("kl") else ""
        tag = "" if metric.tag == "given" else metric.tag
        columns.append(Column(LABELS.get(name, metric.label), unit, tag, numeric=True))
    rows = tuple(_row(point, chosen, shown) for point in facts.points)
    caption = (
        "The Pareto front and the uniform plans. Bits are per parameter of the whole model, scales included; "
        "linear bits are of the block linears alone. Energy is per token."
    )
    return (Table(caption, tuple(columns), rows, sortable=True),)


def _remark(point: Point, chosen: str) -> str:
    """Say beside the name what sets a plan apart."""
    if point.predicted.missing_bytes:
        return f"{fmt_si(point.predicted.missing_bytes, 'B')} too large"
    return "chosen" if point.name == chosen else ""


def _row(point: Point, chosen: str, shown: tuple[str, ...]) -> Row:
    cells = [
        Cell(point.name, detail=_remark(point, chosen)),
        Cell(point.origin),
    ]
    for name in shown:
        metric = METRIC[name]
        value = metric.value(point)
        if value is None:
            missing = "unknown" if name == "cost" else "not run"
            cells.append(Cell(missing, tone="muted"))
        else:
            cells.append(Cell(metric.text(value), sort=value))
    if point.name == chosen:
        return Row(tuple(cells), tone="strong")
    return Row(tuple(cells), tone="muted" if point.origin == "uniform" else "")
