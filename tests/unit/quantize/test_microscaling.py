"""MX and NVFP4 blocks against a literal transcription of METHODS section 8 over ml_dtypes elements."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.formats.elements import ELEMENTS
from dse.formats.grammar import parse_format
from dse.quantize import dequantize, fake_quantize, quantize_codes
from tests.strategies import matrices

DTYPES = {
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
}
NAMES = (*DTYPES, "mxint8")
RULES = ("floor", "ceil", "even", "up")


def _limits(name: str) -> tuple[int, int, float]:
    """(emax, mantissa bits, largest value) of the elements."""
    if name == "mxint8":
        return 0, 6, 127 / 64
    spec = ELEMENTS[parse_format(name).element]
    return spec.max_exponent, spec.mantissa_bits, spec.max_value


def _block_exponent(absmax: float, name: str, rule: str) -> int:
    """The block exponent in exact arithmetic."""
    emax, mantissa_bits, top = _limits(name)
    if absmax == 0:
        return -127
    exponent = math.frexp(absmax)[1] - 1
    if rule == "floor":
        exponent -= emax
    elif rule == "up":
        exponent = math.ceil(math.log2(Fraction(absmax) / Fraction(2) ** exponent)) + exponent - emax
    elif rule == "ceil":
        exponent -= emax + 2
        while Fraction(absmax) > Fraction(top) * Fraction(2) ** exponent:
            exponent += 1
    else:
        spacing = Fraction(2) ** (exponent - mantissa_bits)
        steps = math.floor(Fraction(absmax) / spacing + Fraction(1, 2))
        exponent = (exponent + 1 if steps * spacing == Fraction(2) ** (exponent + 1) else exponent) - emax
    return min(max(exponent, -127), 127)


def _mx_oracle(row: np.ndarray, name: str, rule: str) -> np.ndarray:
    """One row: cut into blocks of 32, scale, round through ml_dtypes (or whole numbers), scale back."""
    top = _limits(name)[2]
    out = []
    for start in range(0, len(row), 32):
        block = row[start : start + 32].astype(np.float64)
        scale = 2.0 ** _block_exponent(float(np.abs(block).max()), name, rule)
        scaled = np.clip(block / scale, -top, top)
        if name == "mxint8":
            rounded = np.clip(np.round(scaled * 64), -127, 127) / 64
        else:
            rounded = scaled.astype(np.float32).astype(DTYPES[name]).astype(np.float64)
        out.append(rounded * scale)
    return np.concatenate(out)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NAMES)
def test_blocks_match_the_specification(name: str, rule: str) -> None:
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randn((24, 100), generator=generator) * torch.logspace(-6, 6, 24)[:, None]
    x[0] = 0
    x[1, 40] = 1e4
    expected = np.stack([_mx_oracle(row, name, rule) for row in x.numpy()])
    actual = fake_quantize(x, parse_format(f"{name}_{rule}"))
    assert np.array_equal(actual.numpy().astype(np.float64), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NAMES)
def test_block_maxima_around_every_threshold(name: str, rule: str) -> None:
    """Exponents at each float32 neighbour of the values where the rules switch."""
    emax, mantissa_bits, top = _limits(name)
    edges = np.array(
        [top, 2.0**emax, 2.0 ** (emax + 1), (2 - 2.0 ** (-mantissa_bits - 1)) * 2.0**emax], np.float32
    )
    beside = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    for absmax in np.concatenate([edges, *beside]):
        quantized = quantize_codes(torch.tensor([[float(absmax)]]), parse_format(f"{name}_{rule}"))
        assert float(quantized.scale) == 2.0 ** _block_exponent(float(absmax), name, rule)


@given(matrices(), st.sampled_from(NAMES), st.sampled_from(RULES), st.integers(-20, 20))
@settings(max_examples=120, deadline=None)
def test_scaling_by_a_power_of_two_shifts_only_the_exponent(
    x: torch.Tensor, name: str, rule: str, shift: int
) -> None:
    fmt = parse_format(f"{name}_{rule}")
    factor = 2.0**shift
    plain, scaled = quantize_codes(x, fmt), quantize_codes(x * factor, fmt)
    assert torch.equal(plain.codes, scaled.codes)
    nonzero = plain.scale > 2.0**-100
    assert torch.equal((plain.scale * factor)[nonzero], scaled.scale[nonzero])
    assert torch.equal(dequantize(plain) * factor, dequantize(scaled))


@pytest.mark.parametrize("name", [*(f"{n}_{r}" for n in NAMES for r in RULES), "nvfp4"])
def test_powers_of_two_are_exact(name: str) -> None:
    """METHODS 5.1: a block of one 2^k (and zeros) is represented exactly. NVFP4: with the maximum 448 * 6."""
    exponents = range(-100, 100) if name != "nvfp4" else range(-8, 11)
    for exponent in exponents:
        x = torch.zeros(2, 32)
        x[0, 5] = 2.0**exponent
        if name == "nvfp4":
            x[1, 0] = 448 * 6.0  # so that the tensor's scale is 1
            x[0, 5] = 6 * 2.0 ** min(exponent, 8)
        assert torch.equal(fake_quantize(x, parse_format(name)), x)


@given(matrices(magnitude=1e30), st.sampled_from(NAMES))
@settings(max_examples=120, deadline=None)
def test_the_ceil_rule_never_saturates(x: torch.Tensor, name: str) -> None:
    """METHODS 5.1. The largest element of a block is within half a spacing, not clipped to the maximum."""
    quantized = quantize_codes(x, parse_format(f"{name}_ceil"))
    scale = quantized.scale.repeat_interleave(32, dim=1)[:, : x.shape[1]]
    assert bool((x.abs() / scale <= _limits(name)[2]).all())


def test_the_floor_rule_clips_a_quarter_at_most() -> None:
    x = torch.tensor([[7.9999995]])
    assert float(fake_quantize(x, parse_format("mxfp4"))) == 6
    assert float(fake_quantize(x, parse_format("mxfp4_ceil"))) == 8
    assert float(fake_quantize(x, parse_format("mxfp4_even"))) == 8


def test_extreme_blocks() -> None:
    fmt = parse_format("mxfp8_e4m3")
    zeros = quantize_codes(torch.zeros(1, 32), fmt)
    assert float(zeros.scale) == 2.0**-127
    tiny = torch.full((1, 32), 2.0**-140)
    assert bool(torch.isfinite(fake_quantize(tiny, fmt)).all())
    top = torch.full((1, 32), torch.finfo(torch.float32).max)
    assert float(fake_quantize(top, fmt)[0, 0]) == 448 * 2.0**119
    x = torch.zeros(2, 64)
    x[0, 3], x[1, 40] = torch.nan, torch.inf
    y = fake_quantize(x, fmt)
    expected = torch.zeros(2, 64, dtype=torch.bool)
    expected[0, :32] = expected[1, 32:] = True
    assert torch.equal(torch.isnan(y), expected)


def _nvfp4_oracle(x: np.ndarray) -> np.ndarray:
    """METHODS section 8 with ml_dtypes casts, float32 arithmetic."""
    single = np.float32
    tensor_scale = single(np.abs(x).max()) / single(448 * 6) if np.any(x) else single(1)
    out = np.empty_like(x)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], 16):
            block = x[row, start : start + 16]
            raw = np.clip(np.abs(block).max() / single(6) / tensor_scale, single(2**-9), single(448))
            scale = raw.astype(ml_dtypes.float8_e4m3fn).astype(single) * tensor_scale
            scaled = np.clip(block / scale, single(-6), single(6))
            out[row, start : start + 16] = scaled.astype(ml_dtypes.float4_e2m1fn).astype(single) * scale
    return out


@given(matrices())
@settings(max_examples=80, deadline=None)
def test_nvfp4_matches_the_specification(x: torch.Tensor) -> None:
    assert np.array_equal(fake_quantize(x, parse_format("nvfp4")).numpy(), _nvfp4_oracle(x.numpy()))


def test_nvfp4_of_zeros() -> None:
    quantized = quantize_codes(torch.zeros(2, 32), parse_format("nvfp4"))
    assert quantized.tensor_scale is not None
    assert float(quantized.tensor_scale) == 1
    assert not bool(dequantize(quantized).any())


def test_four_bit_formats_rank_as_expected_on_gaussian_weights() -> None:
    """METHODS 5.1: NVFP4 beats MXFP4 (expected); relative errors near EXPORTS section 8's weight errors."""
    x = torch.randn((256, 576), generator=torch.Generator().manual_seed(0))
    error = {
        name: float((fake_quantize(x, parse_format(name)) - x).norm() / x.norm())
        for name in ("nvfp4", "mxfp4", "mxfp4_even", "mxfp8_e4m3", "mxfp6_e2m3")
    }
    assert error["nvfp4"] < error["mxfp4_even"] < error["mxfp4"]
    assert error["mxfp6_e2m3"] < error["nvfp4"]
    assert error["mxfp8_e4m3"] == pytest.approx(0.0293, rel=0.01)
    assert error["mxfp4"] == pytest.approx(0.115, rel=0.03)
    assert error["nvfp4"] == pytest.approx(0.0954, rel=0.03)
