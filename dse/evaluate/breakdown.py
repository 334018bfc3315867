"""One model on one device, operator by operator: the ``dse cost`` document and the points of a roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cost_models.energy import co2e_g, energy_gaps
from cost_models.memory import MemoryUse, kv_cache_bytes
from cost_models.pricing import bound_by, join_provenance, price
from cost_models.work import OpCost, Provenance, Work
from dse.errors import UnsupportedOnDevice
from dse.evaluate.device_costs import UNQUANTIZED
from dse.evaluate.footprint import (
    activation_peak_elements,
    block_fixed_bytes,
    block_state_bytes,
    edge_bytes,
    kv_bytes_per_token,
)
from dse.evaluate.kernel_path import float_kind, supports
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES, Phase, lower, weight_bytes
from dse.evaluate.sizes import LAST_POSITION, decode_contexts
from dse.formats.precision import Precision
from dse.graph.operator import Op, OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec

PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class OpRow:
    """Cost of one operator in one phase: the prefill of the whole batch, or the mean decode step.

    ``energy_j`` holds static power over the operator's own time, where it is known.
    """

    name: str
    phase: Phase
    kernel: str
    time_s: float
    energy_j: float
    compute_time_s: float
    memory_time_s: float
    flop: float
    read_bytes: float
    write_bytes: float
    provenance: Provenance
    low_s: float
    high_s: float

    @property
    def bound_by(self) -> str:
        """What takes most of the time: "compute", "memory" or "launch"."""
        return bound_by(self.time_s, self.compute_time_s, self.memory_time_s)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``operators``."""
        return {
            "name": self.name,
            "phase": self.phase,
            "time_s": self.time_s,
            "interval_s": [self.low_s, self.high_s],
            "energy_j": self.energy_j,
            "bound_by": self.bound_by,
            "flop": self.flop,
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
        }


def cost_document(
    graph: OperatorGraph,
    spec: HardwareSpec,
    precision: Precision | Mapping[str, Precision],
    workload: Workload,
    units: tuple[Unit, ...] = (),
    grid_g_per_kwh: float | None = None,
) -> dict[str, Any]:
    """Return what ``dse cost --json`` prints: one device, the whole batch as one micro-batch.

    Args:
        graph: the traced model.
        spec: the device.
        precision: of all units, or of each by name (then ``units`` says what they hold).
        workload: batch, prompt and output lengths; a decode step is the mean over the growing context.
        units: the units of a mixed assignment.
        grid_g_per_kwh: grams of CO2 equivalent per kWh of the local grid, for grams per request.

    Raises:
        UnsupportedOnDevice: the device has no kernel for a precision.
    """
    of_op = _precision_of_op(precision, units)
    used = sorted({entry.name: entry for entry in of_op.all}.items())
    for name, entry in used:
        reason = supports(spec, entry)
        if reason is not None:
            raise UnsupportedOnDevice(spec.name, name, known=[], reason=f"{name}: {reason}")
    rows = list(_rows(graph, spec, of_op, workload))
    memory = _memory(graph, spec, of_op, workload)
    phases = {phase: _phase_total(rows, phase) for phase in PHASES}
    ttft_s, tpot_s = phases["prefill"]["time_s"], phases["decode"]["time_s"]
    n_steps = workload.output_tokens - 1
    energy_j = phases["prefill"]["energy_j"] + n_steps * phases["decode"]["energy_j"]
    capacity = spec.main_memory.capacity_bytes
    missing = memory.missing_bytes(capacity)
    provenance = rows[0].provenance
    for row in rows:
        provenance = join_provenance(provenance, row.provenance)
    return {
        "model": graph.model,
        "device": spec.name,
        "precisions": [name for name, _ in used],
        "workload": workload.to_json(),
        "prefill": phases["prefill"],
        "decode": phases["decode"],
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "total_s": ttft_s + n_steps * tpot_s,
        "throughput_tokens_per_s": workload.batch * workload.output_tokens / (ttft_s + n_steps * tpot_s),
        "energy_j_per_token": energy_j / (workload.batch * workload.output_tokens),
        "energy_j_per_request": energy_j / workload.batch,
        "co2e_g_per_request": None
        if grid_g_per_kwh is None
        else co2e_g(energy_j / workload.batch, grid_g_per_kwh),
        "energy_excludes": list(energy_gaps(spec, float_kind(spec))),
        "memory_bytes": memory.to_json(),
        "capacity_bytes": capacity,
        "fits": missing == 0,
        "missing_bytes": missing,
        "operators": [row.to_json() for row in rows],
        "provenance": provenance,
    }


def roofline_points(
    graph: OperatorGraph, spec: HardwareSpec, precision: Precision, workload: Workload
) -> list[dict[str, Any]]:
    """Return one row per operator with multiply-adds, of each block template once and of the output head.

    Rows are {device, phase, name, intensity_flop_per_byte, achieved_flop_per_s, time_s, bound_by}.
    """
    of_op = _precision_of_op(precision, ())
    points: list[dict[str, Any]] = []
    for phase in PHASES:
        for part in (*graph.blocks, graph.epilogue):
            for op in part.ops:
                if op.kind not in ("linear", "attention"):
                    continue
                layer = part.layers[0] if part.layers else None
                query = LAST_POSITION if part is graph.epilogue else float(workload.prompt_tokens)
                row = _price_op(op, of_op(op, layer), spec, phase, workload, query)
                points.append(
                    {
                        "device": spec.name,
                        "phase": phase,
                        "name": op.name,
                        "intensity_flop_per_byte": row.flop / (row.read_bytes + row.write_bytes),
                        "achieved_flop_per_s": row.flop / row.time_s,
                        "time_s": row.time_s,
                        "bound_by": row.bound_by,
                    }
                )
    return points


class _PrecisionOfOp:
    """Precision of each operator of each layer; what no unit holds is unquantized."""

    def __init__(self, uniform: Precision | None, by_place: dict[tuple[int, str], Precision]) -> None:
        self.uniform = uniform
        self.by_place = by_place

    def __call__(self, op: Op, layer: int | None) -> Precision:
        if layer is None or op.kind not in ("linear", "attention"):
            return UNQUANTIZED
        if self.uniform is not None:
            return self.uniform
        return self.by_place.get((layer, op.name), UNQUANTIZED)

    @property
    def all(self) -> list[Precision]:
        """All precisions in use."""
        return [self.uniform] if self.uniform is not None else list(self.by_place.values())


def _precision_of_op(
    precision: Precision | Mapping[str, Precision], units: tuple[Unit, ...]
) -> _PrecisionOfOp:
    if isinstance(precision, Precision):
        return _PrecisionOfOp(precision, {})
    by_place = {
        (unit.layer, name): precision[unit.name]
        for unit in units
        for name in (*unit.ops, *unit.attention_ops)
    }
    return _PrecisionOfOp(None, by_place)


def _rows(
    graph: OperatorGraph, spec: HardwareSpec, of_op: _PrecisionOfOp, workload: Workload
) -> Iterator[OpRow]:
    """Yield every operator of every layer in both phases; equal ones are priced once."""
    known: dict[tuple[int, str, Phase, Precision], OpRow] = {}
    template = {id(block): index for index, block in enumerate(graph.blocks)}
    parts = [(graph.prologue, None), *zip(graph.block_of_layer, range(graph.n_layers), strict=True)]
    for phase in PHASES:
        for part, layer in (*parts, (graph.epilogue, None)):
            for op in part.ops:
                precision = of_op(op, layer)
                key = (template.get(id(part), -1), op.name, phase, precision)
                if key not in known:
                    query = LAST_POSITION if part is graph.epilogue else float(workload.prompt_tokens)
                    known[key] = _price_op(op, precision, spec, phase, workload, query)
                yield replace(known[key], name=part.full_name(op, layer))


def _price_op(
    op: Op, precision: Precision, spec: HardwareSpec, phase: Phase, workload: Workload, prefill_query: float
) -> OpRow:
    """Price one operator for the whole batch; decode steps are averaged."""
    batch = float(workload.batch)
    if phase == "prefill":
        work = lower(op, precision, spec, phase, batch, prefill_query, float(workload.prompt_tokens))
    else:
        work = lower(op, precision, spec, phase, batch, 1.0, decode_contexts(workload))
    return _row(op.name, phase, work, price(work, spec), spec.power.static_w or 0.0)


def _row(name: str, phase: Phase, work: Work, cost: OpCost, static_w: float) -> OpRow:
    time_s = float(np.mean(cost.time_s))
    return OpRow(
        name,
        phase,
        work.kernel,
        time_s,
        float(np.mean(cost.energy_j)) + static_w * time_s,
        float(np.mean(cost.compute_time_s)),
        float(np.mean(cost.memory_time_s)),
        float(np.mean(work.flop)),
        float(np.mean(work.read_bytes)),
        float(np.mean(work.write_bytes)),
        cost.provenance,
        float(np.mean(cost.low_s)),
        float(np.mean(cost.high_s)),
    )


def _phase_total(rows: list[OpRow], phase: Phase) -> dict[str, Any]:
    """Return {time_s, interval_s, energy_j, bound_by} of a phase.

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


def _memory(graph: OperatorGraph, spec: HardwareSpec, of_op: _PrecisionOfOp, workload: Workload) -> MemoryUse:
    """Return what the device holds when all sequences have their full length."""
    edges = edge_bytes(graph)
    weights = edges.first + edges.last - edges.tied
    kv_per_token = state = 0.0
    for layer, block in enumerate(graph.block_of_layer):
        weights += block_fixed_bytes(block)
        state += block_state_bytes(block)
        for op in block.ops:
            precision = of_op(op, layer)
            if op.kind == "linear":
                weights += weight_bytes(op, precision.weights)
            elif op.attention is not None:
                kv_per_token += kv_bytes_per_token(op.attention, precision.kv, workload.total_context)
    batch = float(workload.batch)
    prompt, total = float(workload.prompt_tokens), float(workload.total_context)
    live = max(
        float(activation_peak_elements(graph, batch, prompt, prompt)),
        float(activation_peak_elements(graph, batch, 1.0, total)),
    )
    return MemoryUse(
        weights=weights,
        kv=kv_cache_bytes(workload.batch, workload.total_context, kv_per_token) + batch * state,
        activations=SIXTEEN_BIT_BYTES * live,
        reserve=spec.reserve_bytes,
    )
