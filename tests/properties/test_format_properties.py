"""Properties of names, sizes and values over random formats and tensors."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.formats.grammar import format_name, parse_format, parse_precision
from dse.formats.precision import NumberFormat, Precision
from dse.formats.storage import StoredMatrix, bits_per_element, effective_bits, stored_bits, stored_bytes
from dse.quantize import dequantize, fake_quantize, quantize_codes
from dse.quantize.pack import pack, unpack
from tests.strategies import formats, matrices, precisions, quantized_formats


@given(formats())
def test_names_round_trip(fmt: NumberFormat) -> None:
    assert parse_format(format_name(fmt)) == fmt
    assert format_name(parse_format(format_name(fmt))) == format_name(fmt)


@given(precisions())
def test_precisions_round_trip(precision: Precision) -> None:
    assert parse_precision(precision.name) == precision
    assert parse_precision(precision.to_json()) == precision


@given(matrices(), quantized_formats())
@settings(max_examples=200, deadline=None)
def test_bytes_hold_the_values(x: torch.Tensor, fmt: NumberFormat) -> None:
    quantized = quantize_codes(x, fmt)
    data = pack(quantized)
    assert len(data) == stored_bytes(fmt, *x.shape)
    values = dequantize(unpack(data, fmt, tuple(x.shape)))
    assert torch.equal(values, fake_quantize(x, fmt))


@given(matrices(), quantized_formats())
@settings(max_examples=150, deadline=None)
def test_mirrored_inputs_give_mirrored_values(x: torch.Tensor, fmt: NumberFormat) -> None:
    """Round half to even is odd, and so is every grid with as many codes on both sides."""
    if fmt.grid in ("asym", "gptq", "full"):
        return
    assert torch.equal(fake_quantize(-x, fmt), -fake_quantize(x, fmt))


@given(matrices(), quantized_formats(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rows_are_independent_of_their_order(x: torch.Tensor, fmt: NumberFormat, random: object) -> None:
    order = list(range(x.shape[0]))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(fake_quantize(x[order], fmt), fake_quantize(x, fmt)[order])


@given(quantized_formats(), st.integers(1, 50), st.integers(1, 300))
def test_fewer_bits_are_never_more_bytes(fmt: NumberFormat, rows: int, columns: int) -> None:
    wider = replace(fmt, bits=fmt.bits + 1)
    assert stored_bits(fmt, rows, columns) < stored_bits(wider, rows, columns)
    if fmt.granularity == "group":
        coarser = replace(fmt, group_size=2 * (fmt.group_size or 1))
        assert stored_bits(coarser, rows, columns) <= stored_bits(fmt, rows, columns)


@given(st.lists(st.tuples(formats(), st.integers(1, 50), st.integers(1, 300)), min_size=1, max_size=6))
def test_effective_bits_are_a_weighted_mean(parts: list[tuple[NumberFormat, int, int]]) -> None:
    entries = [StoredMatrix(*part) for part in parts]
    average = effective_bits(entries)
    assert average == effective_bits(reversed(entries))
    each = [bits_per_element(*part) for part in parts]
    assert min(each) * (1 - 1e-12) <= average <= max(each) * (1 + 1e-12)
