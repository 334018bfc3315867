"""Pricing all operators on one device, vectorised: a handful of calls of the cost models for a whole model.

Axis letters as in ``CostTable``, and: O stacked linears, A attention operators, E element-wise operators, T
block templates, C context lengths. Cost arrays have a leading axis of 4: time_s, energy_j, and the times that
nine of ten kernels exceed and stay below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cost_models.pricing import price
from cost_models.work import Floats, Provenance, Work
from dse.evaluate.beside import (
    NO_EXTRAS,
    Extras,
    Outliers,
    outlier_works,
    quantize_work,
    rotation_works,
    scaled_sums_per_output,
)
from dse.evaluate.cost_table import Array
from dse.evaluate.fusion import launch_shares
from dse.evaluate.kernel_path import LinearPath, float_kind, linear_path, supports
from dse.evaluate.lowering import (
    BITS_PER_BYTE,
    SIXTEEN_BIT_BYTES,
    active_frac,
    active_matrices,
    attention_work,
    elementwise_work,
    linear_rows,
    linear_work,
    lower,
    nothing,
    programmable,
    read_weight_bytes,
    runs,
    weight_bytes,
)
from dse.evaluate.sizes import PhaseSizes, Sizes
from dse.evaluate.stack import OpStack
from dse.evaluate.tensor_parallel import (
    TensorGroup,
    all_reduce_costs,
    attention_part,
    elementwise_parts,
    linear_parts,
)
from dse.formats.grammar import parse_precision
from dse.formats.precision import NumberFormat, Precision
from dse.formats.storage import row_bits
from dse.graph.operator import Attention, Block, Op, OperatorGraph
from dse.graph.units import Unit
from hardware_specs.spec import HardwareSpec, RuntimeProfile

UNQUANTIZED = parse_precision("bf16/bf16/bf16")
"""Precision of everything that no unit decides on: embedding, norms, output head."""


N_COSTS = 4


@dataclass(frozen=True)
class Prepared:
    """What is the same on every device.

    ``rows`` (P, M, O) tokens of each linear; ``stored`` (O, Q) weight bytes; ``row_bytes`` (O, Q) one row of
    activations; ``used`` (P, M, O) the share of its matrices that a linear reads, 1 without experts and 0 in
    a phase that does not run it, and ``matrices`` (O,) how many there are; ``launches`` (O,) kernel
    launches, which is also the share of the reading of its input; ``read`` (O, Q) what a product reads of
    the stored bytes and ``sums`` (O, Q) what it computes beside each output; ``elementwise`` the (P, M, E)
    work of element-wise operators.
    """

    stack: OpStack
    rows: Array
    stored: Array
    read: Array
    sums: Array
    row_bytes: Array
    used: Array
    matrices: Array
    launches: Array
    elementwise: Work | None


def prepare(
    graph: OperatorGraph,
    units: Sequence[Unit],
    precisions: Sequence[Precision],
    sizes: Sizes,
    runtime: RuntimeProfile | None = None,
    extras: Extras = NO_EXTRAS,
) -> Prepared:
    """Evaluate all sizes, which no device changes; ``runtime`` says which linears share a launch.

    ``extras`` says what is stored beside weights.

    Raises:
        ConfigError: a linear belongs to no unit or to two.
    """
    stack = OpStack.of(graph, units)
    phases = sizes.of_phases()
    rows = [
        [linear_rows(op, batch, query, context) for op in stack.linears]
        for _, batch, query, context in phases
    ]
    used = [
        [
            np.broadcast_to(active_frac(op, batch, query) * runs(op, phase), np.shape(batch))
            for op in stack.linears
        ]
        for phase, batch, query, _ in phases
    ]
    matrices = [1 if op.experts is None else op.experts.n_experts for op in stack.linears]
    stored, read, sums = (
        np.array([[of(op, precision) for precision in precisions] for op in stack.linears], dtype=np.float64)
        for of in (partial(_stored_bytes, extras), _read_bytes, _sums)
    )
    row_bytes = [
        [row_bits(precision.activations, op.weight_shape[1]) / BITS_PER_BYTE for precision in precisions]
        for op in stack.linears
        if op.weight_shape is not None
    ]
    elementwise = _stack_works(
        [
            [
                elementwise_work(op, "", batch, query, context) if runs(op, phase) else nothing("")
                for op in stack.others
            ]
            for phase, batch, query, context in phases
        ]
    )
    n_linears, n_precisions = len(stack.linears), len(precisions)
    return Prepared(
        stack,
        np.moveaxis(np.asarray(rows, dtype=np.float64).reshape(2, n_linears, -1), 1, 2),
        stored.reshape(n_linears, n_precisions),
        read.reshape(n_linears, n_precisions),
        sums.reshape(n_linears, n_precisions),
        np.asarray(row_bytes, dtype=np.float64).reshape(n_linears, n_precisions),
        np.moveaxis(np.asarray(used, dtype=np.float64).reshape(2, n_linears, -1), 1, 2),
        np.asarray(matrices, dtype=np.float64),
        np.array([share for block in graph.blocks for share in launch_shares(block, runtime).values()]),
        elementwise,
    )


def _stored_bytes(extras: Extras, op: Op, precision: Precision) -> float:
    return weight_bytes(op, precision.weights, extras)


def _read_bytes(op: Op, precision: Precision) -> float:
    return read_weight_bytes(op, precision.weights)


def _sums(op: Op, precision: Precision) -> float:
    inputs = 1 if op.weight_shape is None else op.weight_shape[1]
    return scaled_sums_per_output(precision.weights, precision.activations, inputs)


def _stack_works(works: list[list[Work]]) -> Work | None:
    """Join P lists of E works, each over (M,), into one over (P, M, E)."""
    if not works[0]:
        return None
    shape = np.shape(works[0][0].read_bytes)
    vector_flop, read_bytes, write_bytes, n_launches = (
        np.moveaxis(
            np.array([[np.broadcast_to(getattr(w, name), shape) for w in phase] for phase in works]), 1, -1
        )
        for name in ("vector_flop", "read_bytes", "write_bytes", "n_launches")
    )
    return replace(
        works[0][0],
        vector_flop=vector_flop,
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        n_launches=n_launches,
    )


@dataclass(frozen=True)
class DeviceCosts:
    """Costs on one device: unit (4, P, M, U, Q), layer (4, P, M, L), first and last (4, P, M)."""

    reasons: tuple[str | None, ...]
    unit: Array
    layer: Array
    first: Array
    last: Array
    provenance: Provenance


class _Pricer:
    """Prices works on one device and joins the provenance of all of them."""

    def __init__(self, spec: HardwareSpec, n_devices: int = 1) -> None:
        self.spec = spec
        self.n_devices = n_devices
        self.seen: set[Provenance] = set()

    def __call__(self, work: Work, shape: tuple[int, ...]) -> Array:
        """Return (4, *shape)."""
        cost = price(work, self.spec)
        self.seen.add(cost.provenance)
        out = np.empty((N_COSTS, *shape))
        out[0], out[1] = cost.time_s, cost.energy_j * self.n_devices
        out[2], out[3] = cost.low_s, cost.high_s
        return out

    @property
    def provenance(self) -> Provenance:
        """What all priced works have in common, else "mixed"."""
        return self.seen.copy().pop() if len(self.seen) == 1 else "mixed"


def price_device(
    spec: HardwareSpec,
    graph: OperatorGraph,
    prepared: Prepared,
    precisions: Sequence[Precision],
    sizes: Sizes,
    group: TensorGroup | None = None,
    extras: Extras = NO_EXTRAS,
) -> DeviceCosts:
    """Price everything on one device, or on a group of them that shares every layer.

    Times of a group are those of each of its devices and of their all-reduces; energies are of all of them.
    """
    degree = 1 if group is None else group.degree
    pricer = _Pricer(spec, degree)
    reasons = tuple(supports(spec, precision) for precision in precisions)
    chosen = [q for q, reason in enumerate(reasons) if reason is None]
    stack = prepared.stack
    linear = _linear_costs(pricer, prepared, precisions, chosen, extras)
    attention = _attention_costs(pricer, stack.attentions, precisions, chosen, sizes)
    per_template = np.zeros((*linear.shape[:3], len(graph.blocks)))
    if prepared.elementwise is not None:
        work = replace(prepared.elementwise, compute=float_kind(spec))
        work = _part_of(work, elementwise_parts(stack.others, degree))
        others = pricer(work, (*linear.shape[1:3], len(stack.others)))
        per_template = others @ stack.other_of_template.T
    if extras.transform != "none":
        per_template = per_template + _rotation_costs(pricer, graph, sizes.of_phases(), extras)
    if group is not None:
        per_template = per_template + _with_span(all_reduce_costs(group, _messages(graph, sizes)))
    # only the last pass of a prompt needs the head
    passes = np.array([sizes.n_chunks, 1.0])[:, None]
    return DeviceCosts(
        reasons,
        stack.linear_of_unit @ linear + stack.attention_of_unit @ attention,
        per_template[..., stack.template_of_layer],
        _edge_costs(pricer, graph.prologue, sizes.of_phases()),
        _edge_costs(pricer, graph.epilogue, sizes.of_epilogue()) / passes,
        pricer.provenance,
    )


def _with_span(costs: Array) -> Array:
    """Return (4, ...) of (2, ...) seconds and joules whose errors nobody knows."""
    return np.concatenate([costs, costs[:1], costs[:1]])


def _messages(graph: OperatorGraph, sizes: Sizes) -> Array:
    """Return (P, M, T) bytes of the hidden state of all tokens of a pass, 0 where an encoder does not run."""
    hidden_bytes = SIXTEEN_BIT_BYTES * graph.hidden_size
    of_encoder = np.array([block.layers[0] < graph.n_encoder_layers for block in graph.blocks])
    source = (graph.source_tokens or 0) * np.array([1.0, 0.0])
    tokens = [
        batch[:, None] * np.where(of_encoder, source[p], np.reshape(query, (-1, 1)))
        for p, (_, batch, query, _) in enumerate(sizes.of_phases())
    ]
    return np.stack(tokens) * hidden_bytes


def _part_of(work: Work, share: Array) -> Work:
    """Return an element-wise work of which each device does a share."""
    return replace(
        work,
        vector_flop=work.vector_flop * share,
        read_bytes=work.read_bytes * share,
        write_bytes=work.write_bytes * share,
    )


def _part_of_head(work: Work, degree: int) -> Work:
    """Return the output head of one device of a group: its part of the vocabulary."""
    if degree == 1 or work.shape is None:
        return work
    outputs, inputs = work.shape
    return replace(
        work,
        flop=work.flop / degree,
        read_bytes=work.read_bytes - work.weight_bytes * (1.0 - 1.0 / degree),
        write_bytes=work.write_bytes / degree,
        weight_bytes=work.weight_bytes / degree,
        shape=(outputs / degree, inputs),
    )


def _linear_costs(
    pricer: _Pricer,
    prepared: Prepared,
    precisions: Sequence[Precision],
    chosen: list[int],
    extras: Extras,
) -> Array:
    """Return (4, P, M, O, Q): one pricing call per kernel path, for all operators and precisions of it."""
    linears = prepared.stack.linears
    shape = [op.weight_shape for op in linears if op.weight_shape is not None]
    outputs, inputs = np.reshape(np.array(shape, dtype=np.float64), (-1, 2)).T[:, :, None]
    of_outputs, of_inputs = (part[:, None] for part in linear_parts(linears, pricer.n_devices))
    rows, used = prepared.rows[..., None], prepared.used[..., None]
    matrices = used * prepared.matrices[:, None]
    costs = np.zeros((N_COSTS, *prepared.rows.shape, len(precisions)))
    groups: dict[LinearPath, list[int]] = {}
    for q in chosen:
        groups.setdefault(linear_path(pricer.spec, precisions[q]), []).append(q)
    for path, members in groups.items():
        work = linear_work(
            path,
            rows,
            outputs * of_outputs * used,
            inputs * of_inputs,
            prepared.read[:, members] * (used / pricer.n_devices),
            prepared.row_bytes[:, members] * (of_inputs * matrices),
            prepared.launches[:, None],
            prepared.sums[:, members],
        )
        launches = prepared.launches[:, None] * (used > 0)
        work = replace(work, n_launches=launches)
        shape_of_costs = (*prepared.rows.shape, len(members))
        costs[..., members] = pricer(work, shape_of_costs)
        if path.quantizes_before and programmable(pricer.spec):
            row_bytes = prepared.row_bytes[:, members] * of_inputs
            work = quantize_work(
                float_kind(pricer.spec), rows * matrices, inputs * of_inputs, row_bytes, launches
            )
            costs[..., members] += pricer(work, shape_of_costs)
    if extras.outliers is not None:
        quantized = [q for q in chosen if extras.keeps(precisions[q].weights) is not None]
        costs[..., quantized] += _outlier_costs(pricer, prepared, extras.outliers)[..., None]
    return costs


def _outlier_costs(pricer: _Pricer, prepared: Prepared, kept: Outliers) -> Array:
    """Return (4, P, M, O) of the products with kept outliers, which no precision changes."""
    linears = prepared.stack.linears
    of_outputs, of_inputs = linear_parts(linears, pricer.n_devices)
    costs = np.zeros((N_COSTS, *prepared.rows.shape))
    for o, op in enumerate(linears):
        if op.weight_shape is None:
            continue
        outputs, inputs = op.weight_shape
        used = prepared.used[..., o]
        works = outlier_works(
            kept,
            float_kind(pricer.spec),
            prepared.rows[..., o],
            np.asarray(used * (outputs * float(of_outputs[o])), dtype=np.float64),
            round(inputs * of_inputs[o]),
            (used > 0).astype(np.float64),
        )
        for work in works:
            costs[..., o] += pricer(work, used.shape)
    return costs


def _rotation_costs(
    pricer: _Pricer, graph: OperatorGraph, phases: Sequence[PhaseSizes], extras: Extras
) -> Array:
    """Return (4, P, M, T) of the online rotations of each block template; devices of a group share them."""
    wide = float_kind(pricer.spec)
    costs = np.zeros((N_COSTS, len(phases), *phases[0][1].shape, len(graph.blocks)))
    for t, block in enumerate(graph.blocks):
        for op in block.ops:
            for p, (phase, batch, query, context) in enumerate(phases):
                if not runs(op, phase):
                    continue
                tokens: Floats = batch * query
                if op.kind == "linear":
                    tokens = linear_rows(op, batch, query, context) * active_matrices(op, batch, query)
                for work in rotation_works(op, block, wide, extras, tokens / pricer.n_devices):
                    costs[:, p, :, t] += pricer(work, batch.shape)
    return costs


def _attention_costs(
    pricer: _Pricer,
    attentions: Sequence[Attention],
    precisions: Sequence[Precision],
    chosen: list[int],
    sizes: Sizes,
) -> Array:
    """Return (4, P, M, A, Q): one pair of pricing calls per operator and KV format, mean over contexts."""
    batch = sizes.micro_batches
    costs = np.zeros((N_COSTS, 2, len(batch), len(attentions), len(precisions)))
    groups: dict[NumberFormat, list[int]] = {}
    for q in chosen:
        groups.setdefault(precisions[q].kv, []).append(q)
    for a, whole in enumerate(attentions):
        attention = attention_part(whole, pricer.n_devices)
        for kv, members in groups.items():
            prefill = attention_work(
                attention, kv, pricer.spec, "prefill", batch[:, None], sizes.chunk, sizes.prefill_contexts
            )
            decode = attention_work(attention, kv, pricer.spec, "decode", batch[:, None], 1.0, sizes.contexts)
            per_pass = pricer(prefill, (len(batch), sizes.n_chunks))
            costs[:, 0][:, :, a, members] = per_pass.mean(axis=-1)[..., None]
            if whole.once:
                continue
            per_context = pricer(decode, (len(batch), len(sizes.contexts)))
            costs[:, 1][:, :, a, members] = per_context.mean(axis=-1)[..., None]
    return costs


def _edge_costs(pricer: _Pricer, part: Block, phases: Sequence[PhaseSizes]) -> Array:
    """Return (4, P, M) of the unquantized operators before the first or after the last block."""
    shape = phases[0][1].shape
    total = np.zeros((N_COSTS, len(phases), *shape))
    for p, (phase, batch, query, context) in enumerate(phases):
        for op in part.ops:
            work = lower(op, UNQUANTIZED, pricer.spec, phase, batch, query, context)
            if op.kind == "linear":
                work = _part_of_head(work, pricer.n_devices)
            total[:, p] += pricer(work, shape)
    return total
