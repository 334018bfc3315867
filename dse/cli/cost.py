"""``dse cost``: latency, energy and memory of a model on one device, per operator and phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from dse.cli import options
from dse.cli.output import emit_json, fold_layers, si, table


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("cost")(cost)


def cost(
    model: str = options.MODEL,
    device: str = typer.Option(..., "--device", help="Device name, or a YAML file of your own."),
    plan: Path | None = typer.Option(None, "--plan", help="A plan.json whose precisions are used."),
    weights: str = options.WEIGHTS,
    activations: str = options.ACTIVATIONS,
    kv: str = options.KV,
    batch: int = options.BATCH,
    prompt: int = options.PROMPT,
    output: int = options.OUTPUT,
    source: int | None = options.SOURCE,
    grid: float | None = typer.Option(None, "--grid", min=0, help="Grams of CO2e per kWh of the local grid."),
    as_json: bool = options.JSON,
) -> None:
    """Price a model on a device."""
    from dse.evaluate.breakdown import cost_document
    from hardware_specs.loader import load_device

    workload = options.workload_of(batch, prompt, output)
    spec = load_device(device)
    uniform = options.precision_of(weights, activations, kv)
    graph = options.load_graph_of(model, source)
    if plan is None:
        document = cost_document(graph, spec, uniform, workload, grid_g_per_kwh=grid)
    else:
        parsed = options.read_plan(plan)
        units = options.units_of_plan(parsed, graph)
        document = cost_document(graph, spec, parsed.assignment.by_unit, workload, units, grid)
    if as_json:
        emit_json(document)
    else:
        _show(document, f"{model} on {spec.name}")


def _show(document: dict[str, Any], title: str) -> None:
    typer.echo(
        f"{title}: TTFT {si(document['ttft_s'], 's')}, TPOT {si(document['tpot_s'], 's')}, "
        f"{si(document['energy_j_per_token'], 'J')} a token ({document['provenance']})"
    )
    spans = [document[phase]["interval_s"] for phase in ("prefill", "decode")]
    likely = " and ".join(f"{si(low, 's')} to {si(high, 's')}" for low, high in spans)
    grams = document["co2e_g_per_request"]
    carbon = "" if grams is None else f", {si(grams, 'g')} CO2e"
    request = si(document["energy_j_per_request"], "J")
    typer.echo(f"80 % of such kernels would give {likely}; {request} a request{carbon}")
    memory = document["memory_bytes"]
    parts = ", ".join(f"{name} {si(memory[name], 'B')}" for name in memory if name != "total")
    verdict = "fits" if document["fits"] else "does NOT fit"
    typer.echo(f"memory: {si(memory['total'], 'B')} ({parts}); {verdict}")
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
            si(row["energy_j"], "J"),
            si(row["flop"], "FLOP"),
            si(row["read_bytes"], "B"),
        )
        for name, count, row in sorted(
            folded, key=lambda entry: (entry[2]["phase"] != "prefill", -entry[1] * entry[2]["time_s"])
        )
    ]
    columns = ("operator", "n", "phase", "bound by", "time each", "of phase", "energy", "FLOP", "read")
    table("Operators, most time first", columns, rows, numeric_from=4)
