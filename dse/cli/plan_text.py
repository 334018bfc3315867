"""A plan of ``dse plan`` as a document and in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from dse.cli.cost_text import at_least, money
from dse.cli.output import si, table
from dse.partition.serving import serving_flags

if TYPE_CHECKING:
    from studies.arrange import Candidate
    from studies.planning import Planned
    from studies.prepare import Prepared
    from studies.result import Predicted

ENERGY_PARTS = 3  # static, memory, compute
WHAT = {
    "time": "s for the batch",
    "ttft": "s to the first tokens",
    "tpot": "s between two tokens",
    "throughput": "s between batches in steady state",
    "energy": "J per generated token",
    "cost": "USD per million generated tokens",
}


def plan_document(found: Planned) -> dict[str, Any]:
    """Return the plan's document; ``encoder_layers`` is [first, last + 1] of an encoder-decoder's encoder."""
    candidate, n_encoder = found.candidate, found.prepared.graph.n_encoder_layers
    solver = {**candidate.solver, "time_s": candidate.solution.time_s, "penalty": candidate.solution.penalty}
    solver["all_orders"] = candidate.problem is None or candidate.problem.all_orders
    if candidate.bound_of_every_order is not None:
        solver["bound_of_every_order"] = candidate.bound_of_every_order
    return {
        **candidate.plan.to_json(),
        **({"encoder_layers": [0, n_encoder]} if n_encoder else {}),
        "predicted": asdict(candidate.predicted),
        "solver": solver,
        "serving": serving_flags(candidate.plan),
    }


def show_plan(found: Planned) -> None:
    """Print what a plan promises, its stages, and the proof."""
    candidate, sensitivity = found.candidate, found.sensitivity
    _show_promise(candidate.predicted, f"{found.setting.study.model} on {found.prepared.cluster.name}")
    _show_stages(candidate, found.prepared)
    _show_proof(candidate, WHAT[found.goal.objective])
    for text in serving_flags(candidate.plan):
        typer.echo(f"serve with: {text}")
    typer.echo(f"what limits it: {candidate.solution.binding}")
    typer.echo(
        f"penalty: {candidate.solution.penalty:.4g} {sensitivity.unit} "
        f"({sensitivity.metric}, {sensitivity.provenance})"
    )


def _show_promise(predicted: Predicted, title: str) -> None:
    typer.echo(
        f"{title}: TTFT {si(predicted.ttft_s, 's')}, "
        f"TPOT {si(predicted.tpot_s, 's')}, {predicted.throughput_tokens_per_s:.1f} tokens/s, "
        f"{_energy(predicted)} a token, {predicted.linear_effective_bits:.2f} bits "
        f"({predicted.provenance})"
    )
    if predicted.ttft_interval_s is not None and predicted.tpot_interval_s is not None:
        spans = (predicted.ttft_interval_s, predicted.tpot_interval_s)
        likely = ", TPOT ".join(f"{si(low, 's')} to {si(high, 's')}" for low, high in spans)
        grams = predicted.co2e_g_per_request
        carbon = "" if grams is None else f", {si(grams, 'g')} CO2e"
        typer.echo(
            f"if all kernels err alike, 80 %: TTFT {likely}; {si(predicted.energy_j_per_request, 'J')} a "
            f"request{carbon}{money(predicted.cost_usd_per_mtok)}"
        )


def _show_stages(candidate: Candidate, prepared: Prepared) -> None:
    rows = []
    layers = {unit.name: unit.layer for unit in prepared.units}
    for stage in candidate.plan.stages:
        first, end = stage.layers
        used = [p.name for unit, p in candidate.plan.assignment.items if first <= layers[unit] < end]
        counts = ", ".join(f"{used.count(name)}x {name}" for name in dict.fromkeys(used))
        device = stage.devices[0]
        whose = _whose(first, end, prepared.graph.n_encoder_layers)
        memory = si(candidate.predicted.memory_bytes[device], "B")
        rows.append((device, f"{first}-{end - 1}{whose}", memory, counts))
    table(
        "Stages", ("device", "layers", "memory", "precisions (weights/activations/kv)"), rows, numeric_from=4
    )
    typer.echo(
        f"micro-batches: prefill {candidate.plan.prefill_micro_batch}, "
        f"decode {candidate.plan.decode_micro_batch}"
    )


def _show_proof(candidate: Candidate, what: str) -> None:
    solution = candidate.solution
    gap = "unknown" if solution.gap_frac is None else f"{solution.gap_frac:.2g}"
    typer.echo(
        f"{solution.status}: {solution.value:.4f} {what}, bound {solution.bound:.4f}, "
        f"gap {gap}, solved in {solution.time_s:.2f} s"
    )
    if candidate.problem is not None and not candidate.problem.all_orders:
        typer.echo("the proof holds among orders that keep like devices together, not among all")
        if candidate.bound_of_every_order is not None and solution.value:
            apart = 1 - candidate.bound_of_every_order / solution.value
            typer.echo(
                f"no order of any of the devices is below {candidate.bound_of_every_order:.4f} "
                f"(gap over all orders {apart:.2g}, transfers left out)"
            )


def _whose(first: int, end: int, n_encoder: int) -> str:
    """Say which of the layers first .. end - 1 are the encoder's; nothing of a model without one."""
    if not n_encoder:
        return ""
    if end <= n_encoder:
        return " (encoder)"
    return " (decoder)" if first >= n_encoder else f" (encoder to {n_encoder - 1})"


def _energy(predicted: Predicted) -> str:
    """Return the joules of a token; "unknown" where no part is known, "at least" where some is not."""
    gaps = predicted.energy_excludes or {}
    nothing_known = [device for device, parts in gaps.items() if len(parts) == ENERGY_PARTS]
    if nothing_known and len(nothing_known) == len(predicted.memory_bytes):
        return "unknown energy"
    return f"{at_least(gaps)}{si(predicted.energy_j_per_token, 'J')}"
