"""Measured operators as physical work: rows of a table, lowered exactly as the operators of a model are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.work import Work
from dse.evaluate.kernel_path import linear_path
from dse.evaluate.lowering import BITS_PER_BYTE, Phase, attention_work, linear_work
from dse.formats.precision import NumberFormat, Precision
from dse.formats.storage import row_bits, stored_bits
from dse.graph.operator import Attention
from hardware_specs.spec import HardwareSpec

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Tenths = NDArray[np.int64]

HELD_OUT_TENTHS = 3
"""Of ten weight shapes (n, k), or head layouts, this many are never fitted."""


@dataclass(frozen=True)
class Measured:
    """Measurements of one kernel class on one device in one precision.

    Attributes:
        label: what it is, e.g. "gemm fp8".
        work: one entry per row, arrays of shape (N,).
        seconds: (N,) measured times.
        tenth: (N,) which of ten parts a row's shape falls into; the first three no fit may see.
        sizes: (N, 3) m, n, k of products; sequences, context and heads of attention.
    """

    label: str
    work: Work
    seconds: Array
    tenth: Tenths
    sizes: Array

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def held_out(self) -> Mask:
        """(N,) rows whose shape no fit may see."""
        held: Mask = self.tenth < HELD_OUT_TENTHS
        return held

    def where(self, mask: Mask) -> Measured:
        """Return the rows of a mask."""
        return Measured(
            self.label,
            pick(self.work, mask),
            self.seconds[mask],
            self.tenth[mask],
            self.sizes[mask],
        )


def pick(work: Work, mask: Mask) -> Work:
    """Return some rows of a work whose fields are scalars or (N,) arrays."""

    def chosen(value: object) -> object:
        return value[mask] if isinstance(value, np.ndarray) and value.ndim else value

    fields = (
        "flop",
        "vector_flop",
        "read_bytes",
        "write_bytes",
        "rows",
        "parallel",
        "context",
        "weight_bytes",
        "quantize_bytes",
    )
    parts = {name: chosen(getattr(work, name)) for name in fields}
    shape = None if work.shape is None else (chosen(work.shape[0]), chosen(work.shape[1]))
    return replace(work, **parts, shape=shape)  # type: ignore[arg-type]


def shape_tenths(first: Array, second: Array) -> Tenths:
    """Return which of ten parts each shape falls into: a fixed hash of two sizes, the same everywhere."""
    mixed = first.astype(np.uint64) * np.uint64(2654435761) + second.astype(np.uint64) * np.uint64(2794643117)
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(16)
    tenths: Tenths = (mixed % np.uint64(10)).astype(np.int64)
    return tenths


def matmul_rows(
    label: str, spec: HardwareSpec, precision: Precision, m: Array, n: Array, k: Array, seconds: Array
) -> Measured:
    """Return products y[m, n] = x[m, k] W[n, k]^T of a precision.

    Raises:
        UnsupportedOnDevice: the device has no kernel for the precision.
    """
    stored = np.array([stored_bits(precision.weights, int(r), int(c)) for r, c in zip(n, k, strict=True)])
    rows = np.array([row_bits(precision.activations, int(c)) for c in k])
    work = linear_work(linear_path(spec, precision), m, n, k, stored / BITS_PER_BYTE, rows / BITS_PER_BYTE)
    return Measured(label, work, seconds, shape_tenths(n, k), np.stack([m, n, k], axis=1))


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of attention rows, each (N,): sequences, new and attended positions, heads and their width."""

    batch: Array
    query: Array
    context: Array
    heads: Array
    kv_heads: Array
    head_dim: Array


def attention_rows(
    label: str, spec: HardwareSpec, kv: NumberFormat, phase: Phase, sizes: AttentionSizes, seconds: Array
) -> Measured:
    """Return causal attention of one phase with a KV format; rows of one head layout are lowered together."""
    layouts = np.stack([sizes.heads, sizes.kv_heads, sizes.head_dim], axis=1)
    kinds, member = np.unique(layouts, axis=0, return_inverse=True)
    fields = ("flop", "vector_flop", "read_bytes", "write_bytes", "rows", "parallel", "context")
    columns = {name: np.empty(len(seconds)) for name in fields}
    work: Work | None = None
    for index, (heads, kv_heads, head_dim) in enumerate(kinds):
        rows = np.flatnonzero(member.ravel() == index)
        attention = Attention(int(heads), int(kv_heads), int(head_dim))
        work = attention_work(
            attention, kv, spec, phase, sizes.batch[rows], sizes.query[rows], sizes.context[rows]
        )
        for name in fields:
            columns[name][rows] = getattr(work, name)
    assert work is not None, "no rows"
    tenth = shape_tenths(sizes.heads * 1024 + sizes.kv_heads, sizes.head_dim)
    keys = np.stack([sizes.batch, sizes.context, sizes.heads], axis=1)
    return Measured(label, replace(work, **columns), seconds, tenth, keys)  # type: ignore[arg-type]
