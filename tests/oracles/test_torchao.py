"""Fake quantization against torchao (EXPORTS: its MX tensors are bit-equal to microxcaling's)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.formats.grammar import parse_format
from dse.quantize import dequantize, fake_quantize, quantize_codes

pytest.importorskip("torchao", reason="torchao is not installed (pip install -e '.[test]')")
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import quant_primitives as primitives

# Its RCEIL is the smallest power of two that nothing exceeds, which is "ceil" here; its CEIL rounds the
# exponent of the maximum up, whatever the largest element: "up".
MODES = {
    "floor": ScaleCalculationMode.FLOOR,
    "ceil": ScaleCalculationMode.RCEIL,
    "even": ScaleCalculationMode.EVEN,
    "up": ScaleCalculationMode.CEIL,
}
MX_ELEMENTS = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4": torch.float4_e2m1fn_x2,
}


def _matrix(columns: int = 256) -> Tensor:
    x = torch.randn((48, columns), generator=torch.Generator().manual_seed(0))
    return x * torch.logspace(-3, 3, 48)[:, None]


@pytest.mark.parametrize("rule", MODES)
@pytest.mark.parametrize("name", MX_ELEMENTS)
def test_mx_is_bit_equal_under_each_rule(name: str, rule: str) -> None:
    x = _matrix()
    expected = MXTensor.to_mx(x, MX_ELEMENTS[name], 32, MODES[rule]).dequantize(torch.float32)
    assert torch.equal(fake_quantize(x, parse_format(f"{name}_{rule}")), expected)


def test_nvfp4() -> None:
    """Both compute absmax / 6 / scale in another order, so that a scale may land on another E4M3 code."""
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(2))
    scale = per_tensor_amax_to_scale(x.abs().max())
    expected = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)
    differs = ~torch.isclose(fake_quantize(x, parse_format("nvfp4")), expected, rtol=1e-6)
    assert float(differs.float().mean()) < 1e-3


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
@pytest.mark.parametrize(("scope", "block"), [("", (48, 256)), ("_row", (1, 256)), ("_g64", (1, 64))])
def test_fp8_is_bit_equal(element: str, scope: str, block: tuple[int, int]) -> None:
    x = _matrix()
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[element]
    scale = primitives._choose_scale_float8(x, list(block), dtype)
    codes = primitives._quantize_affine_float8(x, scale, dtype)
    expected = primitives._dequantize_affine_float8(codes, scale, torch.float32)
    assert torch.equal(fake_quantize(x, parse_format(f"fp8_{element}{scope}")), expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", ["asym", "gptq", "full"])
@pytest.mark.parametrize("size", [64, 256])
def test_integers(bits: int, grid: str, size: int) -> None:
    """Scales agree to float16; with our stored scales the values are theirs."""
    x, scope = _matrix(), "row" if size == 256 else f"g{size}"
    is_asym = grid == "asym"
    low, high = (0, (1 << bits) - 1) if is_asym else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    mapping = {
        "asym": primitives.MappingType.ASYMMETRIC,
        "gptq": primitives.MappingType.SYMMETRIC,
        "full": primitives.MappingType.SYMMETRIC_NO_CLIPPING_ERR,
    }[grid]
    dtype = torch.uint8 if is_asym else torch.int8
    scale, zero = primitives.choose_qparams_affine(
        x, mapping, (1, size), dtype, low, high, scale_dtype=torch.float32
    )
    ours = quantize_codes(x, parse_format(f"int{bits}_{scope}_{grid}"))
    if grid != "full":  # its third mapping keeps the side with the wider range inside, ours both sides
        assert torch.allclose(ours.scale, scale.view_as(ours.scale), rtol=2**-11, atol=2**-25)
    if is_asym:
        assert ours.zero is not None
        apart = (ours.zero - zero.view_as(ours.zero)).abs()
        assert float(apart.max()) <= 1  # a float16 scale moves -lo / S over a tie, seldom
        assert float(apart.mean()) < 0.05
    zeros = torch.zeros_like(ours.scale) if ours.zero is None else ours.zero
    args = ((1, size), ours.scale, zeros.to(torch.int32), dtype, low, high)
    expected = primitives.dequantize_affine(primitives.quantize_affine(x, *args), *args)
    apart = (dequantize(ours) - expected).abs() / ours.scale.repeat_interleave(size, dim=1)
    assert float(apart.max()) < 1.001  # it multiplies by the reciprocal of the scale: ties may differ
    assert float((apart > 0.5).float().mean()) < 5e-3
    assert torch.equal(dequantize(ours), fake_quantize(x, ours.fmt))
