"""What further kernels count: bit planes, Hadamard transforms, gathers (METHODS "analytic cost hooks")."""

from __future__ import annotations

import numpy as np

from cost_models.work import Floats

GATHER_INDEX_BYTES = 2.0


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


def gather_bytes(rows: Floats, width: Floats, element_bytes: float) -> Floats:
    """Return what is read to reorder channels (Atom, QUIK): every element and a 16-bit index."""
    return rows * width * (element_bytes + GATHER_INDEX_BYTES)
