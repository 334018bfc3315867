"""The ``dse cost`` document: one model on one device or a group of equal ones, with totals and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cost_models.energy import co2e_g, energy_gaps
from cost_models.memory import MemoryUse
from cost_models.money import usd_per_mtok
from cost_models.pricing import bound_by, join_provenance
from dse.evaluate.beside import NO_EXTRAS, Extras
from dse.evaluate.breakdown import PHASES, Breakdown, OpRow, check_supported, precision_of_op
from dse.evaluate.fitting import held_bytes, layer_weight_bytes, what_would_fit
from dse.evaluate.fusion import with_fused_norms
from dse.evaluate.kernel_path import float_kind
from dse.evaluate.lowering import Phase, active_frac, active_matrices, runs, weight_bytes
from dse.evaluate.offload import LayerRequests, Offload, outside_frac, pass_s
from dse.evaluate.tensor_parallel import TensorGroup, graph_part
from dse.formats.precision import Precision
from dse.graph.operator import Block, OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec, RuntimeProfile

ENERGY_PARTS = 3  # static, memory, compute


@dataclass(frozen=True)
class Setting:
    """How the model is served, beside its precisions.

    Attributes:
        grid_g_per_kwh: grams of CO2 equivalent per kWh of the local grid, for grams per request.
        group: devices that share every layer.
        extras: what a quantization method adds.
        offload: where weights lie that do not fit.
        runtime: prices what it fuses as one kernel, as cost tables do; None every operator as a launch.
    """

    grid_g_per_kwh: float | None = None
    group: TensorGroup | None = None
    extras: Extras = NO_EXTRAS
    offload: Offload | None = None
    runtime: RuntimeProfile | None = None


def cost_document(
    graph: OperatorGraph,
    spec: HardwareSpec,
    precision: Precision | Mapping[str, Precision],
    workload: Workload,
    units: tuple[Unit, ...] = (),
    setting: Setting | None = None,
) -> dict[str, Any]:
    """Return what ``dse cost --json`` prints: the whole batch as one micro-batch.

    Of a group, operators and memory are those of each device, energy and price those of all. Energies are
    None where no part of them is known.

    Args:
        graph: the traced model.
        spec: the device.
        precision: of all units, or of each by name (then ``units`` says what they hold).
        workload: batch, prompt and output lengths; a decode step is the mean over the growing context.
        units: the units of a mixed assignment.
        setting: grid, group, extras and offload.

    Raises:
        UnsupportedOnDevice: the device has no kernel for a precision.
        ConfigError: the group cannot share out the model.
    """
    setting = setting or Setting()
    degree = 1 if setting.group is None else setting.group.degree
    of_op = precision_of_op(precision, units)
    used = check_supported(spec, of_op)
    part = graph_part(with_fused_norms(graph, setting.runtime), degree)
    breakdown = Breakdown(part, spec, of_op, workload, setting.extras, setting.group, setting.runtime)
    rows = list(breakdown.rows())
    memory = held_bytes(breakdown)
    layers = layer_weight_bytes(breakdown)
    capacity = spec.main_memory.capacity_bytes
    share = 0.0
    phases = {phase: _phase_total(rows, phase) for phase in PHASES}
    offloaded: dict[str, Any] | None = None
    if setting.offload is not None:
        share = outside_frac(memory, layers, capacity)
        moved = {phase: _with_transfers(breakdown, rows, phase, setting.offload, share) for phase in PHASES}
        phases |= {phase: total for phase, (total, _) in moved.items()}
        memory = _without_offloaded(memory, layers, share)
        offloaded = {
            "share_frac": share,
            "bytes": share * sum(layers),
            "levels": [level.name for level in setting.offload.levels],
            **{f"{phase}_transfer_s": seconds for phase, (_, seconds) in moved.items()},
        }
    missing = memory.missing_bytes(capacity)
    provenance = rows[0].provenance
    for row in rows:
        provenance = join_provenance(provenance, row.provenance)
    return {
        "model": graph.model,
        "device": spec.name,
        "tensor_parallel": degree,
        "precisions": list(used),
        "transform": setting.extras.transform,
        "runtime": None if setting.runtime is None else setting.runtime.name,
        "workload": workload.to_json(),
        **_totals(phases, spec, workload, setting, degree),
        "memory_bytes": memory.to_json(),
        "capacity_bytes": capacity,
        "fits": missing == 0,
        "missing_bytes": missing,
        "would_fit": None if missing == 0 else what_would_fit(graph, breakdown, degree),
        "offload": offloaded,
        "operators": [row.to_json() for row in rows],
        "provenance": provenance,
    }


def _totals(
    phases: dict[Phase, dict[str, Any]],
    spec: HardwareSpec,
    workload: Workload,
    setting: Setting,
    degree: int,
) -> dict[str, Any]:
    """Return the times, energies and prices of the whole batch."""
    n_steps = workload.output_tokens - 1
    ttft_s, tpot_s = phases["prefill"]["time_s"], phases["decode"]["time_s"]
    total_s = ttft_s + n_steps * tpot_s
    throughput = workload.batch * workload.output_tokens / total_s
    gaps = energy_gaps(spec, float_kind(spec))
    known = len(gaps) < ENERGY_PARTS
    for phase in PHASES:
        phases[phase]["energy_j"] = phases[phase]["energy_j"] * degree if known else None
    request_j = None
    if known:
        batch_j = phases["prefill"]["energy_j"] + n_steps * phases["decode"]["energy_j"]
        request_j = batch_j / workload.batch
    grid, price = setting.grid_g_per_kwh, spec.price_usd_per_h
    return {
        "prefill": phases["prefill"],
        "decode": phases["decode"],
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "total_s": total_s,
        "throughput_tokens_per_s": throughput,
        "energy_j_per_token": None if request_j is None else request_j / workload.output_tokens,
        "energy_j_per_request": request_j,
        "energy_excludes": list(gaps),
        "energy_reason": _energy_reason(spec, gaps),
        "co2e_g_per_request": None if grid is None or request_j is None else float(co2e_g(request_j, grid)),
        "cost_usd_per_mtok": None if price is None else usd_per_mtok(price * degree, throughput),
    }


def _energy_reason(spec: HardwareSpec, gaps: tuple[str, ...]) -> str:
    """Return why parts of the energy are unknown, '' where none is."""
    reasons = {
        "static": spec.power.static_note or "static power is not published",
        "memory": "the energy of a bit from memory is not published",
        "compute": "the energy of arithmetic is not published",
    }
    return "; ".join(reasons[gap] for gap in gaps)


def _phase_total(rows: list[OpRow], phase: Phase) -> dict[str, Any]:
    """Return {time_s, interval_s, energy_j, bound_by} of a phase, energy of one device.

    The interval adds those of the operators, as if all erred alike: errors of one device's constants do.
    """
    mine = [row for row in rows if row.phase == phase]
    time_s = sum(row.time_s for row in mine)
    compute_s = sum(row.compute_time_s for row in mine)
    memory_s = sum(row.memory_time_s for row in mine)
    return {
        "time_s": time_s,
        "interval_s": [sum(row.low_s for row in mine), sum(row.high_s for row in mine)],
        "energy_j": sum(row.energy_j for row in mine),
        "bound_by": bound_by(time_s, compute_s, memory_s),
    }


def _with_transfers(
    breakdown: Breakdown, rows: list[OpRow], phase: Phase, offload: Offload, share: float
) -> tuple[dict[str, Any], float]:
    """Return the total of a phase whose weights are fetched, and the seconds of the transfers alone."""
    mine = [row for row in rows if row.phase == phase]
    total = _phase_total(mine, phase)
    if share == 0.0:
        return total, 0.0
    n_layers = breakdown.graph.n_layers
    requests = _requests(breakdown, phase)

    def passed(field: str) -> tuple[float, float]:
        layer_s = [0.0] * n_layers
        outside_s = 0.0
        for row in mine:
            if row.layer is None:
                outside_s += getattr(row, field)
            else:
                layer_s[row.layer] += getattr(row, field)
        time_s, moved_s = pass_s(layer_s, requests, offload, share)
        return outside_s + time_s, moved_s

    time_s, moved_s = passed("time_s")
    waiting_s = time_s - total["time_s"]
    asked = sum(entry.n_requests * entry.part_bytes for entry in requests)
    static_w = breakdown.spec.power.static_w or 0.0
    return {
        "time_s": time_s,
        "interval_s": [passed("low_s")[0], passed("high_s")[0]],
        "energy_j": total["energy_j"] + static_w * waiting_s + offload.energy_j(asked, share),
        "bound_by": "offload" if waiting_s > total["time_s"] else total["bound_by"],
    }, moved_s


def _requests(breakdown: Breakdown, phase: Phase) -> list[LayerRequests]:
    """Return what a pass asks of the weights of each layer: of experts only those in use."""
    batch = float(breakdown.workload.batch)
    query = float(breakdown.workload.prompt_tokens) if phase == "prefill" else 1.0

    def of_layer(layer: int, block: Block) -> LayerRequests:
        n_requests, asked = 0.0, 0.0
        for op in block.ops:
            if op.kind == "linear" and runs(op, phase):
                stored = weight_bytes(op, breakdown.of_op(op, layer).weights, breakdown.extras)
                asked += stored * float(active_frac(op, batch, query))
                n_requests += float(active_matrices(op, batch, query))
        return LayerRequests(n_requests, asked / n_requests if n_requests else 0.0)

    return [of_layer(layer, block) for layer, block in enumerate(breakdown.graph.block_of_layer)]


def _without_offloaded(memory: MemoryUse, layers: list[float], share: float) -> MemoryUse:
    """Return what stays on the device: the rest of the weights, and two buffers for what is fetched."""
    whole = sum(layers)
    buffers = 2.0 * share * max(layers, default=0.0)
    kept = memory.weights - share * whole + min(buffers, share * whole)
    return MemoryUse(kept, memory.kv, memory.activations, memory.reserve)
