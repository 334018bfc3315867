"""Which compute a precision needs."""

from __future__ import annotations

import pytest
from hypothesis import given

from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision
from dse.formats.support import ComputeNeed, compute_need
from hardware_specs.kernels import KERNEL_NAMES
from tests.strategies import precisions

FUSED, FUSED8 = "gemm_weight_only", "gemm_weight_only_int8"


@pytest.mark.parametrize(
    ("weights", "activations", "expected"),
    [
        ("bf16", "bf16", ComputeNeed("bf16", "gemm")),
        ("fp16", "fp16", ComputeNeed("fp16", "gemm")),
        ("fp32", "bf16", ComputeNeed("fp32", "gemm")),
        ("int4_g64_asym", "bf16", ComputeNeed("bf16", FUSED, 4, "int4")),
        ("int3_g64", "fp16", ComputeNeed("fp16", FUSED, 3, "int3")),
        ("int8_row", "bf16", ComputeNeed("bf16", FUSED8, 8, "int8")),
        ("fp8_e4m3", "bf16", ComputeNeed("bf16", FUSED8, 8, "fp8")),
        ("mxfp4", "bf16", ComputeNeed("bf16", FUSED, 4, "mxfp4")),
        ("int8_row", "int8_token", ComputeNeed("int8", "gemm_int8", quantizes_activations=True)),
        (
            "int4_g64",
            "int8_token",
            ComputeNeed("int8", "gemm_int8", unpacks_weights=True, quantizes_activations=True),
        ),
        ("int4_row", "int4_token", ComputeNeed("int4", "gemm_int8", quantizes_activations=True)),
        ("fp8_e4m3_row", "fp8_e4m3_token", ComputeNeed("fp8", "gemm_fp8", quantizes_activations=True)),
        ("mxfp4", "mxfp4", ComputeNeed("mxfp4", "gemm_fp4", quantizes_activations=True)),
        ("nvfp4", "nvfp4", ComputeNeed("nvfp4", "gemm_fp4", quantizes_activations=True)),
        ("mxint8", "mxint8", ComputeNeed("mxint8", "gemm_int8", quantizes_activations=True)),
        (
            "mxfp4",
            "mxfp8_e4m3",
            ComputeNeed("mxfp8", "gemm_fp8", unpacks_weights=True, quantizes_activations=True),
        ),
        (
            "int4_row",
            "fp8_e4m3_token",
            ComputeNeed("fp8", "gemm_fp8", unpacks_weights=True, quantizes_activations=True),
        ),
        ("bf16", "int8_token", ComputeNeed("bf16", "gemm", quantizes_activations=True)),
        ("int8_row", "mxfp4", ComputeNeed("bf16", FUSED8, 8, "int8", quantizes_activations=True)),
    ],
)
def test_needs(weights: str, activations: str, expected: ComputeNeed) -> None:
    precision = parse_precision({"weights": weights, "activations": activations})
    assert compute_need(precision) == expected


@given(precisions())
def test_every_precision_has_a_need_with_a_known_profile(precision: Precision) -> None:
    need = compute_need(precision)
    assert need.profile in KERNEL_NAMES
    assert (need.weight_only_bits is None) == (need.weight_only_kind is None)
    assert need.quantizes_activations == (not precision.activations.is_float)
