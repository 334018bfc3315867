"""Tables of ``dse plan`` beside the plan itself: what if, baselines, emulated checks, fronts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from dse.cli.output import note, si, table

if TYPE_CHECKING:
    from dse.partition.pareto import Axis
    from dse.partition.problem import Solution
    from dse.partition.what_if import Change
    from studies.accuracy import Verified
    from studies.comparison import BaselineRow, FrontRow
    from studies.planning import Planned

AXIS_UNITS = {
    "quality": "",
    "time": "s",
    "ttft": "s",
    "tpot": "s",
    "throughput": "tokens/s",
    "energy": "J/token",
    "cost": "USD/Mtok",
}


def change_document(change: Change) -> dict[str, Any]:
    """Return a change as JSON."""
    solution = change.solution
    return {
        "what": change.what,
        "status": solution.status,
        "value": solution.value,
        "bound": solution.bound,
        "gap_frac": solution.gap_frac,
        "time_s": solution.time_s,
        "moved_layers": list(change.moved_layers),
        "moved_bytes": change.moved_bytes,
        "binding": solution.binding,
    }


def show_changes(changes: list[Change], before: Solution) -> None:
    """Show what every change costs, and what moves."""
    rows = []
    for change in changes:
        solution = change.solution
        if solution.value is None or before.value is None:
            rows.append((change.what, "no plan", "", "", "", f"{solution.time_s:.2f} s"))
            note(f"{change.what}: {solution.binding}")
            continue
        gap = 0.0 if solution.gap_frac is None else solution.gap_frac
        worse = f"{solution.value / before.value - 1:+.1%}"
        moved = f"{len(change.moved_layers)} ({si(change.moved_bytes, 'B')})"
        rows.append(
            (change.what, f"{solution.value:.4f}", worse, f"{gap:.1g}", moved, f"{solution.time_s:.2f} s")
        )
    table("What if", ("change", "value", "against the plan", "gap", "layers that change", "solved in"), rows)


def show_baselines(rows: list[BaselineRow], planned: Planned) -> None:
    """Show the published planners on the same tables beside the plan."""
    own = planned.candidate.solution
    lines = [("this plan", f"{own.value:.4f}", "", f"{own.penalty:.4g}", "")]
    for row in rows:
        name = f"{row.name}, {row.precision}" if row.precision else row.name
        if row.value is None or row.over_ours_frac is None or row.penalty is None:
            lines.append((name, "no plan", "", "", row.reason))
            continue
        breaks = "; ".join(row.breaks)
        worse = f"{row.over_ours_frac:+.1%}"
        lines.append((name, f"{row.value:.4f}", worse, f"{row.penalty:.4g}", breaks))
    table(
        "Published planners on the same tables",
        ("planner", "value", "against this plan", "penalty", "breaks"),
        lines,
    )


def checks_document(verified: Verified) -> dict[str, Any]:
    """Return the emulated evaluations as JSON."""
    return {
        "max_increase_frac": verified.max_increase_frac,
        "reference_perplexity": verified.reference_perplexity,
        "n_tokens": verified.n_tokens,
        "evaluations": [asdict(check) for check in verified.checks],
    }


def show_checks(verified: Verified) -> None:
    """Show every emulated evaluation of a perplexity constraint."""
    rows = [
        (
            check.name,
            f"{check.penalty:.4g}",
            "" if check.predicted_increase_frac is None else f"{check.predicted_increase_frac:+.2%}",
            f"{check.perplexity:.3f}",
            f"{check.increase_frac:+.2%} ± {check.noise_frac:.2%}",
            "yes" if check.passes else "no",
        )
        for check in verified.checks
    ]
    table(
        f"Emulated on {verified.n_tokens} tokens (full precision {verified.reference_perplexity:.3f}, "
        f"at most {verified.max_increase_frac:+.2%})",
        ("assignment", "penalty", "predicted", "perplexity", "increase", "passes"),
        rows,
    )


def show_front(rows: list[FrontRow], axes: tuple[Axis, ...], unit: str) -> None:
    """Show a front, one plan a line."""
    lines = [
        (
            *(f"{row.values[axis]:.4g}" for axis in axes),
            f"{row.linear_bits:.2f}",
            ", ".join(f"{device} {first}-{end - 1}" for device, first, end in row.stages),
            f"{row.gap_frac:.1g}",
            row.minimised,
        )
        for row in rows
    ]
    units = {**AXIS_UNITS, "quality": unit}
    columns = tuple(f"{axis} {units[axis]}".strip() for axis in axes)
    table(f"Front, {len(rows)} plans", (*columns, "bits", "stages", "gap", "minimised"), lines)
    typer.echo("gap: of the minimised axis, under the other axes' bounds")
