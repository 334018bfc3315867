"""One model on one device, operator by operator: rows of costs, and the points of a roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cost_models.pricing import bound_by, price
from cost_models.work import Floats, OpCost, Provenance, Work
from dse.errors import UnsupportedOnDevice
from dse.evaluate.beside import NO_EXTRAS, Extras
from dse.evaluate.device_costs import UNQUANTIZED
from dse.evaluate.fusion import launch_shares
from dse.evaluate.kernel_path import supports
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES, Phase, lower, lower_beside
from dse.evaluate.sizes import LAST_POSITION, decode_contexts
from dse.evaluate.tensor_parallel import ALL_REDUCES_PER_BLOCK, TensorGroup, all_reduce_of
from dse.formats.precision import Precision
from dse.graph.operator import Block, Op, OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec, RuntimeProfile

PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class OpRow:
    """Cost of one operator in one phase: the prefill of the whole batch, or the mean decode step.

    ``energy_j`` holds static power over the operator's own time, where it is known; ``layer`` is None outside
    the blocks.
    """

    name: str
    layer: int | None
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
        """What takes most of the time: "compute", "memory", "launch" or "link"."""
        if self.kernel == "collective":
            return "link"
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


class PrecisionOfOp:
    """Precision of each operator of each layer; what no unit holds is unquantized."""

    def __init__(self, uniform: Precision | None, by_place: dict[tuple[int, str], Precision]) -> None:
        self.uniform = uniform
        self.by_place = by_place

    def __call__(self, op: Op, layer: int | None) -> Precision:
        """Return the precision of an operator of a layer (None outside the blocks)."""
        if layer is None or op.kind not in ("linear", "attention"):
            return UNQUANTIZED
        if self.uniform is not None:
            return self.uniform
        return self.by_place.get((layer, op.name), UNQUANTIZED)

    @property
    def all(self) -> list[Precision]:
        """All precisions in use."""
        return [self.uniform] if self.uniform is not None else list(self.by_place.values())


def precision_of_op(precision: Precision | Mapping[str, Precision], units: tuple[Unit, ...]) -> PrecisionOfOp:
    """Return the precision of all operators, from one for all or from that of each unit."""
    if isinstance(precision, Precision):
        return PrecisionOfOp(precision, {})
    by_place = {
        (unit.layer, name): precision[unit.name]
        for unit in units
        for name in (*unit.ops, *unit.attention_ops)
    }
    return PrecisionOfOp(None, by_place)


def check_supported(spec: HardwareSpec, of_op: PrecisionOfOp) -> tuple[str, ...]:
    """Return the names of all precisions in use.

    Raises:
        UnsupportedOnDevice: the device has no kernel for one.
    """
    used = sorted({entry.name: entry for entry in of_op.all}.items())
    for name, entry in used:
        reason = supports(spec, entry)
        if reason is not None:
            raise UnsupportedOnDevice(spec.name, name, known=[], reason=f"{name}: {reason}")
    return tuple(name for name, _ in used)


@dataclass(frozen=True)
class Breakdown:
    """Prices the operators of a model, of a group of devices those of each one's part.

    Attributes:
        graph: the traced model, or one device's part of it (``tensor_parallel.graph_part``).
        spec, group: the device, and the group that it belongs to.
        of_op: precision of each operator.
        workload: the whole batch is one micro-batch; a decode step is the mean over the growing context.
        extras: what a quantization method adds.
        runtime: what it fuses shares launches, and its host time is a row of every pass; None prices every
            operator as a launch. The graph is ``fusion.with_fused_norms`` of it.
    """

    graph: OperatorGraph
    spec: HardwareSpec
    of_op: PrecisionOfOp
    workload: Workload
    extras: Extras = NO_EXTRAS
    group: TensorGroup | None = None
    runtime: RuntimeProfile | None = None

    @cached_property
    def launch_shares(self) -> dict[tuple[int, ...], dict[str, float]]:
        """The part of a launch that falls on each linear, by layers of the block and name."""
        return {block.layers: launch_shares(block, self.runtime) for block in self.graph.blocks}

    def rows(self) -> Iterator[OpRow]:
        """Yield every operator of every layer in both phases; equal ones are priced once.

        What runs beside an operator is a row of its own, named ``operator.what``.
        """
        graph = self.graph
        known: dict[tuple[int, str, Phase, Precision], list[OpRow]] = {}
        template = {id(block): index for index, block in enumerate(graph.blocks)}
        parts = [(graph.prologue, None), *zip(graph.block_of_layer, range(graph.n_layers), strict=True)]
        for phase in PHASES:
            for part, layer in (*parts, (graph.epilogue, None)):
                for op in part.ops:
                    precision = self.of_op(op, layer)
                    key = (template.get(id(part), -1), op.name, phase, precision)
                    if key not in known:
                        known[key] = self.op_rows(op, part, precision, phase)
                    name = part.full_name(op, layer)
                    for row in known[key]:
                        yield replace(row, name=name + row.name.removeprefix(op.name), layer=layer)
                if layer is not None:
                    prefix = part.full_name(part.ops[0], layer).removesuffix(part.ops[0].name)
                    for row in self._all_reduces(layer, phase):
                        yield replace(row, name=prefix + row.name, layer=layer)
            if self.runtime is not None and self.runtime.step_overhead_s:
                last = next(reversed(known.values()))[0]
                yield self._host(phase, self.runtime.step_overhead_s, last.provenance)

    def _host(self, phase: Phase, seconds: float, provenance: Provenance) -> OpRow:
        """Return the runtime's own time in a pass."""
        idle_j, nothing = (self.spec.power.static_w or 0.0) * seconds, (0.0,) * 5
        return OpRow("host", None, phase, "host", seconds, idle_j, *nothing, provenance, seconds, seconds)

    def op_rows(self, op: Op, part: Block, precision: Precision, phase: Phase) -> list[OpRow]:
        """Return the row of an operator and of what runs beside it."""
        query = LAST_POSITION if part is self.graph.epilogue else float(self.workload.prompt_tokens)
        batch = float(self.workload.batch)
        context: Floats = float(self.workload.prompt_tokens)
        if phase == "decode":
            query, context = 1.0, decode_contexts(self.workload)
        sizes = (batch, query, context)
        share = self.launch_shares.get(part.layers, {}).get(op.name, 1.0)
        works = [(op.name, lower(op, precision, self.spec, phase, *sizes, launch_share=share))]
        if part in self.graph.blocks:
            beside = lower_beside(op, part, precision, self.spec, phase, *sizes, self.extras, share)
            works += [(f"{op.name}.{what}", work) for what, work in beside]
        return [self._row(name, phase, work, price(work, self.spec)) for name, work in works]

    def _all_reduces(self, layer: int, phase: Phase) -> list[OpRow]:
        """Return the all-reduces of one layer, which each of the group's devices takes part in."""
        of_encoder = layer < self.graph.n_encoder_layers
        if self.group is None or (of_encoder and phase == "decode"):
            return []
        tokens = self.workload.prompt_tokens if phase == "prefill" else 1
        if of_encoder:
            tokens = self.graph.source_tokens or 0
        message = SIXTEEN_BIT_BYTES * self.graph.hidden_size * self.workload.batch * tokens
        each_s, each_j = (float(part) for part in all_reduce_of(self.group, message))
        energy_j = (each_j / self.group.degree) + (self.spec.power.static_w or 0.0) * each_s
        row = OpRow(
            "all_reduce",
            None,
            phase,
            "collective",
            each_s,
            energy_j,
            0.0,
            0.0,
            0.0,
            message,
            message,
            "analytic",
            each_s,
            each_s,
        )
        return [replace(row, name=f"all_reduce_{index}") for index in range(ALL_REDUCES_PER_BLOCK)]

    def _row(self, name: str, phase: Phase, work: Work, cost: OpCost) -> OpRow:
        time_s = float(np.mean(cost.time_s))
        return OpRow(
            name,
            None,
            phase,
            work.kernel,
            time_s,
            float(np.mean(cost.energy_j)) + (self.spec.power.static_w or 0.0) * time_s,
            float(np.mean(cost.compute_time_s)),
            float(np.mean(cost.memory_time_s)),
            float(np.mean(work.flop)),
            float(np.mean(work.read_bytes)),
            float(np.mean(work.write_bytes)),
            cost.provenance,
            float(np.mean(cost.low_s)),
            float(np.mean(cost.high_s)),
        )


def roofline_points(
    graph: OperatorGraph, spec: HardwareSpec, precision: Precision, workload: Workload
) -> list[dict[str, Any]]:
    """Return one row per operator with multiply-adds, of each block template once and of the output head.

    Rows are {device, phase, name, intensity_flop_per_byte, achieved_flop_per_s, time_s, bound_by}.
    """
    breakdown = Breakdown(graph, spec, precision_of_op(precision, ()), workload)
    points: list[dict[str, Any]] = []
    for phase in PHASES:
        for part in (*graph.blocks, graph.epilogue):
            for op in part.ops:
                if op.kind not in ("linear", "attention"):
                    continue
                layer = part.layers[0] if part.layers else None
                row = breakdown.op_rows(op, part, breakdown.of_op(op, layer), phase)[0]
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
