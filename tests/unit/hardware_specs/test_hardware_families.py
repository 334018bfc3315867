"""Family defaults against hand computation, fitted constants against their published table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_specs.families import KERNELS, fill_kernels, flop_energy_j, node_factor
from hardware_specs.kernels import KERNEL_NAMES, KernelProfile
from hardware_specs.loader import load_device


def test_node_factor_at_the_nodes_and_between():
    assert node_factor(7) == 1.0
    assert node_factor(5) == pytest.approx(0.70)
    assert node_factor(4) == pytest.approx(0.63)
    assert node_factor(math.sqrt(7 * 14)) == pytest.approx(math.sqrt(1.7))  # middle on a log-log line
    assert (node_factor(2), node_factor(65)) == (0.46, 2.8)


@given(st.floats(1, 100), st.floats(1, 100))
def test_smaller_nodes_never_cost_more(first, second):
    low, high = sorted((first, second))
    assert node_factor(low) <= node_factor(high) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("kind", "process_nm", "device_class", "picojoule"),
    [
        ("bf16", 4, "datacenter_gpu", 3.3 * 0.59 * 0.63 / 2),
        ("int8", 8, "npu", 1.8 * 0.10 * 1.7 ** (math.log(8 / 7) / math.log(2)) / 2),
        ("fp8", 5, "asic", 1.8 * 0.35 * 0.70 / 2),
    ],
)
def test_flop_energy_by_hand(kind, process_nm, device_class, picojoule):
    assert flop_energy_j(kind, process_nm, device_class) == pytest.approx(picojoule * 1e-12)


def test_no_basis_gives_no_energy():
    assert flop_energy_j("bf16", None, "datacenter_gpu") is None
    assert flop_energy_j("bf16", 7, "cpu") is None
    assert flop_energy_j("int2", 7, "npu") is None


@pytest.mark.parametrize("device_class", KERNELS)
def test_every_family_has_every_kernel_once(device_class):
    assert sorted(entry.name for entry in KERNELS[device_class]) == sorted(KERNEL_NAMES)
    assert all(entry.provenance == "analytic" and entry.source for entry in KERNELS[device_class])


def test_own_profiles_replace_the_family():
    own = KernelProfile("gemm", 0.5, 0.5, 1e-6, 2.0, "calibrated", "mine")
    filled = {entry.name: entry for entry in fill_kernels("npu", (own,))}
    assert filled["gemm"] is own
    assert filled["gemm_int8"].provenance == "analytic"
    assert set(filled) == set(KERNEL_NAMES)


@pytest.mark.parametrize(
    ("device", "kernel"),
    [
        ("nvidia_a100_sxm_80gb", "gemm_weight_only"),
        ("nvidia_h100_sxm", "gemm_fp8"),
        ("nvidia_l40s", "attention_decode"),
        ("nvidia_rtx_pro_6000_server", "gemm_fp4"),
    ],
)
def test_calibration_devices_have_constants_of_their_own(device, kernel):
    profile = load_device(device).kernel(kernel)
    assert profile.provenance == "calibrated"
    assert "aiconfigurator-core 0.12.0" in profile.source
    assert profile.interval is not None
    assert profile.interval.low < 1 < profile.interval.high


def test_devices_never_fitted_have_those_of_their_class():
    for device in ("nvidia_h200_sxm", "nvidia_b200_sxm", "nvidia_l4"):
        assert load_device(device).kernels == KERNELS["datacenter_gpu"]


@pytest.mark.parametrize("device_class", KERNELS)
def test_shared_constants_are_less_certain(device_class):
    for entry in KERNELS[device_class]:
        assert entry.interval is not None
        assert entry.interval.high / entry.interval.low > 1.3
