"""From a tensor to the values that a format can hold, and to its codes. Pure functions.

Every scope of a scale is a cut of the *last* axis, so one function serves all tensors:

=================  ==========================  ============================================
tensor             shape                       scopes
=================  ==========================  ============================================
weight             (out, in)                   tensor, row (per output), groups along in
activation         (..., channels)             tensor, token (per vector), groups along channels
KV cache           (batch, heads, tokens, d)   tensor, head (per token and head), groups along d
=================  ==========================  ============================================

The last group of a vector that the group size does not divide is shorter and has its own scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.extremes import CHUNK
from dse.quantize.quantizer import QUANTIZERS, Scales

_FLOAT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as codes and scales.

    Attributes:
        fmt: its format; ``shape``: of the tensor, whose last axis has C elements and the others R in all.
        codes: (R, C) int16, signed integers or bit patterns of ``fmt.bits`` bits.
        scale: (R, n) float32, n scales along the last axis; (1, 1) with one scale for the tensor. Rounded to
            the stored width; the tensor's own scale (nvfp4) is multiplied in.
        zero: like ``scale``, the codes of 0.0 (asymmetric integers), else None.
        tensor_scale: () float32 (nvfp4), else None.
    """

    fmt: NumberFormat
    shape: tuple[int, ...]
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    tensor_scale: Tensor | None = None


def fake_quantize(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Return ``x`` rounded to what ``fmt`` can hold, with the scales that fit it.

    Args:
        x: (..., C), any float dtype and strides; not changed.
        fmt: the format; scales are along the last axis.

    Returns:
        A new contiguous tensor of the shape and dtype of ``x``. Arithmetic is float32; a bfloat16 or float16
        input gets the result rounded to its own dtype, as a kernel does that dequantizes to it.

    Notes:
        NaN or infinity makes every element that shares its scale NaN. "float" formats are a plain cast (in
        which float16 overflows to infinity).
    """
    if fmt.kind == "float":
        return x.to(_FLOAT_DTYPES[fmt.element]).to(x.dtype, copy=True).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    quantizer = QUANTIZERS.get(fmt.kind)
    source, target = _matrix(x), _matrix(out)
    tensor_scale = quantizer.tensor_scale(source, fmt)
    whole = quantizer.fit(source.view(1, -1), fmt, tensor_scale) if fmt.granularity == "tensor" else None
    length = 1 if whole else _group_length(source, fmt)
    for (read, part_length), (write, _) in zip(_chunks(source, length), _chunks(target, length), strict=True):
        # The allocator hands out the same, still cached, memory for every chunk.
        work = torch.empty(read.shape, dtype=torch.float32, device=x.device).copy_(read)
        groups = work.view(-1, part_length)
        quantizer.round_(groups, whole or quantizer.fit(groups, fmt, tensor_scale), fmt)
        write.copy_(work)
    return out


def quantize_codes(x: Tensor, fmt: NumberFormat) -> QuantizedTensor:
    """Return ``x`` (..., C) as codes and scales; ``dequantize`` equals ``fake_quantize`` in float32.

    Raises:
        ConfigError: NaN or infinity in ``x`` (no code stands for it), or a "float" format (no codes).
    """
    if fmt.kind == "float":
        raise ConfigError(f"'{fmt.name}' stores elements as they are, so it has no codes", value=fmt.name)
    if not bool(torch.isfinite(x).all()):
        raise ConfigError(f"NaN or infinity cannot be stored as {fmt.name}", value=fmt.name)
    quantizer = QUANTIZERS.get(fmt.kind)
    matrix = _matrix(x).float()
    rows, columns = matrix.shape
    tensor_scale = quantizer.tensor_scale(matrix, fmt)
    if fmt.granularity == "tensor":
        whole = quantizer.fit(matrix.view(1, -1), fmt, tensor_scale)
        codes = quantizer.encode(matrix, whole, fmt)
        return QuantizedTensor(fmt, tuple(x.shape), codes, whole.scale, whole.zero, tensor_scale)
    length = _group_length(matrix, fmt)
    codes, scales, zeros = [], [], []
    for part in (matrix[:, : columns - columns % length], matrix[:, columns - columns % length :]):
        if part.numel() == 0:
            continue
        groups = part.reshape(-1, min(length, part.shape[1]))
        fitted = quantizer.fit(groups, fmt, tensor_scale)
        codes.append(quantizer.encode(groups, fitted, fmt).view(part.shape))
        scales.append(fitted.scale.view(rows, -1))
        if fitted.zero is not None:
            zeros.append(fitted.zero.view(rows, -1))
    return QuantizedTensor(
        fmt,
        tuple(x.shape),
        torch.cat(codes, dim=1),
        torch.cat(scales, dim=1),
        torch.cat(zeros, dim=1) if zeros else None,
        tensor_scale,
    )


def dequantize(quantized: QuantizedTensor) -> Tensor:
    """Return the float32 values of a quantized tensor, in its shape."""
    fmt = quantized.fmt
    columns = quantized.codes.shape[1]

    def per_element(values: Tensor) -> Tensor:
        repeats = fmt.group_size or columns
        return values if values.numel() == 1 else values.repeat_interleave(repeats, dim=1)[:, :columns]

    zero = None if quantized.zero is None else per_element(quantized.zero)
    scales = Scales(per_element(quantized.scale), zero)
    return QUANTIZERS.get(fmt.kind).decode(quantized.codes, scales, fmt).view(quantized.shape)


def _matrix(x: Tensor) -> Tensor:
    """Return ``x`` as a contiguous (R, C) matrix; a scalar is (1, 1)."""
    return x.reshape(-1, x.shape[-1] if x.dim() else 1).contiguous()


def _group_length(matrix: Tensor, fmt: NumberFormat) -> int:
    """Return how many neighbours along the last axis share a scale."""
    return min(fmt.group_size or matrix.shape[1], matrix.shape[1])


def _chunks(matrix: Tensor, length: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (view of a part of ``matrix``, group length there): whole groups, about ``CHUNK`` elements."""
    columns = matrix.shape[1]
    ragged = columns % length
    if not ragged:
        step = max(1, CHUNK // length) * length
        for chunk in matrix.view(-1).split(step):
            yield chunk, length
        return
    step = max(1, CHUNK // columns)
    for rows in matrix.split(step):
        yield rows[:, : columns - ragged], length
        yield rows[:, columns - ragged :], ragged
