"""What each operator of each layer costs on a device, for the page of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dse.evaluate.cost_document import Setting, cost_document
from dse.formats.precision import Precision
from dse.formats.storage import stored_bits
from dse.graph.operator import Op, OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec, RuntimeProfile

WIDE_BITS = 16.0
MAIN_PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class GraphCosts:
    """Numbers by (full name of the operator, phase).

    Attributes:
        device: name of the device; ``precisions``: names in use.
        numbers: {"time_s", "energy_j", "bytes"} of the prefill or of one decode step.
        bits: stored bits of a weight with its scales, by full name; of operators that have weights.
    """

    device: str
    precisions: tuple[str, ...]
    numbers: dict[tuple[str, str], dict[str, float]] = field(hash=False)
    bits: dict[str, float] = field(hash=False)


def graph_costs(
    graph: OperatorGraph,
    spec: HardwareSpec,
    precision: Precision | Mapping[str, Precision],
    units: tuple[Unit, ...],
    batch: int,
    prompt: int,
    context: int,
    runtime: RuntimeProfile | None = None,
) -> GraphCosts:
    """Price a graph at one shape.

    Args:
        graph: the traced model.
        spec: the device.
        precision: of all units, or of each by name.
        units: the units of a mixed assignment.
        batch, prompt: sequences and prompt tokens of each in prefill.
        context: positions that the decode step attends to.
        runtime: prices what it fuses as one kernel.

    Raises:
        UnsupportedOnDevice: the device has no kernel for a precision.
    """
    numbers: dict[tuple[str, str], dict[str, float]] = {}
    setting = Setting(runtime=runtime)
    names: tuple[str, ...] = ()
    for phase, before in zip(MAIN_PHASES, (prompt, max(1, context - 1)), strict=True):
        document = cost_document(graph, spec, precision, Workload(batch, before, 1), units, setting)
        names = tuple(document["precisions"])
        for row in document["operators"]:
            if row["phase"] == phase:
                numbers[row["name"], phase] = {
                    "time_s": row["time_s"],
                    "energy_j": row["energy_j"],
                    "bytes": row["read_bytes"] + row["write_bytes"],
                }
    return GraphCosts(spec.name, names, numbers, _bits(graph, precision, units))


def _bits(
    graph: OperatorGraph, precision: Precision | Mapping[str, Precision], units: tuple[Unit, ...]
) -> dict[str, float]:
    chosen: dict[tuple[int, str], Precision] = {}
    if not isinstance(precision, Precision):
        chosen = {(unit.layer, name): precision[unit.name] for unit in units for name in unit.ops}
    bits = {
        op.name: WIDE_BITS for part in (graph.prologue, graph.epilogue) for op in part.ops if _has_weights(op)
    }
    for layer, block in enumerate(graph.block_of_layer):
        for op in block.ops:
            if not _has_weights(op):
                continue
            given = precision if isinstance(precision, Precision) else chosen.get((layer, op.name))
            narrow = given is not None and op.kind == "linear" and op.weight_shape is not None
            bits[block.full_name(op, layer)] = (
                stored_bits(given.weights, *op.weight_shape) / (op.weight_shape[0] * op.weight_shape[1])
                if narrow and given is not None and op.weight_shape is not None
                else WIDE_BITS
            )
    return bits


def _has_weights(op: Op) -> bool:
    return op.parameters > 0 or op.tied_to is not None
