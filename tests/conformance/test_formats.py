"""What every number format must do. New names in KNOWN_FORMATS and new kinds need no new test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.grammar import KNOWN_FORMATS, format_name, parse_format, parse_precision
from dse.formats.precision import NumberFormat
from dse.formats.storage import bits_per_element, stored_bits, stored_bytes
from dse.formats.support import compute_need
from dse.quantize import dequantize, fake_quantize, quantize_codes
from dse.quantize.pack import pack, unpack
from dse.quantize.quantizer import QUANTIZERS

QUANTIZED = tuple(name for name in KNOWN_FORMATS if not parse_format(name).is_float)
FLOATS = tuple(name for name in KNOWN_FORMATS if parse_format(name).is_float)
SHAPES = ((8, 192), (3, 100), (2, 3, 5, 64), (7,), (1, 1))


def _gaussian(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _shares_scale(fmt: NumberFormat, x: Tensor, row: int, column: int) -> Tensor:
    """Mask of the elements that share a scale with one element of a matrix."""
    mask = torch.zeros(x.shape, dtype=torch.bool)
    if fmt.granularity == "tensor" or fmt.kind == "nvfp4":
        return ~mask
    if fmt.granularity == "column":
        mask[:, column] = True
        return mask
    size = fmt.group_size or x.shape[1]
    start = column // size * size
    top = row // fmt.block_rows * fmt.block_rows if fmt.block_rows else row
    mask[top : top + (fmt.block_rows or 1), start : start + size] = True
    return mask


def test_every_registered_kind_has_a_known_format() -> None:
    assert {parse_format(name).kind for name in QUANTIZED} == set(QUANTIZERS)


@pytest.mark.parametrize("name", KNOWN_FORMATS)
def test_name_round_trip(name: str) -> None:
    fmt = parse_format(name)
    assert format_name(fmt) == fmt.name == name
    assert parse_format(format_name(fmt)) == fmt


@pytest.mark.parametrize("name", KNOWN_FORMATS)
def test_it_is_computable_somehow_and_never_smaller_than_its_bits(name: str) -> None:
    fmt = parse_format(name)
    assert bits_per_element(fmt, 64, 576) >= fmt.bits
    if fmt.granularity not in ("token", "head"):
        assert compute_need(parse_precision(name)).kind


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_packed_bytes_and_values_agree(name: str, shape: tuple[int, ...]) -> None:
    """METHODS 7.9: packed bytes equal the formula, and hold everything."""
    fmt, x = parse_format(name), _gaussian(shape)
    quantized = quantize_codes(x, fmt)
    assert torch.equal(dequantize(quantized), fake_quantize(x, fmt))
    data = pack(quantized)
    rows = x.numel() // shape[-1]
    assert len(data) == stored_bytes(fmt, rows, shape[-1]) == -(-stored_bits(fmt, rows, shape[-1]) // 8)
    back = unpack(data, fmt, shape)
    assert torch.equal(back.codes, quantized.codes)
    assert torch.equal(back.scale, quantized.scale)
    assert torch.equal(dequantize(back), dequantize(quantized))
    with pytest.raises(ConfigError, match="bytes"):
        unpack(data + b"\0", fmt, shape)


@pytest.mark.parametrize("name", QUANTIZED)
def test_rounding_again_with_the_same_scales_changes_nothing(name: str) -> None:
    fmt = parse_format(name)
    quantizer = QUANTIZERS.get(fmt.kind)
    x = _gaussian((16, fmt.group_size or 64))
    groups = x.reshape(1, -1) if fmt.granularity == "tensor" else x
    scales = quantizer.fit(groups, fmt, quantizer.tensor_scale(groups, fmt))
    once = groups.clone()
    quantizer.round_(once, scales, fmt)
    twice = once.clone()
    quantizer.round_(twice, scales, fmt)
    assert torch.equal(once, twice)


@pytest.mark.parametrize("name", KNOWN_FORMATS)
def test_zeros_stay_zero_and_nothing_stays_nothing(name: str) -> None:
    fmt = parse_format(name)
    assert not bool(fake_quantize(torch.zeros(3, 100), fmt).any())
    assert fake_quantize(torch.zeros(0, 64), fmt).shape == (0, 64)
    assert fake_quantize(torch.zeros(4, 0), fmt).shape == (4, 0)
    assert fake_quantize(torch.tensor(0.0), fmt).shape == ()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_not_finite_makes_its_scale_group_nan_and_no_other(name: str, bad: float) -> None:
    fmt, x = parse_format(name), _gaussian((4, 192))
    clean = fake_quantize(x, fmt)
    x[2, 70] = bad
    poisoned = _shares_scale(fmt, x, 2, 70)
    y = fake_quantize(x, fmt)
    assert torch.equal(torch.isnan(y), poisoned)
    if fmt.scale_codec == "plain":  # a second level sees more than one group
        assert torch.equal(y[~poisoned], clean[~poisoned])
    with pytest.raises(ConfigError, match="NaN or infinity"):
        quantize_codes(x, fmt)


@pytest.mark.parametrize("name", KNOWN_FORMATS)
def test_strides_do_not_matter_and_the_input_is_left_alone(name: str) -> None:
    fmt = parse_format(name)
    base = _gaussian((192, 10))
    view = base.T[::2]
    before = base.clone()
    y = fake_quantize(view, fmt)
    assert torch.equal(y, fake_quantize(view.contiguous(), fmt))
    assert torch.equal(base, before)
    assert y.is_contiguous()
    assert y.data_ptr() != base.data_ptr()
    heads = _gaussian((2, 5, 3, 64)).transpose(1, 2)
    assert torch.equal(fake_quantize(heads, fmt), fake_quantize(heads.contiguous(), fmt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QUANTIZED)
def test_half_precision_inputs_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    fmt, x = parse_format(name), _gaussian((8, 192)).to(dtype)
    y = fake_quantize(x, fmt)
    assert y.dtype == dtype
    assert torch.equal(y, fake_quantize(x.float(), fmt).to(dtype))


@pytest.mark.parametrize("name", QUANTIZED)
def test_cutting_into_chunks_is_invisible(name: str) -> None:
    """Tensors above the internal chunk size, against the unchunked path through codes."""
    fmt = parse_format(name)
    for shape in ((180, 192), (330, 100)):
        x = _gaussian(shape)
        assert torch.equal(fake_quantize(x, fmt), dequantize(quantize_codes(x, fmt)))


@pytest.mark.parametrize("name", FLOATS)
def test_plain_floats_are_casts(name: str) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
    x = _gaussian((8, 64)) * 1e5
    x[0, 0] = torch.nan
    fmt = parse_format(name)
    assert torch.equal(fake_quantize(x, fmt).nan_to_num(7.0), x.to(dtype).float().nan_to_num(7.0))
    with pytest.raises(ConfigError, match="no codes"):
        quantize_codes(x, fmt)
