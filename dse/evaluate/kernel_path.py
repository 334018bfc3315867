"""Which kernel a device runs a precision with, or why it has none."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.pricing import main_bandwidth_bytes_per_s
from cost_models.tables import lookups_per_s
from cost_models.work import KernelClass
from dse.errors import UnsupportedOnDevice
from dse.formats.precision import NumberFormat, Precision
from dse.formats.support import ComputeNeed, compute_need, storage_kind
from hardware_specs.spec import HardwareSpec, OperandPair

QUANTIZING_PROFILES = ("gemm_fp8", "gemm_fp4")


@dataclass(frozen=True)
class LinearPath:
    """How a device multiplies: the compute kind, the kernel profile, and what is done on the fly.

    ``kernel`` is "matmul_lookup" where weights are expanded through a table and "matmul_bit_plane" for
    one-bit weights. ``scales_sums`` says that the array adds up bare low-precision products, so that scales
    of groups are applied to partial sums.
    """

    compute: str
    profile: str
    expands_weights: bool = False
    quantizes_activations: bool = False
    kernel: KernelClass = "matmul"
    scales_sums: bool = False

    @property
    def quantizes_before(self) -> bool:
        """Whether activations are quantized by a kernel of its own, which the product's constants lack.

        Those of fp8 and 4-bit floats were fitted to kernels that quantize (``hardware_specs.families``).
        """
        return self.quantizes_activations and self.profile not in QUANTIZING_PROFILES


def usable(spec: HardwareSpec, kind: str, *, native: bool = False) -> bool:
    """Return whether a device computes a kind at a known rate (natively, if asked)."""
    entry = next((path for path in spec.compute if path.kind == kind), None)
    if entry is None or entry.support == "unsupported" or (native and entry.support != "native"):
        return False
    try:
        spec.rate_flop_per_s(kind)
    except UnsupportedOnDevice:
        return False
    return True


def float_kind(spec: HardwareSpec, wanted: str = "bf16") -> str:
    """Return the compute kind for unquantized products: ``wanted``, or what stands in for it.

    Devices older than bfloat16 (V100, T4, P100) run fp16 instead, as their serving runtimes do; devices with
    no native 16-bit kind run one they emulate, and last fp32.

    Raises:
        UnsupportedOnDevice: nothing of the kind has a published rate.
    """
    order = ("fp32", "bf16", "fp16") if wanted == "fp32" else (wanted, "bf16", "fp16")
    for kind in order:
        if usable(spec, kind, native=True):
            return kind
    for kind in (*order, "fp32"):
        if usable(spec, kind):
            return kind
    raise UnsupportedOnDevice(
        spec.name,
        wanted,
        known=[entry.kind for entry in spec.compute],
        reason="no 16-bit or fp32 rate is published, so attention and unquantized layers cannot be timed",
    )


def linear_path(spec: HardwareSpec, precision: Precision) -> LinearPath:
    """Return the kernel for linears of a precision.

    - unquantized: the 16-bit (or fp32) kind;
    - weight only: integer widths that the device's kernels expand, float kinds that it stores or computes;
    - low-precision products: the device computes the kind natively; int4 products may run as int8;
    - a pair of operand kinds that the spec itself speaks of: what it says.

    Raises:
        UnsupportedOnDevice: there is none; ``reason`` says why.
    """
    need = compute_need(precision)
    stated = _stated_pair(spec, precision)
    if stated is not None and stated.support == "unsupported":
        raise _unsupported(spec, stated.weights, f"no {precision.weights.name} product: {stated.reason}")
    if stated is not None and stated.compute_as is not None:
        return LinearPath(stated.compute_as, need.profile, True, need.quantizes_activations)
    if need.weight_only_bits is not None:
        _check_weight_only(spec, need)
        kind = float_kind(spec, need.kind)
        return LinearPath(kind, need.profile, True, need.quantizes_activations, _expanding_kernel(precision))
    if need.profile == "gemm":
        return LinearPath(float_kind(spec, need.kind), "gemm", False, need.quantizes_activations)
    if usable(spec, need.kind, native=True):
        sums = need.profile in ("gemm_int8", "gemm_fp8") and not need.kind.startswith("mx")
        return LinearPath(
            need.kind, need.profile, need.unpacks_weights, need.quantizes_activations, scales_sums=sums
        )
    if need.kind == "int4" and usable(spec, "int8", native=True):
        return LinearPath("int8", need.profile, True, need.quantizes_activations, scales_sums=True)
    raise _unsupported(spec, need.kind, f"no native {need.kind} product{_why(spec, need.kind)}")


def check_kv(spec: HardwareSpec, fmt: NumberFormat) -> None:
    """Check that the device's attention kernels can read a KV cache of this format.

    Raises:
        UnsupportedOnDevice: integers of a width that its kernels do not expand, or a float kind that it
            neither computes nor stores.
    """
    if fmt.is_float:
        return
    kind = storage_kind(fmt)
    if fmt.kind == "int":
        if fmt.bits not in spec.weight_only_bits and not usable(spec, kind, native=True):
            raise _unsupported(spec, kind, f"no kernel reads an {kind} KV cache{_weight_only_why(spec)}")
    elif not _stored(spec, kind):
        raise _unsupported(spec, kind, f"no kernel reads a {kind} KV cache{_why(spec, kind)}")


def supports(spec: HardwareSpec, precision: Precision) -> str | None:
    """Return why a device cannot run a precision, or None if it can."""
    if spec.incomplete_reason is not None:
        return spec.incomplete_reason
    try:
        main_bandwidth_bytes_per_s(spec)
        linear_path(spec, precision)
        float_kind(spec)
        check_kv(spec, precision.kv)
    except UnsupportedOnDevice as error:
        return error.reason
    return None


def _expanding_kernel(precision: Precision) -> KernelClass:
    """Return the kernel of weights that are expanded: by arithmetic, through a table, or bit by bit."""
    if not storage_kind(precision.weights).startswith("lut"):
        return "matmul"
    return "matmul_bit_plane" if precision.weights.kind == "binary" else "matmul_lookup"


def _stated_pair(spec: HardwareSpec, precision: Precision) -> OperandPair | None:
    """Return what the spec says of this very pair of operand kinds; fp16 and bf16 activations are alike."""
    weights, activations = storage_kind(precision.weights), storage_kind(precision.activations)
    alike = {"bf16", "fp16"} if activations in {"bf16", "fp16"} else {activations}
    return next((p for p in spec.pairs if p.weights == weights and p.activations in alike), None)


def _check_weight_only(spec: HardwareSpec, need: ComputeNeed) -> None:
    """Check that some kernel expands weights of this kind."""
    kind = str(need.weight_only_kind)
    if kind == "lut1" and lookups_per_s(spec) is not None:
        return  # partial sums are looked up, whatever its other kernels expand
    if kind.startswith(("int", "lut")):  # a table is one lookup more in the same kernels
        if need.weight_only_bits not in spec.weight_only_bits:
            raise _unsupported(spec, kind, f"no kernel expands {kind} weights{_weight_only_why(spec)}")
    elif not _stored(spec, kind):
        raise _unsupported(spec, kind, f"no kernel expands {kind} weights{_why(spec, kind)}")


def _stored(spec: HardwareSpec, kind: str) -> bool:
    """Return whether a device computes a kind or at least stores it."""
    return any(entry.kind == kind and entry.support != "unsupported" for entry in spec.compute)


def _why(spec: HardwareSpec, kind: str) -> str:
    """Return ': ' and what the spec says of a kind."""
    entry = next((path for path in spec.compute if path.kind == kind), None)
    if entry is None:
        return ": the spec lists no such kind"
    if entry.reason:
        return f": {entry.reason}"
    if entry.support == "emulated":
        return f": it is stored only and computed as {entry.compute_as}"
    return "" if entry.support == "unsupported" else ": its rate is not published"


def _weight_only_why(spec: HardwareSpec) -> str:
    """Return ': ' and why integer widths are absent, if the spec says."""
    return f": {spec.weight_only_reason}" if spec.weight_only_reason else ""


def _unsupported(spec: HardwareSpec, kind: str, reason: str) -> UnsupportedOnDevice:
    known = [entry.kind for entry in spec.compute if entry.support != "unsupported"]
    return UnsupportedOnDevice(spec.name, kind, known=known, reason=reason)
