"""Quantized tensors as bytes: the size that the storage formulas promise, written out for real.

One little-endian bit stream, lowest bit first: all codes row by row, then all scales, then all zero points,
then the second level of the scales, then the tensor's own scale (NVFP4). Exporters write the layouts of
their targets; this one is the plain proof that codes, scales and zero points in their stored widths are the
whole information of the tensor.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.grammar import NVFP4_TENSOR_SCALE_BITS
from dse.formats.precision import NumberFormat
from dse.formats.storage import scale_shape, second_level, stored_bytes
from dse.quantize.fake import QuantizedTensor
from dse.quantize.half import HALF_MIN, half_bits, half_of_bits
from dse.quantize.minifloat import float32_bits, float32_of_bits
from dse.quantize.quantizer import QUANTIZERS
from dse.quantize.scale_codec import codes_between, codes_of_scales, decode_scales, of_ends

_HALF_BITS, _FLOAT_BITS = 16, 32
Bits = NDArray[np.uint8]


def pack(quantized: QuantizedTensor) -> bytes:
    """Return the tensor's bit stream, ``stored_bytes(fmt, rows, columns)`` bytes long."""
    fmt, tensor_scale = quantized.fmt, quantized.tensor_scale
    quantizer = QUANTIZERS.get(fmt.kind)
    zero = quantized.zero
    if fmt.scale_codec == "rows16":
        assert quantized.second is not None
        assert zero is not None
        scale_ends, zero_ends = _ends(quantized.second, quantized.scale.shape[1])
        scale_codes = codes_between(quantized.scale, scale_ends)
        zero = codes_between(zero, zero_ends)
    elif quantized.second is None:
        scale_codes = quantizer.scale_codes(quantized.scale, fmt, tensor_scale)
    else:
        scale_codes = codes_of_scales(quantized.scale, quantized.second, fmt.scale_codec)
    fields = [_to_bits(quantized.codes, fmt.bits), _to_bits(scale_codes, fmt.scale_bits)]
    if zero is not None:
        fields.append(_to_bits(zero, fmt.zero_bits))
    if quantized.second is not None:
        fields.append(_second_bits(quantized.second, fmt))
    if tensor_scale is not None:
        fields.append(_to_bits(float32_bits(tensor_scale.view(1)), NVFP4_TENSOR_SCALE_BITS))
    return np.packbits(np.concatenate(fields), bitorder="little").tobytes()


def unpack(data: bytes, fmt: NumberFormat, shape: tuple[int, ...]) -> QuantizedTensor:
    """Return the quantized tensor that ``pack`` wrote.

    Raises:
        ConfigError: the number of bytes is not that of the format and shape.
    """
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    expected = stored_bytes(fmt, rows, columns)
    if len(data) != expected:
        raise ConfigError(f"{fmt.name} of shape {shape} takes {expected} bytes, but got {len(data)}")
    quantizer = QUANTIZERS.get(fmt.kind)
    stream = _BitReader(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"))
    codes = stream.read((rows, columns), fmt.bits)
    if quantizer.signed(fmt):
        codes = torch.where(codes >= 1 << (fmt.bits - 1), codes - (1 << fmt.bits), codes)
    shape_of_scales = scale_shape(fmt, rows, columns)
    scale_codes = stream.read(shape_of_scales, fmt.scale_bits)
    zero = stream.read(shape_of_scales, fmt.zero_bits).float() if fmt.zero_bits else None
    if fmt.scale_codec != "plain":
        n_second, width = second_level(fmt, rows, columns)
        bits = stream.read((n_second,), width)
        second = half_of_bits(bits) if width == _HALF_BITS else float32_of_bits(bits)
        if fmt.scale_codec == "rows16":
            assert zero is not None
            scale_ends, zero_ends = _ends(second, scale_codes.shape[1])
            scale, zero = of_ends(scale_codes, scale_ends).clamp_(min=HALF_MIN), of_ends(zero, zero_ends)
        else:
            scale = decode_scales(scale_codes, second, fmt.scale_codec)
        return QuantizedTensor(fmt, tuple(shape), codes.to(torch.int16), scale, zero, second=second)
    tensor_scale = None
    if fmt.kind == "nvfp4":
        tensor_scale = float32_of_bits(stream.read((1,), NVFP4_TENSOR_SCALE_BITS)).view(())
    scale = quantizer.scale_values(scale_codes, fmt, tensor_scale)
    return QuantizedTensor(fmt, tuple(shape), codes.to(torch.int16), scale, zero, tensor_scale)


class _BitReader:
    """Reads fields of fixed width from a stream of bits."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits
        self._position = 0

    def read(self, shape: tuple[int, ...], width: int) -> Tensor:
        """Return the next numbers of ``width`` bits as int64 of a shape."""
        n_bits = math.prod(shape) * width
        field = self._bits[self._position : self._position + n_bits].reshape(-1, width).astype(np.int64)
        self._position += n_bits
        weights = np.int64(1) << np.arange(width, dtype=np.int64)
        return torch.as_tensor(field @ weights, device="cpu").view(shape)


def _second_bits(second: Tensor, fmt: NumberFormat) -> Bits:
    """Return the second level of scales: float16 per row, or float32."""
    if fmt.scale_codec == "double":
        return _to_bits(float32_bits(second), _FLOAT_BITS)
    return _to_bits(half_bits(second), _HALF_BITS)


def _ends(second: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the ends (2, blocks, groups) of scales, and those of zero points."""
    both = second.view(2, 2, -1, n_groups)
    return both[0], both[1]


def _to_bits(values: Tensor, width: int) -> Bits:
    """Return the lowest ``width`` bits of whole numbers, lowest first, in one array."""
    numbers = values.detach().cpu().reshape(-1, 1).to(torch.int64).numpy()
    return ((numbers >> np.arange(width, dtype=np.int64)) & 1).astype(np.uint8).reshape(-1)
