"""Every class of kernel on every packaged device: physical roofs, monotone sizes, floors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.attention import causal_pairs
from cost_models.energy import dynamic_energy_j
from cost_models.kernels import bit_plane_bytes, gather_bytes, hadamard_additions
from cost_models.offload import CacheLevel, hierarchy_s, overlapped_s
from cost_models.pricing import KERNEL_MODELS, main_bandwidth_bytes_per_s, price
from cost_models.roofline import vector_rate_flop_per_s
from cost_models.work import Work
from dse.evaluate.beside import quantize_work
from dse.evaluate.kernel_path import float_kind, usable
from hardware_specs.loader import device_names, load_device
from tests.factories import PROFILE_OF

SIZES = {"rows": 64.0, "outputs": 4096.0, "inputs": 8192.0}
BESIDE = ("quantize", "gather", "hadamard")
CLASSES = (*KERNEL_MODELS.names(), *BESIDE)
SPECS = [spec for spec in map(load_device, device_names()) if spec.incomplete_reason is None]


def _timed(spec):
    if not any(tier.main and tier.bandwidth_bytes_per_s is not None for tier in spec.memory):
        return False
    return any(usable(spec, kind) for kind in ("bf16", "fp16", "fp32"))


TIMED = [spec for spec in SPECS if _timed(spec)]
SLACK = 1 + 1e-12


def work_of(name, kind, rows, outputs, inputs):
    """Work of one class from three sizes; attention has ``outputs`` positions and ``rows`` sequences."""
    if name == "quantize":
        return quantize_work(kind, rows, inputs, inputs + 2.0)
    if name == "gather":
        moved = gather_bytes(rows, inputs, 2.0)
        return Work("elementwise", "elementwise", kind, read_bytes=moved, write_bytes=2.0 * rows * inputs)
    if name == "hadamard":
        flop, moved = rows * hadamard_additions(inputs), 2.0 * rows * inputs
        return Work("elementwise", "elementwise", kind, 0.0, flop, moved, moved)
    if name.startswith("attention"):
        prefill = name == "attention_prefill"
        query = outputs if prefill else 1.0
        pairs = causal_pairs(query, outputs)
        moved = rows * 8 * 128 * 2 * outputs * 2.0
        out = rows * 32 * 128 * query * 2.0
        flop = 4.0 * rows * 32 * 128 * pairs
        return Work(
            *(name, name, kind, flop, rows * 32 * pairs, moved + out, out),
            rows=query,
            parallel=rows * (32.0 if prefill else 8.0),
            context=outputs,
        )
    flop, out = 2.0 * rows * outputs * inputs, 2.0 * rows * outputs
    stored = bit_plane_bytes(outputs, inputs, 1, 1) if name == "matmul_bit_plane" else 2.0 * outputs * inputs
    if name == "elementwise":
        return Work(name, name, kind, 0.0, rows * inputs, 2.0 * rows * inputs, 2.0 * rows * inputs)
    sparse = name == "sparse"
    return Work(
        *(name, PROFILE_OF.get(name, name), kind, 0.0 * flop if sparse else flop),
        *(flop / 100 if sparse else 0.0 * flop, stored, out),
        rows=rows,
        weight_bytes=stored,
        shape=(outputs, inputs),
    )


@pytest.mark.parametrize("name", CLASSES)
def test_never_below_the_physical_roofs(name):
    """0.97 of the larger roof at least, for sets that no on-chip memory of the library's GPUs holds.

    One-bit products by partial sums do not multiply, and look-ups replace no arithmetic: of bit planes only
    the bytes bound.
    """
    size = np.array([1.0, 16.0, 256.0, 4096.0])
    for spec in TIMED:
        kind = float_kind(spec)
        work = work_of(name, kind, size, 16384.0, 16384.0)
        cost = price(work, spec)
        moved_s = (work.read_bytes + work.write_bytes) / main_bandwidth_bytes_per_s(spec)
        flop_s = 0.0 if name == "matmul_bit_plane" else work.flop / spec.rate_flop_per_s(kind)
        vector = vector_rate_flop_per_s(spec)
        if vector is not None and name in ("elementwise", "sparse", *BESIDE):
            flop_s = flop_s + work.vector_flop / vector
        roof_s = np.maximum(moved_s, flop_s)
        on_chip = sum(tier.capacity_bytes for tier in spec.memory if not tier.main and tier.via is None)
        streams = np.broadcast_to(work.read_bytes + work.write_bytes > 4 * on_chip, size.shape)
        assert (cost.time_s[streams] >= 0.97 * roof_s[streams]).all(), spec.name


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("part", list(SIZES))
def test_monotone_in_every_size(name, part):
    grid = np.unique(np.round(np.geomspace(1, 40_000, 60)))
    if name == "hadamard":
        grid = 2.0 ** np.arange(16)
    for spec in TIMED:
        sizes = {**SIZES, part: grid}
        time_s = np.broadcast_to(price(work_of(name, float_kind(spec), **sizes), spec).time_s, grid.shape)
        assert (np.diff(time_s) >= -1e-12 * time_s[1:]).all(), spec.name


@pytest.mark.parametrize("name", KERNEL_MODELS.names())
def test_no_work_costs_the_floor_and_no_launch_nothing(name):
    for spec in TIMED:
        profile = PROFILE_OF.get(name, name)
        none = Work(name, profile, float_kind(spec), rows=0.0, parallel=0.0, context=0.0)
        if name == "attention_prefill":  # a launch without a query has no tiles to divide by
            none = replace(none, rows=1.0, context=1.0, flop=1e-3, vector_flop=1e-6, parallel=1.0)
        idle_s = float(price(replace(none, n_launches=0.0), spec).time_s)
        found_s = float(price(none, spec).time_s)
        tiles = spec.kernel(profile).query_tiles
        one_tile_s = 0.0 if tiles is None or spec.n_cores is None else tiles.tile_s / spec.n_cores
        assert found_s == pytest.approx(spec.kernel(profile).floor_s, rel=1e-6, abs=2 * one_tile_s + 1e-12)
        assert idle_s == pytest.approx(0.0, abs=2 * one_tile_s + 1e-12)
        assert dynamic_energy_j(none, spec, found_s) <= 1e-9


times = st.floats(0, 10)


@given(n=st.floats(0, 1000), more=st.floats(0, 1000), size=st.floats(0, 1e9), hit=st.floats(0, 1))
def test_caches_are_monotone_and_above_the_fastest_level(n, more, size, hit):
    levels = (CacheLevel(hit, 1e12), CacheLevel(0.5, 5e10, 1e-6), CacheLevel(1.0, 5e9, 1e-4))
    found = float(hierarchy_s(n, size, levels))
    assert hierarchy_s(0.0, size, levels) == 0
    assert hierarchy_s(n + more, size, levels) >= found
    assert hierarchy_s(n, size + more, levels) * SLACK >= found
    assert found * SLACK >= n * size / 1e12


@given(compute=times, transfer=times, more=times, share=st.floats(0, 1))
def test_offload_is_monotone_and_above_both_roofs(compute, transfer, more, share):
    found = overlapped_s(compute, transfer, share)
    assert overlapped_s(0.0, 0.0, share) == 0
    assert found * SLACK >= max(compute, transfer)
    assert overlapped_s(compute + more, transfer, share) * SLACK >= found
    assert overlapped_s(compute, transfer + more, share) * SLACK >= found
