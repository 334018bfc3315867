"""Further kernels, offload and caches against closed forms, loops and a simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.kernels import bit_plane_bytes, gather_bytes, hadamard_additions
from cost_models.offload import (
    CacheLevel,
    chained_bandwidth_bytes_per_s,
    hierarchy_s,
    overlapped_s,
    streamed_layers_s,
)
from cost_models.pricing import price
from cost_models.tables import lookups_per_s, sum_table_steps
from cost_models.work import Work
from tests.factories import make_spec

SPEC = make_spec(floor_s=0.0, exponent=20.0, weight_only_bits=(2, 3, 4))  # 100 cores at 1.5 GHz
LOOKUPS_PER_S = 32 * 100 * 1.5e9


def product(kernel, m, n, k, bits):
    """A weight-only product; bytes as they are stored."""
    moved = n * k * bits / 8
    return Work(
        kernel,
        "gemm_weight_only",
        "bf16",
        2.0 * m * n * k,
        read_bytes=moved + 2 * m * k,
        write_bytes=2.0 * m * n,
        rows=m,
        weight_bytes=moved,
        shape=(float(n), float(k)),
    )


def test_tables_bound_a_product_of_few_rows():
    """Oracle: one look-up for each weight, at 32 a core and cycle; bytes take less (1 bit at 0.8 TB/s)."""
    work = product("matmul_lookup", 1, 4096, 4096, 1)
    plain = price(product("matmul", 1, 4096, 4096, 1), SPEC).time_s
    looked_up_s = 4096 * 4096 / LOOKUPS_PER_S
    assert price(work, SPEC).time_s == pytest.approx(looked_up_s)
    assert plain < looked_up_s


def test_tables_are_expanded_once_for_many_rows():
    """Oracle: 2048 rows are 16 tiles; expanding once costs one look-up a weight and their 16-bit traffic."""
    n, k, m = 1024.0, 1024.0, 2048
    work = product("matmul_lookup", m, n, k, 2)
    dense_s = 1.05 * 2 * m * n * k / (100e12 * 0.8)  # a kernel that expands is bound by that
    fused_s = max(16 * n * k / LOOKUPS_PER_S, dense_s)
    once_s = (work.weight_bytes + 2 * n * k) / 1e12 + dense_s / 1.05 + n * k / LOOKUPS_PER_S
    assert price(work, SPEC).time_s == pytest.approx(min(fused_s, once_s), rel=1e-3)
    assert price(product("matmul_lookup", 128, n, k, 2), SPEC).time_s <= price(work, SPEC).time_s


def test_devices_without_known_look_ups_keep_the_weight_only_kernel():
    npu = make_spec(device_class="npu")
    assert lookups_per_s(npu) is None
    assert lookups_per_s(make_spec(n_cores=None)) is None
    for kernel in ("matmul_lookup", "matmul_bit_plane"):
        work = product(kernel, 4, 512, 512, 3)
        assert price(work, npu).time_s == price(product("matmul", 4, 512, 512, 3), npu).time_s


def test_partial_sums_count_their_steps():
    """Oracle: the loop over rows and groups of 8 inputs: 2^8 sums made, one look-up for every output."""
    rows, outputs, inputs = 3, 5, 20
    steps = sum(2**8 + outputs for _ in range(rows) for _ in range(0, inputs, 8))
    assert sum_table_steps(rows, outputs, inputs) == steps
    # One row: 512 groups x (256 + 4096) look-ups take less than the 2 MB of signs; expansion would take more.
    work = product("matmul_bit_plane", 1, 4096, 4096, 1)
    moved_s = (work.read_bytes + work.write_bytes) / (1e12 * 0.8)
    assert price(work, SPEC).time_s == pytest.approx(moved_s, rel=1e-2)


def test_sparse_products():
    # 1e6 non-zeros: 4 MB at 0.8 x 0.4 of 1 TB/s = 12.5 us; many rows: 2e6 x 1e4 operations at 10 T/s x 0.8.
    few = Work("sparse", "elementwise", "bf16", vector_flop=2e6, read_bytes=4e6)
    assert price(few, SPEC).time_s == pytest.approx(12.5e-6)
    many = replace(few, vector_flop=2e10)
    assert price(many, SPEC).time_s == pytest.approx(2e10 / 8e12)


def test_scaled_sums_run_on_the_vector_units():
    """Oracle: 2 operations for each output and group at the fp32 rate, where nothing else takes long."""
    work = replace(product("matmul", 64, 2048, 4096, 8), compute="int8", beside_flop=1e9)
    assert price(work, SPEC).time_s == pytest.approx(1e9 / 10e12, rel=1e-3)
    no_more = price(replace(work, beside_flop=0.0), SPEC).time_s
    assert no_more == price(replace(work, beside_flop=None), SPEC).time_s


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
    assert gather_bytes(2, 4096, 1.0) == 2 * 4096 * 3


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
