"""Names of number formats and precisions."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from dse.errors import ConfigError
from dse.formats.grammar import FLOAT_FORMATS, KNOWN_FORMATS, format_name, parse_format, parse_precision
from dse.formats.precision import Kind, NumberFormat


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", NumberFormat("float", "bf16", 16)),
        ("fp32", NumberFormat("float", "fp32", 32)),
        ("int4", NumberFormat("int", "int", 4, "tensor", None, "restricted", 16, 0)),
        ("int8_row", NumberFormat("int", "int", 8, "row", None, "restricted", 16, 0)),
        ("int3_g64_asym", NumberFormat("int", "int", 3, "group", 64, "asym", 16, 3)),
        ("int4_g32_gptq", NumberFormat("int", "int", 4, "group", 32, "gptq", 16, 0)),
        ("int4_head_full", NumberFormat("int", "int", 4, "head", None, "full", 16, 0)),
        ("fp8_e4m3_token", NumberFormat("minifloat", "e4m3", 8, "token", None, scale_bits=32)),
        ("fp8_e5m2_g128", NumberFormat("minifloat", "e5m2", 8, "group", 128, scale_bits=32)),
        (
            "mxfp6_e3m2",
            NumberFormat("mx", "e3m2", 6, "block", 32, scale_bits=8, exponent_rule="floor"),
        ),
        (
            "mxint8_even",
            NumberFormat("mx", "int", 8, "block", 32, scale_bits=8, exponent_rule="even"),
        ),
        ("nvfp4", NumberFormat("nvfp4", "e2m1", 4, "block", 16, scale_bits=8)),
        ("fp6_e3m2_row", NumberFormat("minifloat", "e3m2", 6, "row", None, scale_bits=32)),
        ("int8_column", NumberFormat("int", "int", 8, "column", None, "restricted", 16, 0)),
        (
            "fp8_e4m3_b128x64",
            NumberFormat("minifloat", "e4m3", 8, "block", 64, scale_bits=32, block_rows=128),
        ),
        ("mxint6_e4_b16", NumberFormat("mxint", "int", 6, "block", 16, scale_bits=4)),
        ("nf4_b64_dq", NumberFormat("codebook", "nf4", 4, "group", 64, scale_bits=8, scale_codec="double")),
        ("bitmod3_g64", NumberFormat("codebook", "bitmod3", 3, "group", 64, scale_bits=16, zero_bits=2)),
        ("kmeans3_row", NumberFormat("kmeans", "table", 3, "row", scale_bits=16)),
        (
            "any4of6",
            NumberFormat("nested", "table", 6, "tensor", scale_bits=16, read_bits=4, seed_bits=3),
        ),
        ("binary_g64", NumberFormat("binary", "sign", 1, "group", 64, scale_bits=16, zero_bits=16)),
    ],
)
def test_names_mean_what_they_say(name: str, expected: NumberFormat) -> None:
    assert parse_format(name) == expected
    assert format_name(expected) == name == expected.name


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("int4_tensor", "int4"),
        ("int4_g64_restricted", "int4_g64"),
        ("INT8_ROW", "int8_row"),
        (" mxfp4_floor ", "mxfp4"),
        ("fp8_e4m3_tensor", "fp8_e4m3"),
        ("int4_tensor_asym", "int4_asym"),
    ],
)
def test_defaults_are_left_out_of_the_canonical_name(spelling: str, canonical: str) -> None:
    assert parse_format(spelling).name == canonical


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("int4_g46x", "did you mean 'int4_g64'"),
        ("int9", "unknown number format"),
        ("int0_row", "unknown number format"),
        ("int4_g0", "unknown number format"),
        ("int4_asym_g64", "unknown number format"),
        ("int4_g٦٤", "unknown number format"),
        ("mxfp5", "did you mean 'mxfp4'"),
        ("fp8", "did you mean"),
        ("fp16_row", "unknown number format"),
        ("nvfp4_ceil", "unknown number format"),
        ("", "unknown number format"),
        ("nf4_b64_qd", "did you mean 'nf4_b64_dq'"),
        ("kmeans9_row", "unknown number format"),
        ("any5of4_row", "cannot read 5 bits of 4-bit codes"),
        ("int4_row_s8", "need groups"),
        ("int4_g64_asym_s8", "need groups"),
        ("int1_row", "asymmetric"),
        ("int4_g16_s3", "scales of 3 bits need groups and the asymmetric grid"),
        ("int4_row_asym_s3", "scales of 3 bits need groups"),
        ("int4_g16_asym_s7", "unknown number format"),
    ],
)
def test_wrong_names_are_one_clear_line(name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        parse_format(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_precision_texts() -> None:
    assert parse_precision("int4_g64").name == "int4_g64/bf16/bf16"
    assert parse_precision("int4_g64/int8_token/fp8_e4m3_head").name == "int4_g64/int8_token/fp8_e4m3_head"
    assert parse_precision({"weights": "nvfp4", "kv": "int8_head"}).name == "nvfp4/bf16/int8_head"
    precision = parse_precision("mxfp4/mxfp8_e4m3/bf16")
    assert parse_precision(precision.to_json()) == precision == parse_precision(precision.name)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("int4/int8", "weights/activations/kv"),
        ("int4/int8_token/bf16/bf16", "weights/activations/kv"),
        ({"activations": "bf16"}, "weights"),
        ({"weights": "int4", "weight": "bf16"}, "did you mean 'weights'"),
        ({"weights": "int44"}, "weights: unknown number format 'int44'"),
        ({"weights": 4}, "must be a name"),
        ({"weights": ["int4"]}, "must be a name"),
        (4, "text or a mapping"),
        ("int8_token", "one scale per token, which weights do not have .use _row or _g64"),
        ("int8/int8_row/bf16", "activations: .* _token"),
        ("int8/bf16/int8_token", "kv: .* _head"),
    ],
)
def test_wrong_precisions_are_one_clear_line(source: object, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse_precision(source)  # type: ignore[arg-type]


def test_known_formats_cover_every_kind_and_are_canonical() -> None:
    kinds = {parse_format(name).kind for name in KNOWN_FORMATS}
    assert kinds == set(get_args(Kind))
    assert len(set(KNOWN_FORMATS)) == len(KNOWN_FORMATS)
    assert set(FLOAT_FORMATS) == {name for name in KNOWN_FORMATS if parse_format(name).is_float}


def test_names_need_no_tensor_library() -> None:
    code = "import sys, dse.formats.storage, dse.formats.support; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
