"""Family defaults against hand computation, fitted constants against their published table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_specs.families import KERNELS, fill_kernels, flop_energy_j, node_factor
from hardware_specs.loader import load_device
from hardware_specs.spec import KERNEL_NAMES, KernelProfile


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


# eff_flops, eff_bw, t0 in microseconds, exponent: the published fits of aiconfigurator-core 0.12 tables.
FITS = {
    ("nvidia_a100_sxm_80gb", "gemm"): (0.81, 0.79, 5.8, 1.73),
    ("nvidia_a100_sxm_80gb", "gemm_weight_only"): (0.98, 0.78, 14.8, 0.76),
    ("nvidia_a100_sxm_80gb", "gemm_weight_only_int8"): (0.88, 0.89, 16.9, 1.11),
    ("nvidia_a100_sxm_80gb", "gemm_int8"): (0.97, 1.01, 12.2, 0.81),
    ("nvidia_h100_sxm", "gemm"): (0.78, 0.82, 3.4, 2.66),
    ("nvidia_h100_sxm", "gemm_fp8"): (0.55, 0.84, 13.4, 1.63),
    ("nvidia_h100_sxm", "gemm_weight_only_int8"): (0.52, 0.85, 26.6, 0.85),
    ("nvidia_l40s", "gemm"): (0.62, 0.97, 0.6, 1.56),
    ("nvidia_l40s", "gemm_fp8"): (0.47, 0.94, 10.9, 1.80),
}


@pytest.mark.parametrize(("device", "kernel"), FITS)
def test_fitted_constants(device, kernel):
    profile = load_device(device).kernel(kernel)
    assert profile.provenance == "calibrated"
    flop, byte, floor_us, exponent = FITS[device, kernel]
    assert (profile.flop_eff_frac, profile.byte_eff_frac, profile.exponent) == (flop, byte, exponent)
    assert profile.floor_s == pytest.approx(floor_us * 1e-6)


def test_decode_attention_of_calibrated_devices_has_its_overheads():
    profile = load_device("nvidia_h100_sxm").kernel("attention_decode")
    assert profile.context_log_s == pytest.approx(1.21e-6)
    assert profile.wave_s == pytest.approx(2.44e-6)
    assert load_device("nvidia_t4").kernel("attention_decode").context_log_s is None


def test_w4a16_on_a100_is_no_gain_at_large_m():
    """Measured: 4-bit weights at 0.5 of the bf16 time for m = 1, but 1.03 to 1.1 times it for m >= 257."""
    a100 = load_device("nvidia_a100_sxm_80gb")
    peak, bandwidth = a100.rate_flop_per_s("bf16"), a100.main_memory.bandwidth_bytes_per_s

    def time_s(kernel, m, weight_bytes):
        profile, n = a100.kernel(kernel), 8192
        flop_s = 2 * m * n * n / peak / profile.flop_eff_frac
        byte_s = (4 * m * n + n * n * weight_bytes) / bandwidth / profile.byte_eff_frac
        p = profile.exponent
        return profile.floor_s + (flop_s**p + byte_s**p) ** (1 / p)

    def ratio(m):
        return time_s("gemm_weight_only", m, 0.516) / time_s("gemm", m, 2.0)

    assert 0.4 < ratio(1) < 0.7
    assert 0.95 < ratio(2048) < 1.25
