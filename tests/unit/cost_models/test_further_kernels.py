"""Further kernels, offload and caches against closed forms, enumeration and a simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.kernels import (
    bit_plane_bytes,
    dense_columns_s,
    gather_s,
    grouped_product_s,
    hadamard_additions,
    hadamard_s,
    lookup_product_s,
    sparse_product_s,
)
from cost_models.offload import (
    CacheLevel,
    chained_bandwidth_bytes_per_s,
    hierarchy_s,
    overlapped_s,
    streamed_layers_s,
)


def test_grouped_product_reads_the_experts_that_are_hit():
    """Oracle: all routings of 2 tokens to 2 of 4 experts, enumerated."""
    pairs = list(itertools.combinations(range(4), 2))
    hit = np.mean([len({*first, *second}) for first in pairs for second in pairs])
    assert grouped_product_s(2, 4, 2, 0.0, 1.0, 1.0, 1.0) == pytest.approx(hit)


def test_grouped_product_computes_whole_tiles():
    # 64 tokens, all 8 experts hit, 16 rows each on average; tiles of 64 rows: 8 * 64 rows.
    bare = grouped_product_s(64, 8, 2, 1.0, 0.0, 1.0, 1.0)
    assert bare == pytest.approx(128)
    assert grouped_product_s(64, 8, 2, 1.0, 0.0, 1.0, 1.0, tile_rows=64) == pytest.approx(8 * 64, rel=1e-3)
    assert grouped_product_s(0, 8, 2, 1.0, 1.0, 1.0, 1.0) == 0


def test_sparse_and_kept_columns():
    # 1e6 non-zeros: 4 MB at 40 % of 1 GB/s = 10 ms; one row of activations: 2e6 operations at 1e12/s.
    assert sparse_product_s(1e6, 1, 0.4, 1e12, 1e9) == pytest.approx(10e-3)
    assert sparse_product_s(1e6, 1e6, 0.4, 1e12, 1e9) == pytest.approx(2.0)
    assert dense_columns_s(1, 1000, 8, 1e12, 1e6) == pytest.approx(16e-3)
    assert dense_columns_s(1e6, 1000, 8, 1e9, 1e12) == pytest.approx(16.0)


def test_lookup_tables_count_their_steps():
    """Oracle: the loop over groups, planes and outputs."""
    rows, outputs, inputs, bits, group = 3, 5, 16, 4, 8
    steps = sum(2**group + bits * outputs for _ in range(rows) for _ in range(inputs // group))
    assert lookup_product_s(rows, outputs, inputs, bits, group, 1.0, 1e9) == steps


def test_bit_planes_are_whole_words():
    assert bit_plane_bytes(10, 64, 3, 8) == 10 * 2 * 4 * 3
    assert bit_plane_bytes(10, 65, 3, 8) == 10 * 3 * 4 * 3
    assert bit_plane_bytes(10, 64, 9, 8) == bit_plane_bytes(10, 64, 8, 8)


def butterfly(width: int) -> int:
    """Additions of the fast transform, counted as it recurses: two halves and one pass over all."""
    return 0 if width == 1 else 2 * butterfly(width // 2) + width


@pytest.mark.parametrize("width", [2, 64, 4096])
def test_hadamard_counts_the_butterfly(width):
    assert hadamard_additions(width) == butterfly(width)


def test_hadamard_with_a_dense_factor():
    # 14336 = 28 * 512: every element takes 28 additions of the dense factor and 9 of the fast one.
    assert hadamard_additions(14336, 28) == pytest.approx(14336 * (28 + 9))
    assert hadamard_s(2, 4096, 1e30, 1e9) == pytest.approx(2 * 4096 * 4 / 1e9)
    assert gather_s(2, 4096, 1.0, 1e9) == pytest.approx(2 * 4096 * 3 / 1e9)


def test_hierarchy_is_an_expectation():
    # Half of the requests cost 1 s, a fourth 2 s, a fourth 10 s.
    levels = (CacheLevel(0.5, 1.0), CacheLevel(0.5, 0.5), CacheLevel(1.0, 0.1))
    assert hierarchy_s(8, 1.0, levels) == pytest.approx(8 * (0.5 + 0.5 + 2.5))
    with pytest.raises(ValueError, match="last level"):
        hierarchy_s(8, 1.0, levels[:2])


def test_hierarchy_matches_random_requests():
    generator = np.random.default_rng(0)
    levels = (CacheLevel(0.7, 10.0, 0.1), CacheLevel(0.2, 2.0, 0.3), CacheLevel(1.0, 1.0, 1.0))
    times = []
    for _ in range(20000):
        for level in levels:
            if generator.random() < level.hit_frac:
                times.append(level.latency_s + 4.0 / level.bandwidth_bytes_per_s)
                break
    assert hierarchy_s(1, 4.0, levels) == pytest.approx(np.mean(times), rel=0.03)


@given(compute=st.floats(0, 10), transfer=st.floats(0, 10), share=st.floats(0, 1))
def test_overlap_lies_between_sum_and_maximum(compute, transfer, share):
    value = overlapped_s(compute, transfer, share)
    assert max(compute, transfer) - 1e-12 <= value <= compute + transfer + 1e-12


def test_streaming_layers():
    # Bound by the link: it never waits with two buffers, and the last layer computes after its fetch.
    assert streamed_layers_s([1.0] * 5, [3.0] * 5) == pytest.approx(5 * 3 + 1)
    # Bound by arithmetic: only the first fetch is seen.
    assert streamed_layers_s([3.0] * 5, [1.0] * 5) == pytest.approx(1 + 5 * 3)
    # One buffer overlaps nothing.
    assert streamed_layers_s([3.0] * 5, [1.0] * 5, n_buffers=1) == pytest.approx(5 * 4)
    assert streamed_layers_s([], []) == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=12))
def test_streaming_is_between_its_bounds(layers):
    compute, transfer = (list(part) for part in zip(*layers, strict=True))
    value = streamed_layers_s(compute, transfer)
    assert max(sum(compute), sum(transfer)) - 1e-9 <= value <= sum(compute) + sum(transfer) + 1e-9


def test_a_chain_is_as_fast_as_its_slowest_hop():
    assert chained_bandwidth_bytes_per_s(7e9, 63e9, 32e9) == 7e9
