"""Storage sizes against hand-computed numbers of METHODS (the conformance test packs real bytes)."""

from __future__ import annotations

import pytest

from dse.formats.grammar import parse_format
from dse.formats.storage import (
    StoredMatrix,
    activation_bits_per_element,
    bits_per_element,
    effective_bits,
    kv_bits_per_token,
    model_effective_bits,
    stored_bits,
    stored_bytes,
)


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("int4_g128", 1536, 4.125),  # "INT4-g128 sym + fp16 scale 4.125"
        ("int4_g64", 576, 4 + 16 / 64),  # group sym b + 16/g
        ("int4_g64_asym", 576, 4 + (16 + 4) / 64),  # b + (16 + b) / g
        ("int8_row", 576, 8 + 16 / 576),  # row sym b + 16/n
        ("mxfp8_e4m3", 576, 8.25),
        ("mxfp6_e2m3", 576, 6.25),
        ("mxfp4_ceil", 576, 4.25),
        ("mxint8", 576, 8.25),
        ("bf16", 576, 16.0),
        ("int4_g16_asym_s3", 576, 4.625),  # SpQR: w + (3 + 3)/16 + 2 (16 + 16)/(16 16)
        ("int3_g16_asym_s3", 576, 3.625),
    ],
)
def test_bits_per_element_of_the_method_sheet(name: str, columns: int, expected: float) -> None:
    assert bits_per_element(parse_format(name), 48, columns) == pytest.approx(expected, rel=1e-12)


def test_tensor_scales_count_once() -> None:
    assert stored_bits(parse_format("int4"), 3, 5) == 15 * 4 + 16
    assert stored_bits(parse_format("int4_asym"), 3, 5) == 15 * 4 + 16 + 4
    assert stored_bits(parse_format("fp8_e4m3"), 3, 5) == 15 * 8 + 32
    assert stored_bits(parse_format("nvfp4"), 64, 576) == 64 * 576 * 4 + 64 * 36 * 8 + 32


def test_a_ragged_last_group_has_its_own_scale() -> None:
    assert stored_bits(parse_format("int4_g128_asym"), 2, 576) == 2 * (576 * 4 + 5 * 20)
    assert stored_bits(parse_format("mxfp4"), 1, 33) == 33 * 4 + 2 * 8
    assert stored_bytes(parse_format("int3_g64"), 1, 3) == 4  # 9 + 16 bits


def test_activations_and_kv() -> None:
    assert activation_bits_per_element(parse_format("int8_token"), 576) == 8 + 16 / 576
    assert activation_bits_per_element(parse_format("int8"), 576) == 8
    assert activation_bits_per_element(parse_format("nvfp4"), 576) == 4.5
    # SmolLM2-135M: 3 KV heads of 64, two vectors of each per token
    assert kv_bits_per_token(parse_format("bf16"), 3, 64) == 2 * 3 * 64 * 16
    assert kv_bits_per_token(parse_format("int4_head"), 3, 64) == 2 * 3 * (64 * 4 + 16)
    assert kv_bits_per_token(parse_format("int4_g32_asym"), 3, 64) == 2 * 3 * (64 * 4 + 2 * 20)
    assert kv_bits_per_token(parse_format("fp8_e4m3"), 3, 64) == 2 * 3 * 64 * 8


def test_effective_bits_of_the_demo_model() -> None:
    """METHODS section 0: 106.17 M linear parameters beside a 28.31 M fp16 embedding."""
    int4, bf16 = parse_format("int4_g64"), parse_format("bf16")
    block = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    linears = [StoredMatrix(int4, *shape) for shape in block for _ in range(30)]
    embedding = StoredMatrix(bf16, 49152, 576)
    assert sum(entry.n_elements for entry in linears) == 106_168_320
    bits = model_effective_bits(linears, [embedding])
    assert bits.linear == 4.25
    expected = (4.25 * 106_168_320 + 16 * 28_311_552) / (106_168_320 + 28_311_552)
    assert bits.whole_model == pytest.approx(expected, rel=1e-12)
    assert embedding.bits > sum(entry.n_elements for entry in linears) * 4


def test_nothing_has_no_size() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stored_bits(parse_format("int4"), 0, 5)
    with pytest.raises(ValueError, match="undefined"):
        effective_bits([])
