"""Average stored bits per parameter of a mixed-precision model, metadata included."""

from __future__ import annotations

from collections.abc import Sequence

from dse.formats.grammar import parse_format
from dse.formats.storage import StoredMatrix, model_effective_bits
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.plan import Assignment

KEPT = parse_format("bf16")


def effective_bits(
    graph: OperatorGraph, assignment: Assignment, units: Sequence[Unit], extra_bits: int = 0
) -> tuple[float, float]:
    """Return (whole model, linears of the blocks only) in bits per parameter.

    The whole model counts every parameter once: embedding, output head (not again where tied), norms and
    biases at 16 bits. The two differ much where a small model has a large embedding. ``extra_bits`` in all
    are stored beside the formats (outliers, low-rank corrections).
    """
    linears: list[StoredMatrix] = []
    n_quantizable = 0
    for unit in units:
        fmt = assignment.by_unit[unit.name].weights
        shapes = {op.name: op.weight_shape for op in graph.block_of_layer[unit.layer].ops}
        for name in unit.ops:
            shape = shapes[name]
            assert shape is not None
            linears.append(StoredMatrix(fmt, *shape))
            n_quantizable += shape[0] * shape[1]
    others = [StoredMatrix(KEPT, 1, graph.parameters - n_quantizable)]
    bits = model_effective_bits(linears, others if graph.parameters > n_quantizable else [])
    return bits.whole_model + extra_bits / graph.parameters, bits.linear + extra_bits / n_quantizable
