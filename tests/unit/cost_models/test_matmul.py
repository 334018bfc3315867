"""Tiles, waves, contraction latency and the kernels for few rows, against enumeration and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.matmul import EXPANDING_SLOWDOWN, off_chip_bytes
from cost_models.pricing import price
from cost_models.tiles import SHAPES, SPLITS, padded_elements
from cost_models.work import Work
from hardware_specs.kernels import Depth, Returning, SmallBatch, Tiling
from tests.factories import make_profile, make_spec

TILING = Tiling(0.4, 1.1, 0.2)
sizes = st.integers(1, 5000)


def product(m, n, k, profile="gemm", quantize=0.0) -> Work:
    weights, activations = 2.0 * n * k, 2.0 * m * k
    return Work(
        "matmul",
        profile,
        "bf16",
        2.0 * m * n * k,
        read_bytes=weights + activations,
        write_bytes=2.0 * m * n,
        rows=m,
        weight_bytes=weights,
        quantize_bytes=quantize,
        shape=(n, k),
    )


def enumerated(m: int, n: int, cores: int, tiling: Tiling) -> float:
    """Try every tile shape and cut with plain Python numbers."""
    costs = []
    for (rows, columns), split in itertools.product(SHAPES, SPLITS):
        tiles = math.ceil(m / rows) * math.ceil(n / columns) * split
        waves = math.ceil(tiles / cores) * cores
        paid = tiles ** (1 - tiling.wave_frac) * waves**tiling.wave_frac
        loss = tiling.small_loss ** math.log2(128 * 128 / (rows * columns))
        costs.append(rows * columns / split * paid * loss * (1 + tiling.split_loss * (split > 1)))
    return min(costs)


@given(m=sizes, n=sizes, cores=st.integers(1, 300))
def test_padding_equals_enumeration(m, n, cores):
    assert padded_elements(m, n, cores, TILING) == pytest.approx(enumerated(m, n, cores, TILING))


def test_whole_waves_of_large_tiles_are_not_padded():
    # 64 x 64 tiles of 128 x 128 on 64 cores: 64 full waves.
    assert padded_elements(8192, 8192, 64, replace(TILING, wave_frac=1.0)) == 8192 * 8192


@given(m=sizes, n=sizes, more=sizes, cores=st.integers(1, 300))
def test_padding_is_monotone(m, n, more, cores):
    base = padded_elements(m, n, cores, TILING)
    assert padded_elements(m + more, n, cores, TILING) >= base * (1 - 1e-12)
    assert padded_elements(m, n + more, cores, TILING) >= base * (1 - 1e-12)


def test_depth_four_numbers():
    # 1 Gflop / (0.5 * 100 Tflop/s) = 20 us, no bytes; depth 1024 * 32: 3 us * 32^0.2 = 6 us; added.
    profile = replace(make_profile(flop_eff=0.5, floor_s=1e-6), depth=Depth(3e-6, 1.0))
    work = Work("matmul", "gemm", "bf16", 1e9, rows=1.0, shape=(1.0, 32768.0))
    assert price(work, make_spec(profiles=(profile,))).time_s == pytest.approx(1e-6 + 20e-6 + 6e-6)


def test_no_work_costs_the_floor():
    profile = replace(
        make_profile(floor_s=1e-6), depth=Depth(3e-6, 1.0), tiling=TILING, quantize_eff_frac=0.5
    )
    work = product(0.0, 4096.0, 0.0)
    assert price(work, make_spec(profiles=(profile,))).time_s == pytest.approx(1e-6)


def test_activations_have_an_efficiency_of_their_own():
    # 1 GB of weights at 80 % of 1 TB/s and 1 GB of activations at 40 %: 1.25 ms + 2.5 ms.
    profile = replace(make_profile(byte_eff=0.8), activation_eff_frac=0.4)
    work = Work("matmul", "gemm", "bf16", read_bytes=1.5e9, write_bytes=0.5e9, weight_bytes=1e9)
    assert price(work, make_spec(profiles=(profile,))).time_s == pytest.approx(3.75e-3)


def test_quantizing_pays_for_its_traffic():
    profile = replace(make_profile(), quantize_eff_frac=0.5)
    spec = make_spec(profiles=(profile,))
    slow, fast = price(product(64, 64, 64, quantize=1e9), spec), price(product(64, 64, 64), spec)
    assert slow.time_s - fast.time_s == pytest.approx(2e-3)


def test_few_rows_take_the_other_kernel():
    few = SmallBatch(flop_eff_frac=0.01, byte_eff_frac=1.0, floor_s=1e-6)
    profile = replace(make_profile(floor_s=30e-6, exponent=6.0), small_batch=few)
    spec, plain = make_spec(profiles=(profile,)), make_spec(profiles=(replace(profile, small_batch=None),))
    one = price(product(1, 4096, 4096), spec).time_s
    # 33.6 MB at 1 TB/s; its arithmetic at 1 % of the peak takes as long: 33.6 us each, joined with p = 6.
    assert one == pytest.approx(1e-6 + 33.57e-6 * 2 ** (1 / 6), rel=2e-3)
    assert price(product(512, 4096, 4096), spec).time_s == price(product(512, 4096, 4096), plain).time_s


def test_falling_back_to_dense_weights():
    low = replace(make_profile("gemm_weight_only", flop_eff=0.1), dense_fallback=True)
    spec = make_spec(profiles=(low, make_profile("gemm")))
    work = replace(product(8192, 4096, 4096, "gemm_weight_only"), weight_bytes=0.5 * 4096**2)
    dense = price(product(8192, 4096, 4096), spec).time_s
    # Read half a byte per weight, write two; the dense product then reads them like any other.
    assert price(work, spec).time_s == pytest.approx(dense + 2.5 * 4096**2 / 1e12, rel=1e-3)


def test_expanding_weights_is_no_faster_than_dense():
    low = make_profile("gemm_weight_only", flop_eff=1.0)
    spec = make_spec(profiles=(low, make_profile("gemm", flop_eff=0.5)))
    times = [price(product(8192, 4096, 4096, name), spec).time_s for name in ("gemm_weight_only", "gemm")]
    assert times[0] >= EXPANDING_SLOWDOWN * 2 * 8192 * 4096**2 / 50e12
    calibrated = make_spec(
        profiles=(replace(low, provenance="calibrated"), make_profile("gemm", flop_eff=0.5))
    )
    assert price(product(8192, 4096, 4096, "gemm_weight_only"), calibrated).time_s < times[0]


@pytest.mark.parametrize("name", ["gemm", "gemm_fp8", "gemm_weight_only", "gemm_int8"])
def test_broadcasts(name):
    rows = np.array([1.0, 16, 512])[:, None]
    outputs = np.array([256.0, 4096])
    spec = make_spec(profiles=(replace(make_profile(name), tiling=TILING, depth=Depth(1e-6, 2.0)),))
    assert np.shape(price(product(rows, outputs, 1024.0, name), spec).time_s) == (3, 2)


RETURNING = Returning(half_bytes=1e7, speedup=4.0)


def test_weights_that_come_back_are_partly_on_the_chip():
    # Closed form: at half_bytes half of the traffic is four times as fast.
    assert off_chip_bytes(1e7, RETURNING) == pytest.approx(1e7 * (0.5 + 0.5 / 4))
    assert off_chip_bytes(1.0, RETURNING) == pytest.approx(0.25)
    assert off_chip_bytes(1e11, RETURNING) == pytest.approx(1e11, rel=1e-4)


@given(size=st.floats(1, 1e10), more=st.floats(1, 3), speedup=st.floats(1, 20))
def test_larger_weights_never_take_less_traffic(size, more, speedup):
    returning = Returning(1e7, speedup)
    assert off_chip_bytes(size * more, returning) >= off_chip_bytes(size, returning) * (1 - 1e-12)


def test_a_model_pays_for_its_weights_in_full():
    spec = make_spec(profiles=(replace(make_profile(), returning=RETURNING),))
    model, benchmark = product(8, 1024, 1024), replace(product(8, 1024, 1024), weights_return=True)
    plain = make_spec(profiles=(make_profile(),))
    assert price(model, spec).time_s == price(model, plain).time_s
    assert price(benchmark, spec).time_s < price(benchmark, plain).time_s
