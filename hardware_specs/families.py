"""What a device is assumed to do where nobody measured it: kernel and energy constants per device class.

Kernel constants follow the smooth roofline of ``spec.KernelProfile``. Those of datacentre and desktop GPUs,
and of collectives, are shared fits to the operator timings of aiconfigurator-core 0.12 (Apache-2.0) and live
in ``defaults/``; edge values come from published token rates.
Energies of arithmetic are derived from Jouppi et al., "Ten Lessons", ISCA 2021, table 2 (7 nm).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from dse.documents import read_packaged, validate
from hardware_specs.calibrated import collective_of, kernel_of
from hardware_specs.document import FamilyDocument, LinksDocument
from hardware_specs.kernels import CollectiveProfile, Interval, KernelProfile
from hardware_specs.reader import Reader
from hardware_specs.spec import ComputePath, DeviceClass

_HELD_OUT = "fit shared by six GPUs, the device scored held out (aiconfigurator-core 0.12 gemm tables)"
_FP8 = "fp8 with dynamic activation quantization, same shared fit (aiconfigurator-core 0.12)"
_FP4 = "middle of the nvfp4 fits, 0.43-0.58 of peak and 0.45-0.7 of bandwidth; exponent of fp8"
_W8A8 = "W8A8 fit of A100 SmoothQuant kernels (aiconfigurator-core 0.12, TRT-LLM 1.0.0)"
_W4A16 = "W4A16 fit of A100, TRT-LLM 1.0.0 (aiconfigurator-core 0.12); exponent below 1: dequantization adds"
_W8A16 = "W8A16 fit of A100, TRT-LLM 1.0.0 (aiconfigurator-core 0.12)"
_PREFILL = "middle of the prefill fits of A100, H100, L40S, RTX PRO 6000: 6-15 us, 0.46-0.81 of peak"
_DECODE = "median of the decode fits of A100, H100, L40S, RTX PRO 6000: 7-15 us, 0.81-0.97 of bandwidth"
_ELEMENTWISE = "norm and activation kernels: 2-3 us and 0.8 of bandwidth; arithmetic never binds"
_EDGE = "token rate of Jetson AGX Orin in llama.cpp: 0.63 of bandwidth; 1-3 ms per token over 320 kernels"
_NPU = "token rates of Snapdragon phones, 0.7-0.8 of bandwidth; 3 ms per token (RK3588) over 300 kernels"
_NPU_FLOP = "RK3588 prefill of 128 tokens (airockchip/rknn-llm benchmark.md): 0.16-0.19 of the int8 peak"
_ASIC = "Gaudi 2/3 token rates imply 0.44-0.71 of bandwidth; 0.65 of peak and the GPU floor are assumed"
_CPU = "assumed: 0.65 of peak, 0.8 of bandwidth, one fork-join of a thread pool"


ASSUMED = Interval(0.5, 2.0)
"""Of times of devices that nobody measured: a factor of two either way. The class fits of GPUs, scored on
devices they never saw, stay inside it for nine rows of ten."""

_EDGE_SPREAD = Interval(0.75, 1.35)
"""Token rates of 16 edge devices around one shared fit: 18 % mean error, 20 % with the device left out."""


def _profile(
    name: str, flop: float, byte: float, floor_s: float, exponent: float, source: str
) -> KernelProfile:
    return KernelProfile(name, flop, byte, floor_s, exponent, "analytic", source, interval=ASSUMED)


def _fitted(device_class: str) -> tuple[KernelProfile, ...]:
    """Return the shared fits of a class, and element-wise kernels, which no table holds."""
    content, file = read_packaged("hardware_specs", "defaults", "class of device", device_class)
    document = validate(FamilyDocument, content, file)
    read = Reader(file, {})
    return (*(kernel_of(name, entry, read) for name, entry in document.kernels.items()), _ELEMENTWISE_GPU)


_ELEMENTWISE_GPU = _profile("elementwise", 1.0, 0.8, 2.5e-6, 1.7, _ELEMENTWISE)

_GPU = (
    _profile("gemm", 0.78, 0.86, 3.9e-6, 1.7, _HELD_OUT),
    _profile("gemm_fp8", 0.63, 0.95, 14e-6, 1.4, _FP8),
    _profile("gemm_int8", 0.95, 1.0, 12e-6, 0.8, _W8A8),
    _profile("gemm_fp4", 0.50, 0.58, 9e-6, 1.4, _FP4),
    _profile("gemm_weight_only", 0.98, 0.78, 14.8e-6, 0.76, _W4A16),
    _profile("gemm_weight_only_int8", 0.88, 0.89, 16.9e-6, 1.11, _W8A16),
    _profile("attention_prefill", 0.65, 0.55, 8e-6, 1.0, _PREFILL),
    _profile("attention_decode", 1.0, 0.88, 8e-6, 1.7, _DECODE),
    _ELEMENTWISE_GPU,
)
"""Constants of the plain roofline, which devices with other kernels start from."""


def _uniform(
    flop: float, byte: float, floor_s: float, exponent: float, source: str
) -> tuple[KernelProfile, ...]:
    """One set of constants for all matrix and attention kernels, where only token rates are known."""
    return tuple(
        _profile(entry.name, 1.0 if entry.name == "elementwise" else flop, byte, floor_s, exponent, source)
        for entry in _GPU
    )


_EDGE_GPU = tuple(
    replace(
        entry,
        byte_eff_frac=min(entry.byte_eff_frac, 0.63),
        floor_s=6e-6,
        source=_EDGE,
        interval=_EDGE_SPREAD,
    )
    for entry in _GPU
)


def _collectives() -> dict[str, tuple[CollectiveProfile, ...]]:
    """Return the shared fits of kinds of links."""
    content, file = read_packaged("hardware_specs", "defaults", "kind of link", "links")
    document = validate(LinksDocument, content, file)
    read = Reader(file, {})
    kinds = {"scale_up": document.scale_up, "host": document.host}
    return {
        kind: tuple(collective_of(name, entry, kind, read) for name, entry in entries.items())
        for kind, entries in kinds.items()
    }


COLLECTIVES = _collectives()
"""Collectives by kind of link, where a link has no constants of its own."""

KERNELS: dict[DeviceClass, tuple[KernelProfile, ...]] = {
    "datacenter_gpu": _fitted("datacenter_gpu"),
    "desktop_gpu": _fitted("desktop_gpu"),
    "edge_gpu": _EDGE_GPU,
    "npu": _uniform(0.18, 0.75, 10e-6, 1.7, f"{_NPU}; {_NPU_FLOP}"),
    "asic": _uniform(0.65, 0.58, 3.9e-6, 1.7, _ASIC),
    "wafer": _uniform(0.65, 0.58, 3.9e-6, 1.7, _ASIC),
    "cpu": _uniform(0.65, 0.8, 5e-6, 1.7, _CPU),
}
"""Kernel profiles by device class; a device's own file replaces the ones that were fitted to it."""

# pJ per multiply-add at 7 nm: the product from the table, the sum in the accumulator's format. 8- and 4-bit
# floating-point and int4 are derived: E_mul ~ significand bits squared, E_add ~ accumulator width.
_MAC_PJ_7NM = {
    "fp32": 1.69,
    "tf32": 0.72,  # its significand is that of fp16
    "fp16": 0.72,
    "bf16": 0.59,
    "fp8": 0.35,
    "mxfp8": 0.35,
    "mxfp6": 0.35,  # e2m3 has the significand of e4m3
    "int8": 0.10,
    "mxfp4": 0.20,
    "nvfp4": 0.20,
    "int4": 0.045,
}

# Energy of logic relative to 7 nm. Foundry iso-speed claims below 7 nm, a log interpolation at 14 nm, the
# ratio to Horowitz, ISSCC 2014, at 45 nm.
_NODE_FACTOR = ((3.0, 0.46), (4.0, 0.63), (5.0, 0.70), (7.0, 1.0), (14.0, 1.7), (45.0, 2.8))

# Operand fetch, routing and write-back on top of the bare multiply-add (low confidence).
_DELIVERY: dict[DeviceClass, float] = {
    "datacenter_gpu": 3.3,
    "desktop_gpu": 3.3,
    "edge_gpu": 3.3,
    "npu": 1.8,
    "asic": 1.8,
    "wafer": 1.8,
}

MEMORY_PLATFORM_FACTOR = 15.3 / 5.0
"""What a bit from off-chip memory costs the whole board, relative to memory device and interface alone: the
fit on 85 ML.ENERGY runs on H100 (15.3 pJ/bit) over the 5.0 pJ/bit of HBM3."""

MEMORY_FACTOR_SOURCE = (
    "derived: energy of the memory tier x 3.06, the ratio of the whole-board fit on H100 to HBM3 alone"
)


def node_factor(process_nm: float) -> float:
    """Return the energy of logic relative to 7 nm, log-log interpolated and clamped to 3..45 nm."""
    nodes = _NODE_FACTOR
    if process_nm <= nodes[0][0]:
        return nodes[0][1]
    for (low_nm, low), (high_nm, high) in itertools.pairwise(nodes):
        if process_nm <= high_nm:
            share = math.log(process_nm / low_nm) / math.log(high_nm / low_nm)
            return math.exp(math.log(low) + share * math.log(high / low))
    return nodes[-1][1]


def flop_energy_j(kind: str, process_nm: float | None, device_class: DeviceClass) -> float | None:
    """Return the derived energy of one operation (half a multiply-add) in joules, None where it has no basis.

    ``E = delivery(class) * E_mac(kind, 7 nm) * node_factor / 2``. CPUs are left out: instruction handling
    dominates there.
    """
    if process_nm is None or kind not in _MAC_PJ_7NM or device_class not in _DELIVERY:
        return None
    return _DELIVERY[device_class] * _MAC_PJ_7NM[kind] * 1e-12 * node_factor(process_nm) / 2.0


def chip_bound_j(path: ComputePath, tdp_w: float | None) -> float | None:
    """Return TDP over dense rate in joules per operation, the energy of a chip that runs at its limit."""
    if tdp_w is None or path.dense_flop_per_s is None:
        return None
    return tdp_w / path.dense_flop_per_s


def fill_kernels(device_class: DeviceClass, own: tuple[KernelProfile, ...]) -> tuple[KernelProfile, ...]:
    """Return all kernel profiles of a device: its own ones, and the family's for the rest."""
    fitted = {entry.name: entry for entry in own}
    return tuple(fitted.get(entry.name, entry) for entry in KERNELS[device_class])
