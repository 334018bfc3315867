"""Pricing all operators on one device, vectorised: a handful of calls of the cost models for a whole model.

Axis letters as in ``CostTable``, and: O stacked linears, A attention operators, E element-wise operators, T
block templates, C context lengths. Cost arrays have a leading axis of 4: time_s, energy_j, and the times that
nine of ten kernels exceed and stay below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
)
from dse.evaluate.cost_table import PHASES, Array
from dse.evaluate.kernel_path import LinearPath, float_kind, linear_path, supports
from dse.evaluate.lowering import (
    SIXTEEN_BIT_BYTES,
    KvTraffic,
    Phase,
    active_matrices,
    attention_traffic_work,
    linear_rows,
    linear_work,
    lower,
    programmable,
    runs,
)
from dse.evaluate.prepared import Prepared
from dse.evaluate.sizes import LAST_POSITION, PhaseSizes, Sizes
from dse.evaluate.tensor_parallel import (
    TensorGroup,
    all_reduce_costs,
    attention_part,
    elementwise_parts,
    linear_parts,
)
from dse.formats.grammar import parse_precision
from dse.formats.precision import NumberFormat, Precision
from dse.graph.operator import Attention, Op, OperatorGraph
from hardware_specs.spec import HardwareSpec

UNQUANTIZED = parse_precision("bf16/bf16/bf16")
"""Precision of everything that no unit decides on: embedding, norms, output head."""


N_COSTS = 4


@dataclass(frozen=True)
class DeviceCosts:
    """Costs on one device: unit (4, P, M, U, Q), layer (4, P, M, L), first and last (4, P, M)."""

    reasons: tuple[str | None, ...]
    unit: Array
    layer: Array
    first: Array
    last: Array
    provenance: Provenance


@dataclass(frozen=True)
class DeviceWays:
    """Which kernels a device has for each precision, independent of sizes.

    ``reasons`` (Q,) why a precision does not run, None where it does: those are ``chosen``; ``linear`` and
    ``kv`` list them by the kernel of linears and by the format of the cache.
    """

    reasons: tuple[str | None, ...]
    chosen: tuple[int, ...]
    linear: tuple[tuple[LinearPath, list[int]], ...]
    kv: tuple[tuple[NumberFormat, list[int]], ...]


def device_ways(spec: HardwareSpec, precisions: Sequence[Precision]) -> DeviceWays:
    """Look up the kernels of a device for each precision."""
    reasons = tuple(supports(spec, precision) for precision in precisions)
    chosen = tuple(q for q, reason in enumerate(reasons) if reason is None)
    linear: dict[LinearPath, list[int]] = {}
    kv: dict[NumberFormat, list[int]] = {}
    for q in chosen:
        linear.setdefault(linear_path(spec, precisions[q]), []).append(q)
        kv.setdefault(precisions[q].kv, []).append(q)
    return DeviceWays(reasons, chosen, tuple(linear.items()), tuple(kv.items()))


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
    ways: DeviceWays | None = None,
) -> DeviceCosts:
    """Price everything on one device, or on a group of them that shares every layer.

    Times of a group are those of each of its devices and of their all-reduces; energies are of all of them.
    ``ways`` are those of ``device_ways``, where they are known already.
    """
    degree = 1 if group is None else group.degree
    pricer = _Pricer(spec, degree)
    ways = device_ways(spec, precisions) if ways is None else ways
    stack, n_blocks = prepared.stack, len(graph.blocks)
    linear = _linear_costs(pricer, prepared, precisions, ways, extras)
    attention = _attention_costs(pricer, stack.attentions, len(precisions), ways, sizes)
    parts = _elementwise_costs(pricer, prepared)
    per_template = parts[..., :n_blocks]
    if extras.transform != "none":
        per_template = per_template + _rotation_costs(pricer, graph, sizes.of_phases(), extras)
    if group is not None:
        per_template = per_template + _with_span(all_reduce_costs(group, _messages(graph, sizes)))
    batch, query, context = sizes.points()
    at_last = np.full_like(query, LAST_POSITION)
    first = parts[..., n_blocks] + _edge_costs(pricer, prepared.fixed.first, (batch, query, context))
    last = parts[..., n_blocks + 1] + _edge_costs(pricer, prepared.fixed.last, (batch, at_last, context))
    # only the last pass of a prompt needs the head
    passes = np.array([sizes.n_chunks, 1.0])[:, None]
    return DeviceCosts(
        ways.reasons,
        stack.linear_of_unit @ linear + stack.attention_of_unit @ attention,
        per_template[..., stack.template_of_layer],
        first,
        last / passes,
        pricer.provenance,
    )


def _elementwise_costs(pricer: _Pricer, prepared: Prepared) -> Array:
    """Return (4, P, M, T + 2) of the templates, of the part before and of the part after."""
    stack, others = prepared.fixed.elementwise, prepared.stack.others
    work = replace(prepared.elementwise, compute=float_kind(pricer.spec))
    if pricer.n_devices > 1:
        share = np.ones(len(stack.n_launches))
        share[: len(others)] = elementwise_parts(others, pricer.n_devices)
        work = _part_of(work, share)
    return pricer(work, np.shape(work.read_bytes)) @ stack.of_part.T


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
    ways: DeviceWays,
    extras: Extras,
) -> Array:
    """Return (4, P, M, O, Q): one pricing call per kernel path, for all operators and precisions of it."""
    fixed = prepared.fixed
    of_outputs, of_inputs = linear_parts(prepared.stack.linears, pricer.n_devices)
    outputs, inputs = (fixed.outputs * of_outputs)[:, None], (fixed.inputs * of_inputs)[:, None]
    rows, used = prepared.rows[..., None], prepared.used[..., None]
    matrices = used * fixed.matrices[:, None]
    launches = fixed.launches[:, None] * (used > 0)
    costs = np.zeros((N_COSTS, *prepared.rows.shape, len(precisions)))
    for path, members in ways.linear:
        row_bytes = fixed.row_bytes[:, members] * of_inputs[:, None]
        work = linear_work(
            path,
            rows,
            outputs * used,
            inputs,
            fixed.read[:, members] * (used / pricer.n_devices),
            row_bytes * matrices,
            fixed.launches[:, None],
            fixed.sums[:, members],
            launches,
        )
        shape = (*prepared.rows.shape, len(members))
        costs[..., members] = pricer(work, shape)
        if path.quantizes_before and programmable(pricer.spec):
            work = quantize_work(float_kind(pricer.spec), rows * matrices, inputs, row_bytes, launches)
            costs[..., members] += pricer(work, shape)
    if extras.outliers is not None:
        quantized = [q for q in ways.chosen if extras.keeps(precisions[q].weights) is not None]
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
    pricer: _Pricer, attentions: Sequence[Attention], n_precisions: int, ways: DeviceWays, sizes: Sizes
) -> Array:
    """Return (4, P, M, A, Q), mean over contexts: a pair of pricing calls per operator for all KV formats."""
    batch, compute = sizes.micro_batches[:, None], float_kind(pricer.spec)
    costs = np.zeros((N_COSTS, 2, len(batch), len(attentions), n_precisions))
    for a, whole in enumerate(attentions):
        attention = attention_part(whole, pricer.n_devices)
        cache = KvTraffic.of(attention, [kv for kv, _ in ways.kv])
        sized: list[tuple[Phase, Floats, Array]] = [("prefill", sizes.chunk, sizes.prefill_contexts)]
        if not whole.once:
            sized.append(("decode", 1.0, sizes.contexts))
        for p, (phase, query, contexts) in enumerate(sized):
            work = attention_traffic_work(attention, cache, compute, phase, batch, query, contexts)
            mean = pricer(work, (len(ways.kv), len(batch), len(contexts))).mean(axis=-1)
            for k, (_, members) in enumerate(ways.kv):
                costs[:, p, :, a, members] = mean[:, k]  # (members, 4, M): the index comes first
    return costs


def _edge_costs(pricer: _Pricer, ops: Sequence[Op], points: tuple[Array, Array, Array]) -> Array:
    """Return (4, P, M) of unquantized products before the first or after the last block, at (P, M) sizes."""
    batch, query, context = points
    total = np.zeros((N_COSTS, *batch.shape))
    for op in ops:
        if op.kind == "linear" and all(runs(op, phase) for phase in PHASES):
            work = lower(op, UNQUANTIZED, pricer.spec, "prefill", batch, query, context)
            total += pricer(_part_of_head(work, pricer.n_devices), batch.shape)
            continue
        for p, phase in enumerate(PHASES):
            work = lower(op, UNQUANTIZED, pricer.spec, phase, batch[p], query[p], context[p])
            total[:, p] += pricer(work, batch.shape[1:])
    return total
