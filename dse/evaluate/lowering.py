"""From operators to physical work: what a device must compute and move for one operator in one phase.

The cost models below see no model graph, and the graph code above sees no bandwidth. Arrays of workload
sizes broadcast, so that one call covers all micro-batches and context lengths.

What is counted: stored bytes with scales and zero points; 16-bit elements between operators; scaled
activation formats where a product reads them. Expanding a low-bit weight takes 2 vector operations per
element, quantizing an activation 3, reading a quantized KV element 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cost_models.attention import causal_pairs
from cost_models.kernels import bit_plane_bytes
from cost_models.tables import LOOKUP_CLASSES
from cost_models.work import Floats, Work
from dse.errors import ConfigError
from dse.evaluate.beside import (
    NO_EXTRAS,
    QUANTIZE_OPS_PER_ELEMENT,
    Extras,
    outlier_works,
    quantize_work,
    rotation_works,
    scaled_sums_per_output,
)
from dse.evaluate.kernel_path import LinearPath, check_kv, float_kind, linear_path, supports
from dse.formats.precision import NumberFormat, Precision
from dse.formats.storage import kv_bits_per_token, row_bits, stored_bits
from dse.graph.operator import Attention, Block, Op
from hardware_specs.spec import HardwareSpec

__all__ = ["Phase", "attention_work", "elementwise_work", "linear_work", "lower", "supports"]

Phase = Literal["prefill", "decode"]
BITS_PER_BYTE = 8.0
SIXTEEN_BIT_BYTES = 2.0
EXPAND_OPS_PER_ELEMENT = 2.0
LOOKUPS_PER_ELEMENT = 1.0

LAUNCHING_KINDS = ("norm", "activation", "rope", "embedding")
"""Element-wise kinds that cost a kernel launch. Additions, products and copies ride on a neighbour's kernel
(norm + add, act * up), but their traffic is counted as traced."""


def weight_bytes(op: Op, fmt: NumberFormat, extras: Extras = NO_EXTRAS) -> float:
    """Return the stored bytes of a linear: its matrix in ``fmt`` with metadata, its bias in 16 bits.

    What ``extras`` keep beside the matrix is counted with it.
    """
    outputs, inputs = _weight_shape(op)
    kept = extras.keeps(fmt)
    if kept is not None:
        beside = float(kept.bytes_beside(outputs, inputs))
        return kept.matrix_bytes(fmt, outputs, inputs) + beside + bias_bytes(op)
    return stored_bits(fmt, outputs, inputs) / BITS_PER_BYTE + bias_bytes(op)


def read_weight_bytes(op: Op, fmt: NumberFormat) -> float:
    """Return what a product reads of a linear's stored weights: all, or of nested codes the planes in use.

    Nested codes lie in bit planes, of which a product of ``read_bits`` reads that many, and the table of that
    width.
    """
    if fmt.kind != "nested" or fmt.read_bits is None:
        return weight_bytes(op, fmt)
    outputs, inputs = _weight_shape(op)
    tables = outputs if fmt.granularity == "row" else 1
    entries = tables * 2**fmt.read_bits * fmt.scale_bits / BITS_PER_BYTE
    planes = bit_plane_bytes(float(outputs), float(inputs), fmt.read_bits, fmt.bits)
    return float(planes) + entries + bias_bytes(op)


def bias_bytes(op: Op) -> float:
    """Return the bytes of a linear's bias in 16 bits."""
    return SIXTEEN_BIT_BYTES * _weight_shape(op)[0] if op.has_bias else 0.0


def runs(op: Op, phase: Phase) -> bool:
    """Return whether a phase runs an operator: decode steps leave out what runs once for a request."""
    return phase == "prefill" or not op.once


def linear_rows(op: Op, batch: Floats, query: Floats, context: Floats) -> Floats:
    """Return m of the product: the tokens that a linear processes, from its multiply-adds.

    For a mixture of experts, those of each expert in use.
    """
    outputs, inputs = _weight_shape(op)
    used = active_frac(op, batch, query)
    return op.flop(batch, query, context) / (2.0 * outputs * inputs * used)


def active_frac(op: Op, batch: Floats, query: Floats) -> Floats:
    """Return the expected share of a linear's matrices that a pass reads: 1 without experts."""
    if op.experts is None:
        return 1.0
    return op.experts.expected_active(np.asarray(batch) * np.asarray(query)) / op.experts.n_experts


def active_matrices(op: Op, batch: Floats, query: Floats) -> Floats:
    """Return the expected number of matrices that a pass multiplies with: 1 without experts."""
    return 1.0 if op.experts is None else active_frac(op, batch, query) * op.experts.n_experts


def linear_work(
    path: LinearPath,
    rows: Floats,
    outputs: Floats,
    inputs: Floats,
    stored_weight_bytes: Floats,
    activation_row_bytes: Floats,
    input_share: Floats = 1.0,
    sums_per_output: Floats = 0.0,
    n_launches: Floats = 1.0,
) -> Work:
    """Return the work of y[m, n] = x[m, k] W[n, k]^T; all arguments broadcast.

    Args:
        path: kernel of the device.
        rows, outputs, inputs: m, n, k.
        stored_weight_bytes: of W with its metadata and bias.
        activation_row_bytes: of one row of x in the format that the product reads.
        input_share: of reading and quantizing x: 1 / n where n products of one x run as one kernel. The
            traffic of quantizing is whole, because the cost model gives it the share of the launch.
        sums_per_output: vector operations for each output where the array scales its partial sums
            (``beside.scaled_sums_per_output``).
        n_launches: 1 / n where n products run as one kernel.
    """
    vector_flop: Floats = 0.0
    quantize_bytes: Floats = 0.0
    if path.expands_weights:
        per_element = EXPAND_OPS_PER_ELEMENT if path.kernel == "matmul" else LOOKUPS_PER_ELEMENT
        vector_flop = vector_flop + per_element * outputs * inputs
    beside_flop = rows * outputs * sums_per_output if path.scales_sums and np.any(sums_per_output) else None
    if path.quantizes_activations and not path.quantizes_before:
        vector_flop = vector_flop + QUANTIZE_OPS_PER_ELEMENT * rows * inputs * input_share
        quantize_bytes = rows * (inputs * SIXTEEN_BIT_BYTES + activation_row_bytes)
    return Work(
        kernel=path.kernel,
        profile=path.profile,
        compute=path.compute,
        flop=2.0 * rows * outputs * inputs,
        vector_flop=vector_flop if beside_flop is None else vector_flop + beside_flop,
        beside_flop=beside_flop,
        read_bytes=stored_weight_bytes + rows * activation_row_bytes * input_share,
        write_bytes=rows * outputs * SIXTEEN_BIT_BYTES,
        rows=rows,
        n_launches=n_launches,
        weight_bytes=stored_weight_bytes,
        quantize_bytes=quantize_bytes,
        shape=(outputs, inputs),
    )


@dataclass(frozen=True)
class KvTraffic:
    """What cache formats change: (K, 1, 1) bytes of a position, and operations to read one back."""

    token_bytes: Floats
    expand_ops: Floats

    @classmethod
    def of(cls, attention: Attention, formats: Sequence[NumberFormat]) -> KvTraffic:
        """Look up some formats; sizes broadcast behind their axis."""
        heads, dim = attention.cached_heads, int(attention.cached_dim)
        found = [
            (
                kv_bits_per_token(kv, heads, dim) / BITS_PER_BYTE,
                0.0 if kv.is_float else EXPAND_OPS_PER_ELEMENT * 2.0 * heads * dim,
            )
            for kv in formats
        ]
        token_bytes, expand_ops = np.array(found).reshape(-1, 2).T[:, :, None, None]
        return cls(token_bytes, expand_ops)


def attention_work(
    attention: Attention,
    kv: NumberFormat,
    spec: HardwareSpec,
    phase: Phase,
    batch: Floats,
    query: Floats,
    context: Floats,
) -> Work:
    """Return ``attention_traffic_work`` of one cache format; sizes broadcast."""
    every = KvTraffic.of(attention, [kv])
    one = KvTraffic(float(np.squeeze(every.token_bytes)), float(np.squeeze(every.expand_ops)))
    return attention_traffic_work(attention, one, float_kind(spec), phase, batch, query, context)


def attention_traffic_work(
    attention: Attention,
    cache: KvTraffic,
    compute: str,
    phase: Phase,
    batch: Floats,
    query: Floats,
    context: Floats,
) -> Work:
    """Return the work of causal attention with its KV cache; sizes broadcast.

    Prefill: causal pairs; every key and value is read once (then it is in a cache) and the new ones are
    written. The tiles of kernels are the cost model's business. Decode: the cached keys and values are read,
    one token's written. A sliding window bounds what is attended to and read. Cross-attention keeps the keys
    and values of the encoder's positions in the prefill, and reads them in every pass.
    """
    heads, width = attention.n_heads, attention.n_heads * attention.product_dim
    token_bytes = cache.token_bytes
    source = attention.source_tokens
    if source is not None:  # keys and values of an encoder's input
        query, context = (query if attention.cross else source), np.full(np.shape(context), float(source))
    window = attention.window
    is_prefill = phase == "prefill"
    pairs = causal_pairs(query, context, window)
    if not attention.causal:  # an encoder: every token sees all
        pairs = np.asarray(query, dtype=np.float64) * np.asarray(context, dtype=np.float64)
    attended = np.asarray(context, dtype=np.float64)
    if window is not None:
        attended = np.minimum(attended, np.asarray(query, dtype=np.float64) + window - 1)
    fresh = batch * np.asarray(query, dtype=np.float64)
    kept: Floats = fresh
    if attention.cross:  # kept from the first pass on
        kept = batch * context if is_prefill else 0.0 * fresh
    elif source is not None:
        kept = 0.0 * fresh
    return Work(
        kernel="attention_prefill" if is_prefill else "attention_decode",
        profile="attention_prefill" if is_prefill else "attention_decode",
        compute=compute,
        flop=4.0 * batch * width * pairs,
        vector_flop=batch * heads * pairs + (0.0 if is_prefill else cache.expand_ops * batch * attended),
        read_bytes=fresh * width * SIXTEEN_BIT_BYTES + batch * attended * token_bytes,
        write_bytes=fresh * width * SIXTEEN_BIT_BYTES + kept * token_bytes,
        rows=query,
        parallel=batch * (heads if is_prefill else attention.n_kv_heads),
        context=context if is_prefill else attended,
        window=window,
    )


def elementwise_work(op: Op, compute: str, batch: Floats, query: Floats, context: Floats) -> Work:
    """Return the work of an operator on vector units (scans too); parameters are read once per launch.

    ``compute`` is the device's unquantized kind, which sets the energy of an operation.
    An embedding reads only the rows it looks up.
    """
    written = op.write_elements(batch, query, context)
    read = written if op.kind == "embedding" else op.read_elements(batch, query, context) + op.parameters
    return Work(
        kernel="elementwise",
        profile="elementwise",
        compute=compute,
        vector_flop=op.vector_flop(batch, query, context) + op.flop(batch, query, context),
        read_bytes=read * SIXTEEN_BIT_BYTES,
        write_bytes=written * SIXTEEN_BIT_BYTES,
        n_launches=1.0 if op.kind in LAUNCHING_KINDS else 0.0,
    )


def nothing(compute: str) -> Work:
    """Return the work of an operator that does not run."""
    return Work(kernel="elementwise", profile="elementwise", compute=compute, n_launches=0.0)


def lower(
    op: Op,
    precision: Precision,
    spec: HardwareSpec,
    phase: Phase,
    batch: Floats,
    query: Floats,
    context: Floats,
    launch_share: float = 1.0,
) -> Work:
    """Return the physical work of an operator at a precision on a device.

    Args:
        launch_share: 1 / n of a linear that a runtime runs as one with n - 1 others (``fusion``).
        batch, query, context: sequences, new tokens of each, and positions attended to; they broadcast.
        precision: weights and activations matter to linears, the KV format to attention.

    Raises:
        UnsupportedOnDevice: the device has no kernel for the precision.
    """
    if not runs(op, phase):
        return nothing(float_kind(spec))
    if op.kind == "linear":
        outputs, inputs = _weight_shape(op)
        used = active_frac(op, batch, query)
        work = linear_work(
            linear_path(spec, precision),
            linear_rows(op, batch, query, context),
            outputs * used,
            inputs,
            read_weight_bytes(op, precision.weights) * used,
            row_bits(precision.activations, inputs) / BITS_PER_BYTE * active_matrices(op, batch, query),
            launch_share,
            scaled_sums_per_output(precision.weights, precision.activations, inputs),
        )
        return replace(work, n_launches=launch_share)
    if op.kind == "attention" and op.attention is not None:
        check_kv(spec, precision.kv)
        return attention_work(op.attention, precision.kv, spec, phase, batch, query, context)
    return elementwise_work(op, float_kind(spec), batch, query, context)


def lower_beside(
    op: Op,
    block: Block,
    precision: Precision,
    spec: HardwareSpec,
    phase: Phase,
    batch: Floats,
    query: Floats,
    context: Floats,
    extras: Extras = NO_EXTRAS,
    launch_share: float = 1.0,
) -> tuple[tuple[str, Work], ...]:
    """Return (what, work) of the kernels that run beside an operator of a block.

    Quantizing the input where the product's kernel does not; the product with kept outliers; online
    rotations (see ``dse.evaluate.beside``).
    """
    if not runs(op, phase):
        return ()
    wide = float_kind(spec)
    tokens: Floats = np.asarray(batch, dtype=np.float64) * query
    found: list[tuple[str, Work]] = []
    if op.kind == "linear":
        path, inputs = linear_path(spec, precision), _weight_shape(op)[1]
        rows = linear_rows(op, batch, query, context)
        matrices = active_matrices(op, batch, query)
        tokens = rows * matrices
        if path.quantizes_before and programmable(spec):
            row_bytes = row_bits(precision.activations, inputs) / BITS_PER_BYTE
            found.append(("quantize", quantize_work(wide, tokens, inputs, row_bytes, launch_share)))
        kept = extras.keeps(precision.weights)
        if kept is not None:
            outputs = _weight_shape(op)[0] * active_frac(op, batch, query)
            found += [(kept.store, work) for work in outlier_works(kept, wide, rows, outputs, inputs)]
    found += [("rotate", work) for work in rotation_works(op, block, wide, extras, tokens)]
    return tuple(found)


def programmable(spec: HardwareSpec) -> bool:
    """Return whether kernels are launched one by one, so that quantizing an input is one more of them.

    Elsewhere (NPUs, dataflow chips) constants come from token rates, which hold whatever a product needs.
    """
    return spec.device_class in LOOKUP_CLASSES


def _weight_shape(op: Op) -> tuple[int, int]:
    """Return (outputs, inputs) of a linear."""
    if op.weight_shape is None:
        raise ConfigError(f"linear '{op.name}' has no weight shape")
    return op.weight_shape
