"""Which pairs of operand kinds a device multiplies, with which kernel, at which rate, or why it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dse.errors import UnsupportedOnDevice
from dse.evaluate.kernel_path import linear_path
from dse.formats.grammar import parse_precision
from dse.formats.support import storage_kind
from hardware_specs.spec import HardwareSpec

PAIRS = (
    ("bf16", "bf16"),
    ("int8_row", "bf16"),
    ("int4_g128", "bf16"),
    ("int3_g128", "bf16"),
    ("int8_row", "int8_token"),
    ("int4_g128", "int8_token"),
    ("int4_row", "int4_token"),
    ("fp8_e4m3", "fp8_e4m3"),
    ("int4_g128", "fp8_e4m3"),
    ("mxint8", "mxint8"),
    ("mxfp8_e4m3", "mxfp8_e4m3"),
    ("mxfp6_e2m3", "mxfp6_e2m3"),
    ("mxfp4", "mxfp4"),
    ("nvfp4", "nvfp4"),
)
"""The pairs (weights, activations) that people serve, by the names of their formats."""

_SIXTEEN_BIT = {"bf16", "fp16"}  # devices older than bf16 run fp16 instead


@dataclass(frozen=True)
class PairRow:
    """One pair of operand formats on one device.

    Attributes:
        support: "native" (the array multiplies both as they are), "emulated" (one is widened first) or
            "unsupported".
        compute: the kind that the product runs as, None where there is no product.
        rate_flop_per_s: dense rate of that kind.
        kernel: kernel profile of the product.
        reason: why there is no product.
    """

    weights: str
    activations: str
    support: Literal["native", "emulated", "unsupported"]
    compute: str | None = None
    rate_flop_per_s: float | None = None
    kernel: str = ""
    reason: str = ""


def operand_pairs(spec: HardwareSpec) -> tuple[PairRow, ...]:
    """Return what a device does with each of ``PAIRS``."""
    return tuple(_row(spec, weights, activations) for weights, activations in PAIRS)


def _row(spec: HardwareSpec, weights: str, activations: str) -> PairRow:
    if spec.incomplete_reason is not None:
        return PairRow(weights, activations, "unsupported", reason="the spec is incomplete")
    precision = parse_precision({"weights": weights, "activations": activations, "kv": "bf16"})
    try:
        path = linear_path(spec, precision)
        rate = spec.rate_flop_per_s(path.compute)
    except UnsupportedOnDevice as error:
        return PairRow(weights, activations, "unsupported", reason=error.reason)
    operands = {storage_kind(precision.weights), storage_kind(precision.activations)}
    as_they_are = operands == {path.compute} or operands | {path.compute} <= _SIXTEEN_BIT
    native = as_they_are and spec.path(path.compute).support == "native"
    return PairRow(weights, activations, "native" if native else "emulated", path.compute, rate, path.profile)
