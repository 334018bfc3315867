"""Which way of computing a matrix product a precision needs. No hardware here: a device says what it has.

A product runs in a compute kind that holds both operands exactly:

- two floats: the activations' kind (fp32 if either is);
- quantized weights with float activations: weights are expanded to the activations' kind inside the kernel
  ("weight only"), which saves bytes and not multiply-adds;
- two integers: int4 if both fit in 4 bits, else int8 (narrower operands are unpacked);
- two scaled fp8: fp8; two MX: the wider of the two (block-scaled units mix widths); two NVFP4: nvfp4;
- fp8 activations with weights of at most 4 bits: fp8, which holds every int4 and E2M1 value;
- float weights with quantized activations, and any other mix: the 16-bit kind, with both expanded to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dse.formats.precision import NumberFormat, Precision


@dataclass(frozen=True)
class ComputeNeed:
    """How a linear of some precision is computed.

    Attributes:
        kind: compute kind whose rate bounds the multiply-adds: "fp32" | "fp16" | "bf16" | "fp8" | "int8" |
            "int4" | "mxfp8" | "mxfp6" | "mxfp4" | "mxint8" | "nvfp4".
        profile: kernel profile of the device spec: "gemm", "gemm_weight_only", "gemm_weight_only_int8",
            "gemm_fp8", "gemm_int8" (also for int4) or "gemm_fp4".
        weight_only_bits: width of weights that a weight-only kernel expands to ``kind``, else None.
        weight_only_kind: what they are: "int4", "int3", "fp8", "mxfp4" ..., else None. Integers need a kernel
            for their width; a float kind is a path of the device, native or emulated.
        unpacks_weights: narrower weights are widened to a low-precision ``kind`` (int4 weights, int8 units).
        quantizes_activations: the activations are quantized on the fly, element-wise work before the product.
    """

    kind: str
    profile: str
    weight_only_bits: int | None = None
    weight_only_kind: str | None = None
    unpacks_weights: bool = False
    quantizes_activations: bool = False


def compute_need(precision: Precision) -> ComputeNeed:
    """Return how a linear with these weights and activations is computed (see the module's rules)."""
    weights, activations = precision.weights, precision.activations
    if activations.is_float:
        wide = "fp32" if "fp32" in (weights.element, activations.element) else activations.element
        return ComputeNeed(wide, "gemm") if weights.is_float else _weight_only(weights, wide, quantizes=False)
    if weights.is_float:
        return ComputeNeed(weights.element, "gemm", quantizes_activations=True)
    return _both_quantized(weights, activations) or _weight_only(weights, "bf16", quantizes=True)


def _weight_only(weights: NumberFormat, kind: str, *, quantizes: bool) -> ComputeNeed:
    """Return the need of weights expanded to a float kind; 8-bit kernels are a class of their own."""
    profile = "gemm_weight_only_int8" if weights.bits == 8 else "gemm_weight_only"
    return ComputeNeed(
        kind,
        profile,
        weight_only_bits=weights.bits,
        weight_only_kind=storage_kind(weights),
        quantizes_activations=quantizes,
    )


def _both_quantized(weights: NumberFormat, activations: NumberFormat) -> ComputeNeed | None:
    """Return the low-precision product of two quantized operands, or None if no kind holds both."""
    kinds = (weights.kind, activations.kind)
    if kinds == ("int", "int"):
        width = 4 if max(weights.bits, activations.bits) <= 4 else 8
        return _low(f"int{width}", "gemm_int8", unpacks=weights.bits != width)
    if kinds == ("minifloat", "minifloat"):
        return _low("fp8", "gemm_fp8", unpacks=False)
    if kinds == ("nvfp4", "nvfp4"):
        return _low("nvfp4", "gemm_fp4", unpacks=False)
    if kinds == ("mx", "mx") and (weights.element == "int") == (activations.element == "int"):
        wider = max(weights, activations, key=lambda fmt: fmt.bits)
        profile = {"mxint8": "gemm_int8", "mxfp4": "gemm_fp4"}.get(storage_kind(wider), "gemm_fp8")
        return _low(storage_kind(wider), profile, unpacks=weights.bits != wider.bits)
    if activations.kind == "minifloat" and activations.element == "e4m3" and weights.bits <= 4:
        return _low("fp8", "gemm_fp8", unpacks=True)
    return None


def _low(kind: str, profile: str, *, unpacks: bool) -> ComputeNeed:
    """Return the need of a product in a low-precision kind."""
    return ComputeNeed(kind, profile, unpacks_weights=unpacks, quantizes_activations=True)


def storage_kind(fmt: NumberFormat) -> str:
    """Return the compute kind a format's elements would feed: "int4", "fp8", "mxfp6" ...

    "lut4" stands for elements that are numbers of levels in a table, which no multiplier takes as they are.
    """
    if fmt.kind == "float":
        return fmt.element
    if fmt.kind == "int":
        return f"int{fmt.bits}"
    if fmt.kind == "minifloat":
        return f"fp{fmt.bits}"
    if fmt.kind == "nvfp4":
        return "nvfp4"
    if fmt.kind == "mxint":
        return f"int{fmt.bits}"
    if fmt.kind != "mx":
        return f"lut{fmt.read_bits or fmt.bits}"
    return "mxint8" if fmt.element == "int" else f"mxfp{fmt.bits}"
