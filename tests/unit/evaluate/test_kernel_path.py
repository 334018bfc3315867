"""Which kernel runs a precision, and the reasons why none does."""

from __future__ import annotations

import pytest

from dse.evaluate.kernel_path import float_kind, linear_path, supports
from dse.formats.grammar import parse_precision
from tests.factories import make_spec

OLD = make_spec(
    "old",
    native={"fp16": 65e12, "fp32": 8e12},
    emulated={"bf16": "fp16", "fp8": "fp16"},
    unsupported={"int8": "dp4a only, no matrix path"},
)


@pytest.mark.parametrize(
    ("precision", "compute", "profile"),
    [
        ("bf16", "bf16", "gemm"),
        ("fp16/fp16/fp16", "fp16", "gemm"),
        ("int4_g64", "bf16", "gemm_weight_only"),
        ("int8_row", "bf16", "gemm_weight_only_int8"),
        ("int8_row/int8_token/bf16", "int8", "gemm_int8"),
        ("int4_g64/int8_token/bf16", "int8", "gemm_int8"),
        ("int4_g64/int4_token/bf16", "int8", "gemm_int8"),
    ],
)
def test_paths_of_a_device_with_bf16_and_int8(precision, compute, profile):
    path = linear_path(make_spec(), parse_precision(precision))
    assert (path.compute, path.profile) == (compute, profile)


def test_a_device_without_bf16_runs_fp16():
    assert float_kind(OLD) == "fp16"
    assert linear_path(OLD, parse_precision("bf16")).compute == "fp16"
    assert linear_path(OLD, parse_precision("int4_g64")).compute == "fp16"


def test_emulated_sixteen_bits_are_better_than_nothing():
    spec = make_spec(native={"fp32": 1e12}, emulated={"bf16": "fp32"})
    assert float_kind(spec) == "bf16"
    assert spec.rate_flop_per_s("bf16") == 1e12
    assert float_kind(make_spec(native={"fp32": 1e12})) == "fp32"


@pytest.mark.parametrize(
    ("spec", "precision", "words"),
    [
        (OLD, "int8_row/int8_token/bf16", "dp4a only"),
        (OLD, "fp8_e4m3/fp8_e4m3/bf16", "stored only and computed as fp16"),
        (OLD, "mxfp4", "the spec lists no such kind"),
        (make_spec(weight_only_bits=(4, 8)), "int3_g64", "no kernel expands int3 weights"),
        (make_spec(weight_only_bits=(4,), native={"bf16": 1e14}), "bf16/bf16/int8_head", "int8 KV cache"),
        (make_spec(), "bf16/bf16/fp8_e4m3_head", "fp8 KV cache"),
        (make_spec(native={"int8": 1e12}), "int8_row/int8_token/bf16", "16-bit"),
    ],
)
def test_reasons(spec, precision, words):
    reason = supports(spec, parse_precision(precision))
    assert reason is not None
    assert words in reason


def test_supported_has_no_reason():
    for precision in ("bf16", "int4_g64", "int8_row/int8_token/int8_head", "int3_g64/bf16/int4_g64"):
        assert supports(make_spec(), parse_precision(precision)) is None
    assert supports(OLD, parse_precision("fp8_e4m3")) is None
