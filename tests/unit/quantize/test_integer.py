"""Integer grids against a literal transcription of METHODS section 0 in exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.formats.grammar import parse_format
from dse.quantize import dequantize, fake_quantize, quantize_codes
from dse.quantize.quantizer import QUANTIZERS
from tests.strategies import integer_names, matrices


def _oracle(row: list[float], bits: int, grid: str) -> list[float]:
    """Quantize one group with Python fractions; only the stored scale is rounded, to float16."""
    values = [Fraction(value) for value in row]
    low, high = min(*values, Fraction(0)), max(*values, Fraction(0))
    absmax = max(-low, high)
    top = 2 ** (bits - 1) - 1
    scale, zero, least, most = {
        "restricted": (absmax / max(top, 1), 0, -top, top),
        "full": (absmax / max(top, 1), 0, -top - 1, top),
        "gptq": (2 * absmax / (2**bits - 1), 2 ** (bits - 1), 0, 2**bits - 1),
        "asym": ((high - low) / (2**bits - 1), None, 0, 2**bits - 1),
    }[grid]
    # The rational scale goes through float32, as the arithmetic does, before float16.
    stored = Fraction(float(np.float16(np.float32(float(scale)))))
    stored = stored or Fraction(1, 2**24)
    if zero is None:
        zero = min(max(round(-low / stored), 0), most)
    codes = [min(max(round(value / stored) + zero, least), most) for value in values]
    return [float(stored * (code - zero)) for code in codes]


@pytest.mark.parametrize("grid", ["restricted", "full", "gptq", "asym"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_grids_match_exact_rational_arithmetic(bits: int, grid: str) -> None:
    """Values are short multiples of 1/64, so float32 and rational quotients fall on the same side."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randint(-900, 901, (40, 24), generator=generator).float() / 64
    x[0] = 0
    x[1] = x[1].abs() + 1
    x[2, 1:] = 0
    x[3] = -x[3].abs()
    fmt = parse_format(f"int{bits}_row_{grid}")
    expected = torch.tensor([_oracle(row, bits, grid) for row in x.tolist()])
    assert torch.equal(fake_quantize(x, fmt), expected)


def test_one_bit_asymmetric_keeps_the_ends() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.4, 1.0]])
    assert fake_quantize(x, parse_format("int1_row_asym")).unique().numel() <= 2


@given(matrices(), integer_names())
@settings(max_examples=150, deadline=None)
def test_error_is_at_most_half_a_step_where_nothing_is_clipped(x: torch.Tensor, name: str) -> None:
    """METHODS 1.1: |w - w^| <= S/2 for every unclipped element (a float32 rounding of slack)."""
    fmt = parse_format(name)
    quantized = quantize_codes(x, fmt)
    columns = x.shape[1]
    scale = quantized.scale
    if scale.numel() > 1:
        scale = scale.repeat_interleave(fmt.group_size or columns, dim=1)[:, :columns]
    top = 2 ** (fmt.bits - 1) - 1
    low, high = (0, 2**fmt.bits - 1) if fmt.grid == "asym" else (-top - (fmt.grid != "restricted"), top)
    inside = (quantized.codes > low) & (quantized.codes < high)
    error = (dequantize(quantized) - x).abs()
    assert bool((error <= scale * 0.5 * (1 + 1e-5) + 1e-30)[inside].all())
    # Clipping loses at most what rounding the scale to float16 and Z to a whole number displaces.
    slack = 1.0 if fmt.grid == "asym" else 0.6
    normal = (scale > 2.0**-14).expand_as(error)
    assert bool((error <= scale * slack)[normal].all())


@given(matrices(), integer_names())
@settings(max_examples=150, deadline=None)
def test_rounding_again_with_the_same_scales_changes_nothing(x: torch.Tensor, name: str) -> None:
    fmt = parse_format(name)
    if fmt.granularity == "group":
        x = x[:, : fmt.group_size]
    quantizer = QUANTIZERS.get("int")
    groups = x.reshape(1, -1) if fmt.granularity == "tensor" else x.clone()
    scales = quantizer.fit(groups, fmt, None)
    once = groups.clone()
    quantizer.round_(once, scales, fmt)
    twice = once.clone()
    quantizer.round_(twice, scales, fmt)
    assert torch.equal(once, twice)
    assert torch.equal(quantizer.decode(quantizer.encode(once, scales, fmt), scales, fmt), once)


@given(matrices(), st.integers(2, 8), st.sampled_from(("_row", "", "_g16")))
@settings(max_examples=100, deadline=None)
def test_symmetric_grids_are_idempotent_with_refitted_scales(x: torch.Tensor, bits: int, scope: str) -> None:
    """The largest element is code +-top and a float16 scale times a small integer is exact in float32."""
    fmt = parse_format(f"int{bits}{scope}")
    once = fake_quantize(x, fmt)
    if bool((quantize_codes(x, fmt).scale > 2.0**-14).all()):
        assert torch.equal(fake_quantize(once, fmt), once)


@pytest.mark.parametrize("scope", ["row", "g64"])
def test_more_bits_never_cost_accuracy_on_average(scope: str) -> None:
    """METHODS 1.1: the mean error of asymmetric min-max is monotone in the bits (not per element)."""
    for seed in range(3):
        x = torch.randn((48, 576), generator=torch.Generator().manual_seed(seed))
        errors = [
            float((fake_quantize(x, parse_format(f"int{bits}_{scope}_asym")) - x).square().mean())
            for bits in range(1, 9)
        ]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (4, 4), (3, 8)])
def test_fake_quantized_product_is_the_integer_product(weight_bits: int, activation_bits: int) -> None:
    """X^ W^T in float64 equals s_x s_w times the int64 product of codes, bit for bit."""
    generator = torch.Generator().manual_seed(7)
    x, w = torch.randn((9, 576), generator=generator), torch.randn((11, 576), generator=generator)
    x_fmt, w_fmt = parse_format(f"int{activation_bits}_token"), parse_format(f"int{weight_bits}_row")
    x_codes, w_codes = quantize_codes(x, x_fmt), quantize_codes(w, w_fmt)
    emulated = fake_quantize(x, x_fmt).double() @ fake_quantize(w, w_fmt).double().T
    integer = x_codes.codes.long() @ w_codes.codes.long().T
    assert torch.equal(emulated, integer.double() * (x_codes.scale.double() @ w_codes.scale.double().T))


def test_zero_points_of_the_integer_product_are_a_correction() -> None:
    """QUIK's identity: sum (q_x - Z_x) q_w = sum q_x q_w - Z_x sum q_w, with asymmetric activations."""
    generator = torch.Generator().manual_seed(8)
    x, w = torch.rand((9, 576), generator=generator) - 0.2, torch.randn((11, 576), generator=generator)
    x_fmt, w_fmt = parse_format("int8_token_asym"), parse_format("int4_row")
    x_codes, w_codes = quantize_codes(x, x_fmt), quantize_codes(w, w_fmt)
    assert x_codes.zero is not None
    emulated = fake_quantize(x, x_fmt).double() @ fake_quantize(w, w_fmt).double().T
    integer = x_codes.codes.long() @ w_codes.codes.long().T
    integer = integer - x_codes.zero.long() * w_codes.codes.long().sum(1)
    assert torch.equal(emulated, integer.double() * (x_codes.scale.double() @ w_codes.scale.double().T))


def test_scales_saturate_at_the_ends_of_float16() -> None:
    tiny = torch.full((1, 4), 1e-12)
    assert torch.equal(fake_quantize(tiny, parse_format("int4_row")), torch.zeros(1, 4))
    huge = torch.full((1, 4), 1e9)
    assert torch.equal(fake_quantize(huge, parse_format("int4_row")), torch.full((1, 4), 65504.0 * 7))


def test_a_kv_tensor_has_a_scale_per_token_and_head() -> None:
    x = torch.randn((2, 3, 5, 64), generator=torch.Generator().manual_seed(3))
    whole = fake_quantize(x, parse_format("int4_head_asym"))
    for batch in range(2):
        for head in range(3):
            for token in range(5):
                vector = x[batch, head, token]
                assert torch.equal(
                    whole[batch, head, token], fake_quantize(vector, parse_format("int4_asym"))
                )
    assert quantize_codes(x, parse_format("int4_head_asym")).scale.shape == (30, 1)
