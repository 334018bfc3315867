"""What ``dse cost`` prints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from dse.cli.output import fold_layers, si, table

if TYPE_CHECKING:
    from dse.evaluate.plan_cost import PlanCost


def show_document(document: dict[str, Any], title: str) -> None:
    """Print the totals, the memory and the operators of a ``dse cost`` document."""
    request, token = document["energy_j_per_request"], document["energy_j_per_token"]
    gaps = document["energy_excludes"]
    joules = "energy unknown" if token is None else f"{at_least(gaps)}{si(token, 'J')} a token"
    typer.echo(
        f"{title}: TTFT {si(document['ttft_s'], 's')}, TPOT {si(document['tpot_s'], 's')}, "
        f"{joules}{money(document['cost_usd_per_mtok'])} ({document['provenance']})"
    )
    spans = [document[phase]["interval_s"] for phase in ("prefill", "decode")]
    likely = " and ".join(f"{si(low, 's')} to {si(high, 's')}" for low, high in spans)
    grams = document["co2e_g_per_request"]
    carbon = "" if grams is None else f", {at_least(gaps)}{si(grams, 'g')} CO2e"
    of_request = "" if request is None else f"; {at_least(gaps)}{si(request, 'J')} a request{carbon}"
    typer.echo(f"80 % of such kernels would give {likely}{of_request}")
    if gaps:
        typer.echo(f"energy without {', '.join(gaps)}: {document['energy_reason']}")
    _show_memory(document)
    folded = fold_layers(document["operators"], ("phase", "time_s", "flop", "read_bytes"))
    totals = {phase: document[phase]["time_s"] for phase in ("prefill", "decode")}
    rows = [
        (
            name,
            str(count),
            row["phase"],
            row["bound_by"],
            si(row["time_s"], "s"),
            f"{count * row['time_s'] / totals[row['phase']]:.1%}",
            "unknown" if token is None else si(row["energy_j"], "J"),
            si(row["flop"], "FLOP"),
            si(row["read_bytes"], "B"),
        )
        for name, count, row in sorted(
            folded, key=lambda entry: (entry[2]["phase"] != "prefill", -entry[1] * entry[2]["time_s"])
        )
    ]
    columns = ("operator", "n", "phase", "bound by", "time each", "of phase", "energy", "FLOP", "read")
    table("Operators, most time first", columns, rows, numeric_from=4)


def _show_memory(document: dict[str, Any]) -> None:
    memory, offload = document["memory_bytes"], document["offload"]
    parts = ", ".join(f"{name} {si(memory[name], 'B')}" for name in memory if name != "total")
    each = "" if document["tensor_parallel"] == 1 else " on each device"
    verdict = "fits" if document["fits"] else f"does NOT fit: {si(document['missing_bytes'], 'B')} too much"
    typer.echo(f"memory: {si(memory['total'], 'B')}{each} ({parts}); {verdict}")
    if offload is not None:
        typer.echo(
            f"offload: {si(offload['bytes'], 'B')} ({offload['share_frac']:.1%} of every layer) in "
            f"{', '.join(offload['levels'])}; fetched in {si(offload['prefill_transfer_s'], 's')} a prefill, "
            f"{si(offload['decode_transfer_s'], 's')} a step"
        )
    would = document["would_fit"]
    if would is None:
        return
    texts = {
        "tensor_parallel": "{} devices that share every layer (--tensor-parallel)",
        "batch": "a batch of {}",
        "weight_bits_per_parameter": "weights of {:.2f} bits",
    }
    found = [text.format(would[name]) for name, text in texts.items() if would[name] is not None]
    if would["offload_bytes"] is not None:
        found.append(f"{si(would['offload_bytes'], 'B')} elsewhere (--offload host)")
    typer.echo(f"would fit: {'; or '.join(found)}" if found else "no single change would make it fit")


def plan_document(found: PlanCost) -> dict[str, Any]:
    """Return a plan's cost as plain values."""
    return {
        **asdict(found),
        "memory_bytes": {device: use.to_json() for device, use in found.memory_bytes.items()},
        "fits": found.fits,
    }


def show_plan_cost(found: PlanCost, title: str) -> None:
    """Print the cost of a plan."""
    gaps = sorted({part for parts in found.energy_excludes.values() for part in parts})
    for name, value, interval in (
        ("TTFT", found.ttft_s, found.ttft_interval_s),
        ("TPOT", found.tpot_s, found.tpot_interval_s),
        ("all tokens", found.total_s, found.total_interval_s),
    ):
        likely = f"80 %: {si(interval[0], 's')} to {si(interval[1], 's')}"
        typer.echo(f"{title}: {name} {si(value, 's')} ({likely})")
    grams = found.co2e_g_per_request
    carbon = "" if grams is None else f", {at_least(gaps)}{si(grams, 'g')} CO2e"
    token = f"{at_least(gaps)}{si(found.energy_j_per_token, 'J')} a token"
    request = f"{at_least(gaps)}{si(found.energy_j_per_request, 'J')} a request"
    typer.echo(
        f"{found.throughput_tokens_per_s:.4g} tokens/s; {token}, {request}{carbon}"
        f"{money(found.cost_usd_per_mtok)} ({found.provenance})"
    )
    for device, parts in found.energy_excludes.items():
        typer.echo(f"energy without the unknown {', '.join(parts)} part of {device}")
    rows = [
        (device, si(use.total, "B"), si(use.weights, "B"), si(use.kv, "B"), _verdict(found, device))
        for device, use in found.memory_bytes.items()
    ]
    table("Memory", ("device", "total", "weights", "kv", "fits"), rows)


def _verdict(found: PlanCost, device: str) -> str:
    missing = found.missing_bytes[device]
    return f"NO, {si(missing, 'B')} too much" if missing else "yes"


def at_least(gaps: Collection[str]) -> str:
    """Return what stands before an energy of which parts are unknown."""
    return "at least " if gaps else ""


def money(usd_per_mtok: float | None) -> str:
    """Return the price with a comma before it, nothing where it is unknown."""
    return "" if usd_per_mtok is None else f", {usd_per_mtok:.3g} USD a million tokens"
