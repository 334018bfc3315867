"""``dse plan``: exact bits, partition and micro-batches, with the proof."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, si, table

if TYPE_CHECKING:
    from dse.sensitivity.table import SensitivityTable
    from studies.arrange import Candidate
    from studies.prepare import Prepared
    from studies.schema import Study


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("plan")(plan)


def plan(
    model: str = options.MODEL,
    cluster: str = options.CLUSTER,
    workload: str = options.WORKLOAD,
    runtime: str = options.RUNTIME,
    granularity: str = options.GRANULARITY,
    precisions: str = options.PRECISIONS,
    metric: str = typer.Option(
        "auto",
        "--metric",
        help="Penalty: kl (measured), variance, variance_stochastic, noise (needs no weights); auto takes "
        "variance where the model has weights at hand and noise where it has not.",
    ),
    as_good_as: str = typer.Option(
        "int4_g64_asym", "--as-good-as", help="Lose no more quality than the uniform plan of this precision."
    ),
    max_penalty: float | None = typer.Option(
        None, "--max-penalty", min=0, help="Bound in the metric's unit."
    ),
    theta: float = typer.Option(0.0, "--theta", min=0, help="Seconds that one unit of penalty is worth."),
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens of a measured metric."),
    sequence_length: int = options.SENSITIVITY_SEQUENCE,
    corpus: str | None = options.CORPUS,
    seed: int = options.SEED,
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.1, help="Seconds for the solver."),
    out: Path | None = typer.Option(None, "-o", "--out", help="Write the plan to this JSON file."),
    as_json: bool = options.JSON,
) -> None:
    """Find the fastest plan that loses no more quality than a uniform one, and prove it."""
    from dse.cli.progress import ConsoleProgress
    from dse.formats.grammar import parse_precision
    from studies.planning import fastest_plan
    from studies.schema import QualitySpec, Study, load_workload

    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    choices = tuple(precision.name for precision in options.precisions_of(precisions))
    study = Study(
        name="plan",
        model=model,
        cluster=cluster,
        workload=load_workload(workload),
        precisions=choices,
        uniform=(parse_precision(as_good_as).name,),
        runtime=runtime,
        granularity=granularity,
        metric=metric,
        seed=seed,
        quality=QualitySpec(corpus=corpus, sensitivity_tokens=tokens, sensitivity_sequence_length=sequence_length),
    )
    with ConsoleProgress() as progress:
        found = fastest_plan(study, progress, max_penalty=max_penalty, theta_s=theta, time_limit_s=time_limit)
    document = _document(found.candidate)
    if out is not None:
        from dse.content import write_atomic

        write_atomic(out, json.dumps(document, indent=1) + "\n")
        note(f"wrote {out}")
    if as_json:
        emit_json(document)
        return
    _show(found.candidate, found.prepared, found.sensitivity, study)


def _document(candidate: Candidate) -> dict[str, Any]:
    solver = {**candidate.solver, "time_s": candidate.solution.time_s, "penalty": candidate.solution.penalty}
    return {**candidate.plan.to_json(), "predicted": asdict(candidate.predicted), "solver": solver}


def _show(candidate: Candidate, prepared: Prepared, sensitivity: SensitivityTable, study: Study) -> None:
    predicted, solution = candidate.predicted, candidate.solution
    typer.echo(
        f"{study.model} on {prepared.cluster.name}: TTFT {si(predicted.ttft_s, 's')}, "
        f"TPOT {si(predicted.tpot_s, 's')}, {predicted.throughput_tokens_per_s:.1f} tokens/s, "
        f"{si(predicted.energy_j_per_token, 'J')} a token, {predicted.linear_effective_bits:.2f} bits "
        f"({predicted.provenance})"
    )
    rows = []
    for stage in candidate.plan.stages:
        first, end = stage.layers
        layers = {unit.name: unit.layer for unit in prepared.units}
        used = [p.name for unit, p in candidate.plan.assignment.items if first <= layers[unit] < end]
        counts = ", ".join(f"{used.count(name)}x {name}" for name in dict.fromkeys(used))
        device = stage.devices[0]
        rows.append((device, f"{first}-{end - 1}", si(predicted.memory_bytes[device], "B"), counts))
    table(
        "Stages", ("device", "layers", "memory", "precisions (weights/activations/kv)"), rows, numeric_from=4
    )
    typer.echo(
        f"micro-batches: prefill {candidate.plan.prefill_micro_batch}, "
        f"decode {candidate.plan.decode_micro_batch}"
    )
    gap = "unknown" if solution.gap_frac is None else f"{solution.gap_frac:.2g}"
    typer.echo(
        f"{solution.status}: {solution.value:.4f} s for the batch, bound {solution.bound:.4f} s, gap {gap}, "
        f"solved in {solution.time_s:.2f} s"
    )
    typer.echo(f"what limits it: {solution.binding}")
    typer.echo(
        f"penalty: {solution.penalty:.4g} {sensitivity.unit} ({sensitivity.metric}, {sensitivity.provenance})"
    )
