"""Fake quantization is true integer arithmetic, and the integer product is its exact form."""

from __future__ import annotations

import pytest
import torch

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.quantize import fake_quantize, quantize_codes
from dse.quantize.products import integer_linear

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(5, 192, generator=GENERATOR) * 3 + 0.5
W = torch.randn(7, 192, generator=GENERATOR)


@pytest.mark.parametrize(
    "weights", ["int8", "int8_row", "int4_row_full", "int4_g64_asym", "int3_g32", "int4_g50"]
)
@pytest.mark.parametrize("inputs", ["int8", "int8_token", "int8_token_asym", "int4_g32", "int4_g96_asym"])
def test_rounded_values_multiplied_equal_whole_numbers_multiplied(inputs: str, weights: str) -> None:
    """Oracle: the product of fake-quantized values in float64, whose rounding is far below."""
    x_fmt, w_fmt = parse_format(inputs), parse_format(weights)
    expected = fake_quantize(X, x_fmt).double() @ fake_quantize(W, w_fmt).double().t()
    found = integer_linear(X, x_fmt, quantize_codes(W, w_fmt))
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_per_row_and_token_it_is_an_int64_product_and_one_multiplication() -> None:
    """Oracle: numpy-style whole-number product, scaled once: equal to the last bit."""
    x_fmt, w_fmt = parse_format("int8_token_asym"), parse_format("int8_row")
    x, w = quantize_codes(X, x_fmt), quantize_codes(W, w_fmt)
    assert x.zero is not None
    sums = (x.codes.long() - x.zero.long()) @ w.codes.long().t()
    assert torch.equal(integer_linear(X, x_fmt, w), sums.float() * (x.scale * w.scale.t()))
    # What a kernel does with a zero point: subtract Z times the precomputed sums of the rows.
    plain = x.codes.long() @ w.codes.long().t() - x.zero.long() * w.codes.long().sum(1)
    assert torch.equal(plain, sums)


def test_what_has_no_integer_product_is_refused() -> None:
    with pytest.raises(ConfigError, match="no integer product"):
        integer_linear(X, parse_format("fp8_e4m3_token"), quantize_codes(W, parse_format("int8_row")))
