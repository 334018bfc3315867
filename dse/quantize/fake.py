"""From a tensor to the values that a format can hold, and to its codes. Pure functions.

Every scope of a scale is a cut of the *last* axis, so one function serves all tensors (columns and 2-D
blocks of weights are rearranged first, ``layout.py``):

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
from dse.formats.storage import scale_shape
from dse.quantize.codebook import CodebookQuantizer
from dse.quantize.extremes import CHUNK
from dse.quantize.half import HALF_MIN
from dse.quantize.layout import needs_layout, rearranged
from dse.quantize.quantizer import QUANTIZERS, Scales
from dse.quantize.scale_codec import between_ends, decode_scales, encode_scales, of_ends

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
        second: (S,) float32 second level of scales, see ``scale_codec.py``, else None.

    A table (k-means, nested) takes the place of scales: (R, entries), or (1, entries). Scales per column are
    (1, C), of 2-D blocks (blocks down, blocks across).
    """

    fmt: NumberFormat
    shape: tuple[int, ...]
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    tensor_scale: Tensor | None = None
    second: Tensor | None = None


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
    if needs_layout(fmt):
        rows, inner, back = rearranged(_matrix(x), fmt)
        return back(fake_quantize(rows, inner)).view(x.shape)
    if fmt.scale_codec != "plain":
        return dequantize(_codes(x, fmt)).to(x.dtype)
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
    return _codes(x, fmt)


def _codes(x: Tensor, fmt: NumberFormat) -> QuantizedTensor:
    """Like ``quantize_codes``; what shares a scale with NaN has a NaN scale and meaningless codes."""
    quantizer = QUANTIZERS.get(fmt.kind)
    matrix = _matrix(x).float()
    rows, columns = matrix.shape
    if needs_layout(fmt):
        scopes, inner, back = rearranged(matrix, fmt)
        flat = _codes(scopes, inner)
        shape = scale_shape(fmt, rows, columns)
        zero = None if flat.zero is None else flat.zero.view(shape)
        return QuantizedTensor(fmt, tuple(x.shape), back(flat.codes), flat.scale.view(shape), zero)
    tensor_scale = quantizer.tensor_scale(matrix, fmt)
    if fmt.granularity == "tensor":
        whole = quantizer.fit(matrix.view(1, -1), fmt, tensor_scale)
        codes = quantizer.encode(matrix, whole, fmt)
        return QuantizedTensor(fmt, tuple(x.shape), codes, whole.scale, whole.zero, tensor_scale)
    parts = _parts(matrix, _group_length(matrix, fmt))
    fitted = [quantizer.fit(part, fmt, tensor_scale) for part in parts]
    scale = torch.cat([entry.scale.reshape(rows, -1) for entry in fitted], dim=1)
    zeros = [entry.zero.view(rows, -1) for entry in fitted if entry.zero is not None]
    zero = torch.cat(zeros, dim=1) if zeros else None
    second = None
    if fmt.scale_codec != "plain":
        scale, zero, second = _two_levels(scale, zero, fmt)
        fitted = _with_scales(parts, scale, zero, fmt)
    codes = [
        quantizer.encode(part, entry, fmt).view(rows, -1) for part, entry in zip(parts, fitted, strict=True)
    ]
    if fmt.kind == "codebook" and zero is not None:  # the choice of table may have changed with the scales
        zero = torch.cat([entry.zero.view(rows, -1) for entry in fitted if entry.zero is not None], dim=1)
    return QuantizedTensor(fmt, tuple(x.shape), torch.cat(codes, dim=1), scale, zero, tensor_scale, second)


def _parts(matrix: Tensor, length: int) -> list[Tensor]:
    """Return the whole groups and the ragged last ones as matrices with a group per row."""
    columns = matrix.shape[1]
    cut = columns - columns % length
    halves = (matrix[:, :cut], matrix[:, cut:])
    return [part.reshape(-1, min(length, part.shape[1])) for part in halves if part.numel()]


def _two_levels(
    scale: Tensor, zero: Tensor | None, fmt: NumberFormat
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return scales and zero points (R, n) as two levels store them, and the second level; NaN stays NaN."""
    bad = ~torch.isfinite(scale)
    if fmt.scale_codec == "rows16":
        assert zero is not None
        ends, stored = [], []
        for values in (scale, zero):
            codes, end = between_ends(values, fmt.scale_bits)
            ends.append(end)
            stored.append(of_ends(codes, end))
        second = torch.stack(ends).view(-1)
        return stored[0].clamp_(min=HALF_MIN).masked_fill_(bad, torch.nan), stored[1], second
    codes, second = encode_scales(scale, fmt.scale_codec)
    return decode_scales(codes, second, fmt.scale_codec).masked_fill_(bad, torch.nan), zero, second


def _with_scales(parts: list[Tensor], scale: Tensor, zero: Tensor | None, fmt: NumberFormat) -> list[Scales]:
    """Return scales of (R, n) cut like the parts; codebooks are chosen again for them."""
    rows = len(scale)
    widths = [len(part) // rows for part in parts]
    zeros = [None] * len(parts) if zero is None else list(zero.split(widths, dim=1))
    again = []
    for part, stored, beside in zip(parts, scale.split(widths, dim=1), zeros, strict=True):
        column = stored.reshape(-1, 1)
        if beside is None:
            again.append(Scales(column))
        elif fmt.kind == "codebook":
            again.append(Scales(column, CodebookQuantizer().refit_choice(part, column, fmt)))
        else:
            again.append(Scales(column, beside.reshape(-1, 1)))
    return again


def dequantize(quantized: QuantizedTensor) -> Tensor:
    """Return the float32 values of a quantized tensor, in its shape."""
    fmt = quantized.fmt
    rows, columns = quantized.codes.shape

    def per_element(values: Tensor) -> Tensor:
        if values.numel() == 1 or fmt.granularity == "column" or fmt.table_entries:
            return values
        across = values.repeat_interleave(fmt.group_size or columns, dim=1)[:, :columns]
        return across.repeat_interleave(fmt.block_rows, dim=0)[:rows] if fmt.block_rows else across

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
