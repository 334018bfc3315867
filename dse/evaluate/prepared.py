"""What no device changes: the sizes of all operators, of which the graph's part is looked up once.

Axis letters as in ``dse.evaluate.device_costs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.work import Work
from dse.evaluate.beside import NO_EXTRAS, Extras, scaled_sums_per_output
from dse.evaluate.cost_table import Array
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
from dse.evaluate.sizes import PhaseSizes, Sizes
from dse.evaluate.stack import OpStack
from dse.formats.precision import Precision
from dse.formats.storage import row_bits
from dse.graph.extent import Extent, ExtentStack
from dse.graph.operator import Block, Op, OperatorGraph
from dse.graph.units import Unit
from hardware_specs.spec import RuntimeProfile


@dataclass(frozen=True)
class ElementwiseStack:
    """Element-wise operators whose work is evaluated together (see ``lowering.elementwise_work``)."""

    ops: tuple[Op, ...]
    vector_flop: ExtentStack
    read_elements: ExtentStack
    write_elements: ExtentStack
    n_launches: Array

    @classmethod
    def of(cls, ops: Sequence[Op]) -> ElementwiseStack:
        """Stack operators in order."""
        return cls(
            tuple(ops),
            ExtentStack.of([op.vector_flop + op.flop for op in ops]),
            ExtentStack.of(
                [
                    op.write_elements
                    if op.kind == "embedding"
                    else op.read_elements + Extent.constant(op.parameters)
                    for op in ops
                ]
            ),
            ExtentStack.of([op.write_elements for op in ops]),
            np.array([1.0 if op.kind in LAUNCHING_KINDS else 0.0 for op in ops]),
        )

    def work(self, compute: str, phases: Sequence[PhaseSizes]) -> Work:
        """Return their work over (P, M, E); what a phase does not run does nothing there."""
        runs_in = np.array([[float(runs(op, phase)) for op in self.ops] for phase, *_ in phases])[:, None]
        flop, read, written = (
            np.stack([stack(batch, query, context) for _, batch, query, context in phases]) * runs_in
            for stack in (self.vector_flop, self.read_elements, self.write_elements)
        )
        return Work(
            "elementwise",
            "elementwise",
            compute,
            vector_flop=flop,
            read_bytes=SIXTEEN_BIT_BYTES * read,
            write_bytes=SIXTEEN_BIT_BYTES * written,
            n_launches=self.n_launches * runs_in,
        )


@dataclass(frozen=True)
class EdgeParts:
    """Operators before the first or after the last block: element-wise ones, and the others."""

    elementwise: ElementwiseStack
    others: tuple[Op, ...]

    @classmethod
    def of(cls, block: Block) -> EdgeParts:
        """Sort the operators of a part."""
        others = tuple(op for op in block.ops if op.kind == "linear" or op.attention is not None)
        names = {op.name for op in others}
        return cls(ElementwiseStack.of([op for op in block.ops if op.name not in names]), others)


@dataclass(frozen=True)
class FixedParts:
    """What depends on no size: a model in some precisions, looked up once.

    Attributes:
        stack: the operators; ``linear_flop`` of the linears; ``elementwise``, ``first``, ``last``.
        stored: (O, Q) weight bytes; ``read``: what a product reads of them; ``row_bytes``: one row of
            activations; ``sums``: operations beside each output.
        matrices: (O,) of experts, else 1; ``launches``: (O,) kernel launches, also the share of the reading
            of its input.
    """

    stack: OpStack
    linear_flop: ExtentStack
    elementwise: ElementwiseStack
    first: EdgeParts
    last: EdgeParts
    stored: Array
    read: Array
    row_bytes: Array
    sums: Array
    matrices: Array
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
    matrices = [1.0 if op.experts is None else float(op.experts.n_experts) for op in stack.linears]
    shares = [share for block in graph.blocks for share in launch_shares(block, runtime).values()]
    return FixedParts(
        stack,
        ExtentStack.of([op.flop for op in stack.linears]),
        ElementwiseStack.of(stack.others),
        EdgeParts.of(graph.prologue),
        EdgeParts.of(graph.epilogue),
        table[..., 0],
        table[..., 1],
        table[..., 2],
        table[..., 3],
        np.array(matrices),
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
    elementwise: Work | None

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
    phases = sizes.of_phases()
    linears = fixed.stack.linears
    shape = (len(phases), *sizes.micro_batches.shape, len(linears))
    active = np.ones(shape)
    used = np.ones(shape)
    for p, (phase, batch, query, _) in enumerate(phases):
        for o, op in enumerate(linears):
            if op.experts is not None:
                active[p, :, o] = active_frac(op, batch, query)
            if not runs(op, phase):
                used[p, :, o] = 0.0
    flop = np.stack([fixed.linear_flop(batch, query, context) for _, batch, query, context in phases])
    weights = np.array([op.weight_shape[0] * op.weight_shape[1] for op in linears if op.weight_shape])
    elementwise = fixed.elementwise.work("", phases) if fixed.elementwise.ops else None
    return Prepared(fixed, flop / (2.0 * weights * active), used * active, elementwise)


STACKED = (
    *("flop", "vector_flop", "read_bytes", "write_bytes", "rows", "parallel", "context"),
    *("n_launches", "weight_bytes", "quantize_bytes"),
)


def stacked(works: Sequence[Work], shape: tuple[int, ...]) -> Work:
    """Join works of one kernel and product, each over ``shape``, into one over (P, *shape)."""
    columns = {
        name: np.stack([np.broadcast_to(getattr(work, name), shape) for work in works]) for name in STACKED
    }
    return replace(works[0], **columns)  # type: ignore[arg-type]
