"""Energy, money, memory and pricing: four-number cases and what happens where a number is unknown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models.energy import energy_gaps, flop_energy_j, link_energy_j
from cost_models.memory import MemoryUse, kv_cache_bytes
from cost_models.money import usd_per_mtok
from cost_models.pricing import KERNEL_MODELS, bound_by, join_provenance, price
from cost_models.work import Work
from dse.errors import UnsupportedOnDevice
from hardware_specs.spec import Link
from tests.factories import PROFILE_OF, make_spec

COLUMN = np.ones((2, 1))


def test_four_numbers():
    # 1e9 bytes * 8 bit * 10 pJ = 0.08 J; 1e12 flop * 1 pJ = 1 J; far below the power limit.
    spec = make_spec(tdp_w=None)
    cost = price(Work("matmul", "gemm", "bf16", 1e12, 0, 0.6e9, 0.4e9), spec)
    assert cost.energy_j == pytest.approx(1.08)


def test_power_saturates_at_the_limit():
    # 2e14 flop/s * 0.8 * 5 pJ = far above (300 - 50) W, so the dynamic power is 250 W.
    spec = make_spec(j_per_flop=5e-12)
    cost = price(Work("matmul", "gemm", "bf16", 1e13), spec)
    assert cost.energy_j == pytest.approx(250.0 * cost.time_s)


def test_unknown_parts_are_named_and_count_nothing():
    spec = make_spec(static_w=None, j_per_bit=None, j_per_flop=None)
    assert energy_gaps(spec, "bf16") == ("static", "memory", "compute")
    assert price(Work("matmul", "gemm", "bf16", 1e12, 0, 1e9), spec).energy_j == 0
    assert energy_gaps(make_spec(), "bf16") == ()


def test_emulated_kind_costs_what_it_runs_as():
    spec = make_spec(native={"fp16": 1e12}, emulated={"fp8": "fp16"}, j_per_flop=3e-12)
    assert flop_energy_j(spec, "fp8") == 3e-12
    assert flop_energy_j(spec, "bf16") == 3e-12
    assert flop_energy_j(spec, "fp32") is None


def test_a_narrow_kind_without_a_figure_is_charged_as_sixteen_bits():
    spec = make_spec(native={"bf16": 1e12}, j_per_flop=3e-12)
    assert flop_energy_j(spec, "int8") == 3e-12


def test_link_energy():
    assert link_energy_j(1e9, Link("x", "scale_up", 1e9, 0, 5e-12)) == pytest.approx(0.04)
    assert link_energy_j(1e9, Link("x", "scale_up", 1e9, 0)) == 0


def test_money():
    # 3.6 $/h is 0.1 cent per second; 1000 tokens in it: 1 $ per million.
    assert usd_per_mtok(3.6, 1000) == pytest.approx(1.0)


def test_memory():
    use = MemoryUse(weights=3, kv=kv_cache_bytes(2, 10, 0.5), activations=1, reserve=4)
    assert use.total == 18
    assert use.missing_bytes(20) == 0
    assert use.missing_bytes(15) == 3
    assert use.to_json()["total"] == 18


def test_missing_rate_is_an_error_not_a_guess():
    with pytest.raises(UnsupportedOnDevice, match="toy"):
        price(Work("matmul", "gemm", "fp4", 1e9), make_spec())
    blind = make_spec()
    blind = replace(blind, memory=(replace(blind.memory[0], bandwidth_bytes_per_s=None),))
    with pytest.raises(UnsupportedOnDevice, match="bandwidth"):
        price(Work("matmul", "gemm", "bf16", 1e9), blind)


def test_elementwise_uses_the_vector_rate_where_known():
    # 10 Gop at 80 % of 10 Tflop/s fp32 = 1.25 ms.
    work = Work("elementwise", "elementwise", "bf16", 0, 1e10)
    assert price(work, make_spec(floor_s=0)).time_s == pytest.approx(1.25e-3)
    assert price(work, make_spec(native={"bf16": 1e14}, floor_s=0)).time_s == 0


def test_every_kernel_class_prices_arrays():
    for kernel in KERNEL_MODELS:
        work = Work(kernel, PROFILE_OF.get(kernel, kernel), "bf16", COLUMN * 1e9, COLUMN * 1e6, np.ones(3))
        cost = price(work, make_spec())
        assert np.shape(cost.time_s) == (2, 3)
        assert np.shape(cost.energy_j) == (2, 3)


def test_labels():
    assert bound_by(10, 9, 1) == "compute"
    assert bound_by(10, 1, 9) == "memory"
    assert bound_by(10, 1, 2) == "launch"
    assert join_provenance("analytic", "analytic") == "analytic"
    assert join_provenance("analytic", "calibrated") == "mixed"
