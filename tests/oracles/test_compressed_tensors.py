"""Fake quantization against compressed-tensors, which is what vLLM loads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dse.formats.grammar import parse_format
from dse.quantize import dequantize, fake_quantize, quantize_codes

pytest.importorskip(
    "compressed_tensors", reason="compressed-tensors is not installed (pip install -e '.[test]')"
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as their_fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

FP8 = {"num_bits": 8, "type": "float", "symmetric": True}


def _matrix() -> Tensor:
    x = torch.randn((48, 256), generator=torch.Generator().manual_seed(0))
    return x * torch.logspace(-1, 1, 48)[:, None]


def _their_values(x: Tensor, fields: dict[str, Any]) -> Tensor:
    """Their scales from the extremes, and their rounding with them."""
    args = QuantizationArgs(**fields)
    tensor_scale = None
    if args.strategy == "tensor":
        low, high = x.amin().view(1), x.amax().view(1)
    else:
        groups = x.view(len(x), -1, args.group_size or x.shape[1])
        low, high = groups.amin(-1), groups.amax(-1)
    if args.strategy == "tensor_group":
        tensor_scale = generate_gparam(x.amin(), x.amax())
    scale, zero = calculate_qparams(low, high, args, global_scale=tensor_scale)
    return their_fake_quantize(x, scale, zero, args, global_scale=tensor_scale)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("fp8_e4m3", {**FP8, "strategy": "tensor"}),
        ("fp8_e4m3_row", {**FP8, "strategy": "channel"}),
        (
            "mxfp4_even",
            {
                "num_bits": 4,
                "type": "float",
                "symmetric": True,
                "strategy": "group",
                "group_size": 32,
                "scale_dtype": torch.uint8,
            },
        ),
    ],
)
def test_floats_are_bit_equal(name: str, fields: dict[str, Any]) -> None:
    x = _matrix()
    assert torch.equal(fake_quantize(x, parse_format(name)), _their_values(x, fields))


def test_nvfp4() -> None:
    """They divide by the reciprocal of the tensor's scale; E4M3 scales on a tie may differ."""
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(2))
    fields = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group",
        "group_size": 16,
        "scale_dtype": torch.float8_e4m3fn,
    }
    differs = ~torch.isclose(fake_quantize(x, parse_format("nvfp4")), _their_values(x, fields), rtol=1e-6)
    assert float(differs.float().mean()) < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("grid", ["gptq", "asym"])
@pytest.mark.parametrize("size", [64, 256])
def test_integers_with_scales_that_float16_holds(bits: int, grid: str, size: int) -> None:
    """Their scales are float32, ours are stored as float16: groups are made whose scale is both.

    The extremes of each group are whole multiples of 1.375 * 2^k, k = -6 ... 6, so that ranges, zero points
    and values have to agree from end to end, up to ties and the reciprocal that they multiply with.
    """
    generator = torch.Generator().manual_seed(bits + size)
    x = torch.rand((48, 256 // size, size), generator=generator)
    unit = 1.375 * 2.0 ** torch.randint(-6, 7, (48, 256 // size, 1), generator=generator)
    top = (1 << bits) - 1
    low = torch.randint(0, top, (48, 256 // size, 1), generator=generator).float()
    codes = x * top - low
    codes[..., :1], codes[..., 1:2] = -low, top - low
    if grid == "gptq":  # the range is 2 absmax
        codes = (x - 0.5) * top
        codes[..., :1] = top / 2
    x = (codes * unit).view(48, 256)
    scope = "row" if size == 256 else f"g{size}"
    fields: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": grid == "gptq"}
    fields |= {"strategy": "channel"} if size == 256 else {"strategy": "group", "group_size": size}
    ours = quantize_codes(x, parse_format(f"int{bits}_{scope}_{grid}"))
    assert torch.equal(ours.scale, unit.view_as(ours.scale))
    differs = dequantize(ours) != _their_values(x, fields)
    assert float(differs.float().mean()) < 1e-3
