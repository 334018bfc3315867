"""Further kernels by their sizes: grouped products, outliers, look-up tables, bit planes, rotations.

Each takes the times of plain work where it contains some, and says what it adds. Sizes are (m, n, k) of
y[m, n] = x[m, k] W[n, k]^T; rates in operations/s, bandwidths in bytes/s. The counts are those of METHODS
"analytic cost hooks"; shares of bandwidth and rates are constants of a device, to be measured on it.
"""

from __future__ import annotations

import numpy as np

from cost_models.work import Floats

INDEX_BYTES = 2.0
VALUE_BYTES = 2.0
GATHER_INDEX_BYTES = 2.0


def grouped_product_s(
    tokens: Floats,
    n_experts: int,
    top_k: int,
    expert_flop_per_token: float,
    expert_bytes: float,
    rate: float,
    bandwidth: float,
    tile_rows: float = 1.0,
) -> Floats:
    """Return the time of one grouped product of a mixture of experts, spread evenly.

    Experts hit: ``E (1 - (1 - k / E)^t)``, each of which reads its weights; every hit expert computes whole
    tiles of rows. ``max(flop / rate, bytes / bandwidth)``.
    """
    t = np.asarray(tokens, dtype=np.float64)
    hit = n_experts * -np.expm1(t * np.log1p(-min(1.0 - 1e-15, top_k / n_experts)))
    rows_each = np.where(hit > 0, t * top_k / np.maximum(hit, 1e-300), 0.0)
    rows = np.maximum(t * top_k, hit * np.ceil(rows_each / tile_rows - 1e-3) * tile_rows)
    return np.maximum(rows * expert_flop_per_token / rate, hit * expert_bytes / bandwidth)


def sparse_product_s(
    n_nonzero: Floats, rows: Floats, bandwidth_frac: float, rate: float, bandwidth: float
) -> Floats:
    """Return the time of a compressed-sparse product beside the dense one (SpQR, SqueezeLLM outliers).

    Reads a value and a column index for each non-zero at a share of the bandwidth (0.3 to 0.5 were measured),
    and does 2 operations per non-zero and row of activations.
    """
    bytes_s = n_nonzero * (VALUE_BYTES + INDEX_BYTES) / (bandwidth * bandwidth_frac)
    return np.maximum(bytes_s, 2.0 * n_nonzero * rows / rate)


def dense_columns_s(rows: Floats, outputs: Floats, n_kept: Floats, rate: float, bandwidth: float) -> Floats:
    """Return the time of c whole 16-bit columns (OWQ): ``max(2 m n c / rate, 2 n c / bandwidth)``."""
    return np.maximum(2.0 * rows * outputs * n_kept / rate, VALUE_BYTES * outputs * n_kept / bandwidth)


def lookup_product_s(
    rows: Floats,
    outputs: Floats,
    inputs: Floats,
    bits: int,
    group: int,
    lookups_per_s: float,
    bandwidth: float,
) -> Floats:
    """Return the time of a product by look-up tables (LUT-GEMM): 2^g partial sums for ``group`` = g inputs.

    Building: ``2^g`` additions for each of ``k / g`` groups and row; using: one look-up per bit plane, output
    and group; both at ``lookups_per_s``. Weights are read once at their width.
    """
    groups = np.ceil(np.asarray(inputs, dtype=np.float64) / group)
    steps = rows * groups * (2.0**group + bits * np.asarray(outputs, dtype=np.float64))
    return np.maximum(steps / lookups_per_s, outputs * inputs * bits / 8.0 / bandwidth)


def bit_plane_bytes(outputs: Floats, inputs: Floats, bits: int, stored_bits: int) -> Floats:
    """Return what is read of weights in bit planes (Any-Precision LLM): ``bits`` of ``stored_bits`` planes.

    Planes are 32-bit words along the inputs, so rows are padded to whole words.
    """
    words = np.ceil(np.asarray(inputs, dtype=np.float64) / 32.0)
    return outputs * words * 4.0 * min(bits, stored_bits)


def hadamard_additions(width: Floats, block: int | None = None) -> Floats:
    """Return the additions of one online Hadamard transform of a vector.

    ``n log2 n`` where the width is a power of two; else ``n (K + log2(n / K))`` with a dense factor of size K
    (``block``), as QuaRot does for widths such as 14336 = 28 * 512.
    """
    n = np.asarray(width, dtype=np.float64)
    return n * np.log2(n) if block is None else n * (block + np.log2(n / block))


def hadamard_s(
    rows: Floats, width: Floats, rate: float, bandwidth: float, block: int | None = None
) -> Floats:
    """Return the time of an unfused online Hadamard: its additions, or its 16-bit reads and writes."""
    moved = 2.0 * VALUE_BYTES * rows * np.asarray(width, dtype=np.float64)
    return np.maximum(rows * hadamard_additions(width, block) / rate, moved / bandwidth)


def gather_s(rows: Floats, width: Floats, element_bytes: float, bandwidth: float) -> Floats:
    """Return the time to reorder channels on the way in (Atom, QUIK): every element and a 16-bit index."""
    return np.asarray(rows * width * (element_bytes + GATHER_INDEX_BYTES) / bandwidth, dtype=np.float64)
