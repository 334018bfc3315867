"""Constants of edge devices against published token rates."""

import pytest

from hardware_specs.loader import device_names, load_device
from hardware_specs.sanity import native_rates, rate_16_bit


@pytest.mark.parametrize("name", device_names())
def test_native_low_bit_products_are_no_slower_than_16_bits_where_they_bind(name):
    """The rate of int8 kernels in large products is at least that of 16 bits, unless the file says so.

    Oracle: rate x fitted efficiency of either kind; B300 has hardly any int8 units.
    """
    spec = load_device(name)
    rates = native_rates(spec)
    wide = rate_16_bit(spec)
    profile = spec.kernel("gemm_int8")
    if wide is None or "int8" not in rates or profile.provenance == "calibrated":
        return
    reached = rates["int8"] * profile.flop_eff_frac / (wide * spec.kernel("gemm").flop_eff_frac)
    assert reached >= 0.999 or "fewer_bits_never_slower" in spec.exceptions


def test_edge_decode_rates():
    """Published tokens/s of 8B models with 4-bit weights, from the bandwidth that kernels reach."""
    x_elite = load_device("qualcomm_hexagon_x_elite")
    reached = x_elite.main_memory.bandwidth_bytes_per_s * x_elite.kernel("gemm_weight_only").byte_eff_frac
    assert reached / 36e9 == pytest.approx(1.0, abs=0.03)
    # 128 tokens of Llama-3.1-8B (6.98e9 weights in the blocks, one position of the head) in 208 ms
    flop = 2 * (6.98e9 * 128 + 0.525e9)
    assert flop / x_elite.rate_flop_per_s("fp16") == pytest.approx(0.208, rel=0.02)
    rk3588 = load_device("rockchip_rk3588_npu")
    assert rk3588.main_memory.bandwidth_bytes_per_s * rk3588.kernel(
        "gemm_int8"
    ).byte_eff_frac == pytest.approx(29.4e9, rel=0.01)
    ultra = load_device("apple_m3_ultra")
    assert 0.40 <= ultra.kernel("gemm_weight_only").byte_eff_frac <= 0.45  # two dies
    orin = load_device("nvidia_jetson_agx_orin_64gb")
    assert orin.kernel("gemm_weight_only").byte_eff_frac <= 0.63


@pytest.mark.parametrize(
    ("memory_mb", "tokens_per_s"),
    [(1092.87, 12.18), (1782.05, 7.86), (2784.78, 5.24), (3767.28, 3.74), (5967.63, 2.48), (3023.39, 4.63)],
)
def test_rk3576_decodes_as_published(memory_mb, tokens_per_s):
    """RKLLM benchmark: TinyLlama, InternLM2, Gemma2, Phi3, ChatGLM3 in w8a8, and ChatGLM3 in w4a16."""
    spec = load_device("rockchip_rk3576_npu")
    kernel = spec.kernel("gemm_int8")
    token_s = 300 * kernel.floor_s + memory_mb * 1e6 / (
        spec.main_memory.bandwidth_bytes_per_s * kernel.byte_eff_frac
    )
    assert 1 / token_s == pytest.approx(tokens_per_s, rel=0.07)
