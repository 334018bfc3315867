"""``dse plan``: exact bits, partition and micro-batches, with the proof."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dse.cli import options, plan_layout, plan_tables
from dse.cli.cost_text import at_least, money
from dse.cli.output import emit_json, note, si, table
from dse.errors import ConfigError, NoFeasiblePlan
from dse.partition.serving import serving_flags

if TYPE_CHECKING:
    from dse.cli.progress import ConsoleProgress
    from dse.partition.pareto import Axis
    from dse.partition.problem import Goal, Objective
    from dse.sensitivity.table import SensitivityTable
    from studies.arrange import Candidate
    from studies.planning import Setting
    from studies.prepare import Prepared
    from studies.result import Predicted
    from studies.schema import Study


ENERGY_PARTS = 3  # static, memory, compute
WHAT = {
    "time": "s for the batch",
    "ttft": "s to the first tokens",
    "tpot": "s between two tokens",
    "throughput": "s between batches in steady state",
    "energy": "J per generated token",
    "cost": "USD per million generated tokens",
}


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
        "variance where the model has weights at hand (with --max-perplexity-increase kl where it is cached, "
        "else fisher) and noise where it has not.",
    ),
    as_good_as: str = typer.Option(
        "int4_g64_asym", "--as-good-as", help="Lose no more quality than the uniform plan of this precision."
    ),
    max_penalty: float | None = typer.Option(
        None, "--max-penalty", min=0, help="Bound in the metric's unit."
    ),
    theta: float = typer.Option(
        0.0, "--theta", min=0, help="What one unit of penalty is worth, in the objective's unit."
    ),
    objective: str = typer.Option(
        "time", "--objective", help="What to minimise: time, ttft, tpot, energy, cost; or throughput (most)."
    ),
    max_time: float | None = typer.Option(None, "--max-time", min=0, help="Seconds of the whole batch."),
    max_ttft: float | None = typer.Option(None, "--max-ttft", min=0, help="Seconds to all first tokens."),
    max_tpot: float | None = typer.Option(None, "--max-tpot", min=0, help="Seconds between two tokens."),
    min_throughput: float | None = typer.Option(
        None, "--min-throughput", min=0, help="Generated tokens/s in steady state."
    ),
    max_energy: float | None = typer.Option(None, "--max-energy", min=0, help="Joules per generated token."),
    max_cost: float | None = typer.Option(None, "--max-cost", min=0, help="USD per million tokens."),
    max_devices: int | None = typer.Option(None, "--max-devices", min=1, help="Devices a plan may use."),
    layer_times: Path | None = options.LAYER_TIMES,
    layer_time_model: str = options.LAYER_TIME_MODEL,
    layer_time_tokens: float | None = options.LAYER_TIME_TOKENS,
    grid: float | None = options.GRID,
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens of a measured metric."),
    sequence_length: int = options.SEQUENCE,
    corpus: str | None = options.CORPUS,
    seed: int = options.SEED,
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.1, help="Seconds for the solver."),
    tensor_parallel: str = plan_layout.TENSOR_PARALLEL,
    replicas: str = plan_layout.REPLICAS,
    pools: str = plan_layout.POOLS,
    chunk: str = plan_layout.CHUNK,
    offload: str | None = plan_layout.OFFLOAD,
    max_memory: list[str] = typer.Option(
        [], "--max-memory", help="Memory of every device, or DEVICE=..., e.g. 10GB; repeatable."
    ),
    max_perplexity_increase: str | None = typer.Option(
        None,
        "--max-perplexity-increase",
        help="E.g. 2%: calibrated on emulated plans, checked by emulation and repaired; needs weights.",
    ),
    check_tokens: int = typer.Option(2048, "--check-tokens", help="Tokens of those emulations."),
    what_if: list[str] = typer.Option(
        [],
        "--what-if",
        help="Plan again after a change: lose (each device in turn), lose:DEVICE, add:DEVICE_TYPE, "
        "price:DEVICE_TYPE=USD_PER_HOUR; repeatable.",
    ),
    baselines: bool = typer.Option(
        False, "--baselines", help="Also show the published planners on the same tables."
    ),
    front: str | None = typer.Option(
        None,
        "--front",
        help="Instead of one plan the front over these axes, e.g. quality,tpot,energy,cost.",
    ),
    front_points: int = typer.Option(25, "--front-points", min=2, help="About how many points to solve."),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Write the plan (or front) to this JSON file; a front also as .html."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Find the fastest plan that loses no more quality than a uniform one, and prove it.

    Any other objective and any bounds on latency, energy, money and devices may be asked for instead.
    """
    from dse.cli.progress import ConsoleProgress
    from dse.formats.grammar import parse_precision
    from dse.partition.problem import Goal
    from studies.accuracy import plan_within_perplexity
    from studies.comparison import baselines as published
    from studies.planning import best_layout, fastest_plan, setting_of
    from studies.schema import QualitySpec, Study, load_workload
    from studies.what_if import what_if as answers

    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    options.check_sizes(tokens=check_tokens, sequence_length=sequence_length)
    increase = plan_tables.fraction(max_perplexity_increase, "--max-perplexity-increase")
    axes = None if front is None else plan_tables.axes_of(front)
    limits = plan_tables.memory_limits_of(max_memory)
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
        quality=QualitySpec(
            corpus=corpus,
            tokens=check_tokens,
            sensitivity_tokens=tokens,
            sequence_length=sequence_length,
        ),
        grid_g_per_kwh=grid,
        layer_times=None if layer_times is None else str(layer_times),
        layer_time_model=options.layer_time_method(layer_time_model),
        layer_time_tokens=layer_time_tokens,
    )
    n_tokens = study.workload.batch * study.workload.output_tokens
    goal = Goal(
        objective=_objective(objective),
        max_time_s=max_time,
        max_ttft_s=max_ttft,
        max_tpot_s=max_tpot,
        max_period_s=n_tokens / min_throughput if min_throughput else None,
        max_energy_j_per_token=max_energy,
        max_cost_usd_per_mtok=max_cost,
        max_devices=max_devices,
    )
    layout = plan_layout.layout_options(tensor_parallel, replicas, pools, chunk, offload, study.workload)
    if layout is not None:
        for name, given in (
            ("--what-if", what_if),
            ("--baselines", baselines),
            ("--front", front),
            ("--max-perplexity-increase", increase),
        ):
            if given:
                raise ConfigError("goes with a single pipeline of single devices only", path=name)
        with ConsoleProgress() as progress:
            planned = best_layout(
                study,
                progress,
                layout,
                max_penalty=max_penalty,
                theta_s=theta,
                time_limit_s=time_limit,
                goal=goal,
                memory_limits=limits,
            )
        whole = plan_layout.layout_document(planned, study.workload)
        _write(out, whole)
        if as_json:
            emit_json(whole)
            return
        plan_layout.show_layout(planned, study.workload, WHAT[goal.objective])
        return
    verified = None
    with ConsoleProgress() as progress:
        if axes is not None:
            _front(
                setting_of(study, progress, limits),
                goal,
                axes,
                progress,
                front_points,
                time_limit,
                max_penalty,
                out,
                as_json=as_json,
            )
            return
        if increase is not None:
            verified = plan_within_perplexity(
                study, progress, increase, goal=goal, time_limit_s=time_limit, memory_limits=limits
            )
            found = verified.planned
        else:
            found = fastest_plan(
                study,
                progress,
                max_penalty=max_penalty,
                theta_s=theta,
                time_limit_s=time_limit,
                goal=goal,
                memory_limits=limits,
            )
        changes = answers(found, what_if)
        rivals = published(found) if baselines else []
    document = _document(found.candidate, found.prepared)
    if verified is not None:
        document["perplexity"] = plan_tables.checks_document(verified)
    if what_if:
        document["what_if"] = [plan_tables.change_document(change) for change in changes]
    if baselines:
        document["baselines"] = [asdict(row) for row in rivals]
    _write(out, document)
    if as_json:
        emit_json(document)
        return
    _show(found.candidate, found.prepared, found.sensitivity, study, goal)
    if verified is not None:
        plan_tables.show_checks(verified)
    if what_if:
        plan_tables.show_changes(changes, found.candidate.solution)
    if baselines:
        plan_tables.show_baselines(rivals, found)


def _front(
    setting: Setting,
    goal: Goal,
    axes: tuple[Axis, ...],
    progress: ConsoleProgress,
    n_points: int,
    time_limit_s: float,
    max_penalty: float | None,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from studies.comparison import front_of
    from studies.planning import uniform_penalty

    if max_penalty is None and "quality" not in axes:
        max_penalty = uniform_penalty(setting)
    progress.step("solving the front")
    rows = front_of(
        setting,
        replace(goal, max_penalty=max_penalty),
        axes,
        n_points=n_points,
        time_limit_s=time_limit_s,
        progress=progress.advance,
    )
    if not rows:
        raise NoFeasiblePlan(setting.arranger.why_infeasible(max_penalty, goal))
    document = {"model": setting.study.model, "axes": list(axes), "front": [asdict(row) for row in rows]}
    if out is not None and out.suffix == ".html":
        from reports.fronts import write_front_page

        title = f"{setting.study.model} on {setting.prepared.cluster.name}"
        write_front_page(rows, axes, out, title=title, quality_unit=setting.sensitivity.unit)
        note(f"wrote {out}")
    else:
        _write(out, document)
    if as_json:
        emit_json(document)
        return
    plan_tables.show_front(rows, axes, setting.sensitivity.unit)


def _write(out: Path | None, document: dict[str, Any]) -> None:
    """Write the plan where a file is asked for."""
    if out is not None:
        from dse.content import write_atomic

        write_atomic(out, json.dumps(document, indent=1) + "\n")
        note(f"wrote {out}")


def _objective(name: str) -> Objective:
    """Check the name of an objective."""
    from dse.partition.problem import BOUND_FIELDS

    for known in BOUND_FIELDS:
        if known == name:
            return known
    raise ConfigError("unknown objective", path="--objective", value=name, allowed=list(BOUND_FIELDS))


def _document(candidate: Candidate, prepared: Prepared) -> dict[str, Any]:
    """Return the plan's document; ``encoder_layers`` is [first, last + 1] of an encoder-decoder's encoder."""
    n_encoder = prepared.graph.n_encoder_layers
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


def _show(
    candidate: Candidate, prepared: Prepared, sensitivity: SensitivityTable, study: Study, goal: Goal
) -> None:
    predicted, solution = candidate.predicted, candidate.solution
    typer.echo(
        f"{study.model} on {prepared.cluster.name}: TTFT {si(predicted.ttft_s, 's')}, "
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
    rows = []
    for stage in candidate.plan.stages:
        first, end = stage.layers
        layers = {unit.name: unit.layer for unit in prepared.units}
        used = [p.name for unit, p in candidate.plan.assignment.items if first <= layers[unit] < end]
        counts = ", ".join(f"{used.count(name)}x {name}" for name in dict.fromkeys(used))
        device = stage.devices[0]
        whose = _whose(first, end, prepared.graph.n_encoder_layers)
        rows.append((device, f"{first}-{end - 1}{whose}", si(predicted.memory_bytes[device], "B"), counts))
    table(
        "Stages", ("device", "layers", "memory", "precisions (weights/activations/kv)"), rows, numeric_from=4
    )
    typer.echo(
        f"micro-batches: prefill {candidate.plan.prefill_micro_batch}, "
        f"decode {candidate.plan.decode_micro_batch}"
    )
    gap = "unknown" if solution.gap_frac is None else f"{solution.gap_frac:.2g}"
    typer.echo(
        f"{solution.status}: {solution.value:.4f} {WHAT[goal.objective]}, bound {solution.bound:.4f}, "
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
    for text in serving_flags(candidate.plan):
        typer.echo(f"serve with: {text}")
    typer.echo(f"what limits it: {solution.binding}")
    typer.echo(
        f"penalty: {solution.penalty:.4g} {sensitivity.unit} ({sensitivity.metric}, {sensitivity.provenance})"
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
