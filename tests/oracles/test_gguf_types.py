"""Fake quantization against gguf.quants, whose encoders are byte-equal to ggml's (EXPORTS section 4)."""

from __future__ import annotations

import gguf
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from dse.formats.grammar import parse_format
from dse.formats.storage import bits_per_element
from dse.quantize import fake_quantize, quantize_codes

TYPES = gguf.GGMLQuantizationType


def _round_trip(x: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    return torch.from_numpy(dequantize(quantize(x.numpy(), kind), kind).copy())


@pytest.mark.parametrize(
    ("kind", "name"), [(TYPES.MXFP4, "mxfp4"), (TYPES.BF16, "bf16"), (TYPES.F16, "fp16")]
)
def test_bit_equal(kind: gguf.GGMLQuantizationType, name: str) -> None:
    x = torch.randn((32, 256), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_round_trip(x, kind), fake_quantize(x, parse_format(name)))


def test_q8_0_is_int8_in_groups_of_32() -> None:
    """It divides by the float32 scale and stores float16, and halves go away from zero: one step apart."""
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(1))
    ours = quantize_codes(x, parse_format("int8_g32"))
    delta = (_round_trip(x, TYPES.Q8_0) - fake_quantize(x, ours.fmt)).abs()
    step = ours.scale.repeat_interleave(32, dim=1)
    assert bool((delta <= 1.001 * step).all())
    assert float((delta > 0.5 * step).float().mean()) < 0.02


def test_stored_sizes_are_those_of_the_types() -> None:
    """Bits per weight of ggml's own table of block sizes."""
    for kind, name in ((TYPES.Q8_0, "int8_g32"), (TYPES.Q4_0, "int4_g32_full"), (TYPES.MXFP4, "mxfp4")):
        elements, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        assert bits_per_element(parse_format(name), 8, 256) == 8 * size_bytes / elements
