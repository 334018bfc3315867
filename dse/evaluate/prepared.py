"""What no device changes: the sizes of all operators, of which the graph's part is looked up once.

Axis letters as in ``dse.evaluate.device_costs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.work import Work
from dse.evaluate.beside import NO_EXTRAS, Extras, scaled_sums_per_output
from dse.evaluate.cost_table import PHASES, Array
from dse.evaluate.fusion import launch_shares
from dse.evaluate.lowering import (
    BITS_PER_BYTE,
    LAUNCHING_KINDS,
    SIXTEEN_BIT_BYTES,
    active_frac,
    read_weight_bytes,
    runs,
    weight_bytes,
)
from dse.evaluate.sizes import LAST_POSITION, Sizes
from dse.evaluate.stack import OpStack
from dse.formats.precision import Precision
from dse.formats.storage import row_bits
from dse.graph.extent import Extent, ExtentStack
from dse.graph.operator import Block, Op, OperatorGraph
from dse.graph.units import Unit
from hardware_specs.spec import RuntimeProfile


@dataclass(frozen=True)
class ElementwiseStack:
    """Element-wise operators whose work is evaluated together (see ``lowering.elementwise_work``).

    Those of the block templates come first, then those before the first block and those after the last.

    Attributes:
        vector_flop, read_elements, write_elements: of each.
        n_launches: (E,) of each; ``runs_in`` (P, 1, E) is 0 where a phase does not run it.
        of_part: (T + 2, E) is 1 where it belongs to a template, to the part before, to the part after.
    """

    vector_flop: ExtentStack
    read_elements: ExtentStack
    write_elements: ExtentStack
    n_launches: Array
    runs_in: Array
    of_part: Array

    @classmethod
    def of(cls, graph: OperatorGraph, stack: OpStack) -> ElementwiseStack:
        """Stack the operators of a graph; those after the last block see the last position alone."""
        first, last = (_sorted_ops(block)[0] for block in (graph.prologue, graph.epilogue))
        ops = (*stack.others, *first, *last)
        n_blocks = len(graph.blocks)
        of_part = np.zeros((n_blocks + 2, len(ops)))
        of_part[:n_blocks, : len(stack.others)] = stack.other_of_template
        of_part[n_blocks, len(stack.others) : len(ops) - len(last)] = 1.0
        of_part[n_blocks + 1, len(ops) - len(last) :] = 1.0

        def seen(op: Op, extent: Extent) -> Extent:
            return extent.at_query(LAST_POSITION) if any(op is entry for entry in last) else extent

        def read(op: Op) -> Extent:
            looked_up = op.kind == "embedding"
            return op.write_elements if looked_up else op.read_elements + Extent.constant(op.parameters)

        return cls(
            ExtentStack.of([seen(op, op.vector_flop + op.flop) for op in ops]),
            ExtentStack.of([seen(op, read(op)) for op in ops]),
            ExtentStack.of([seen(op, op.write_elements) for op in ops]),
            np.array([1.0 if op.kind in LAUNCHING_KINDS else 0.0 for op in ops]),
            _runs_in(ops),
            of_part,
        )

    def work(self, batch: Array, query: Array, context: Array) -> Work:
        """Return their work over (P, M, E); what a phase does not run does nothing there."""
        flop, read, written = (
            stack(batch, query, context) * self.runs_in
            for stack in (self.vector_flop, self.read_elements, self.write_elements)
        )
        return Work(
            "elementwise",
            "elementwise",
            "",
            vector_flop=flop,
            read_bytes=SIXTEEN_BIT_BYTES * read,
            write_bytes=SIXTEEN_BIT_BYTES * written,
            n_launches=self.n_launches * self.runs_in,
        )


def _sorted_ops(block: Block) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Return the element-wise operators of a part, and the others."""
    others = tuple(op for op in block.ops if op.kind == "linear" or op.attention is not None)
    names = {op.name for op in others}
    return tuple(op for op in block.ops if op.name not in names), others


def _runs_in(ops: Sequence[Op]) -> Array:
    """Return (P, 1, ops), 1 where a phase runs an operator."""
    return np.array([[float(runs(op, phase)) for op in ops] for phase in PHASES])[:, None]


@dataclass(frozen=True)
class FixedParts:
    """What depends on no size: a model in some precisions, looked up once.

    Attributes:
        stack: the operators; ``linear_flop`` of the linears; ``elementwise``: those and the edges'.
        first, last: what else there is before the first and after the last block.
        stored: (O, Q) weight bytes; ``read``: what a product reads of them; ``row_bytes``: one row of
            activations; ``sums``: operations beside each output.
        outputs, inputs: (O,) of one matrix; ``matrices``: (O,) of experts, else 1; ``runs_in``: (P, 1, O), 0
            where a phase does not run the linear.
        launches: (O,) kernel launches, also the share of the reading of its input.
    """

    stack: OpStack
    linear_flop: ExtentStack
    elementwise: ElementwiseStack
    first: tuple[Op, ...]
    last: tuple[Op, ...]
    stored: Array
    read: Array
    row_bytes: Array
    sums: Array
    outputs: Array
    inputs: Array
    matrices: Array
    runs_in: Array
    launches: Array


def fixed_parts(
    graph: OperatorGraph,
    units: Sequence[Unit],
    precisions: Sequence[Precision],
    runtime: RuntimeProfile | None = None,
    extras: Extras = NO_EXTRAS,
) -> FixedParts:
    """Look up what no size changes; ``runtime`` says which linears share a launch.

    ``extras`` says what is stored beside weights.

    Raises:
        ConfigError: a linear belongs to no unit or to two.
    """
    stack = OpStack.of(graph, units)

    def row(op: Op, precision: Precision) -> tuple[float, float, float, float]:
        inputs = 1 if op.weight_shape is None else op.weight_shape[1]
        return (
            weight_bytes(op, precision.weights, extras),
            read_weight_bytes(op, precision.weights),
            row_bits(precision.activations, inputs) / BITS_PER_BYTE,
            scaled_sums_per_output(precision.weights, precision.activations, inputs),
        )

    rows = [[row(op, precision) for precision in precisions] for op in stack.linears]
    table = np.array(rows, dtype=np.float64).reshape(len(stack.linears), len(precisions), 4)
    shapes = [op.weight_shape for op in stack.linears if op.weight_shape is not None]
    outputs, inputs = np.reshape(np.array(shapes, dtype=np.float64), (-1, 2)).T
    matrices = [1.0 if op.experts is None else float(op.experts.n_experts) for op in stack.linears]
    shares = [share for block in graph.blocks for share in launch_shares(block, runtime).values()]
    return FixedParts(
        stack,
        ExtentStack.of([op.flop for op in stack.linears]),
        ElementwiseStack.of(graph, stack),
        _sorted_ops(graph.prologue)[1],
        _sorted_ops(graph.epilogue)[1],
        table[..., 0],
        table[..., 1],
        table[..., 2],
        table[..., 3],
        outputs,
        inputs,
        np.array(matrices),
        _runs_in(stack.linears),
        np.array(shares),
    )


@dataclass(frozen=True)
class Prepared:
    """What is the same on every device, at some sizes.

    ``rows`` (P, M, O) tokens of each linear (``lowering.linear_rows``); ``used`` (P, M, O) the share of its
    matrices that a linear reads, 1 without experts and 0 in a phase that does not run it; ``elementwise`` the
    (P, M, E) work of element-wise operators. The rest is that of ``fixed``.
    """

    fixed: FixedParts
    rows: Array
    used: Array
    elementwise: Work

    @property
    def stack(self) -> OpStack:
        """The operators."""
        return self.fixed.stack

    @property
    def stored(self) -> Array:
        """(O, Q) stored weight bytes."""
        return self.fixed.stored


def prepare(fixed: FixedParts, sizes: Sizes) -> Prepared:
    """Evaluate all sizes, which no device changes."""
    batch, query, context = points = sizes.points()
    active = np.ones((*batch.shape, len(fixed.stack.linears)))
    for o, op in enumerate(fixed.stack.linears):
        if op.experts is not None:
            active[..., o] = active_frac(op, batch, query)
    rows = fixed.linear_flop(*points) / (2.0 * fixed.outputs * fixed.inputs * active)
    return Prepared(fixed, rows, active * fixed.runs_in, fixed.elementwise.work(batch, query, context))
