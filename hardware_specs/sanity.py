"""Rules that a spec file must obey unless it says why it rightly breaks one.

Each rule looks at one device and returns what it finds odd. The ranges are those of the public devices
themselves (data sheets collected in 2026), widened by 5 %: a value outside is either a slip (GB for Gbit, a
sparse peak, per card for per chip) or a device that is unlike the others; such a file names the rule under
``exceptions`` with its reason.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hardware_specs.spec import HardwareSpec, Link

SLACK = 1.05
SIXTEEN_BIT = ("bf16", "fp16")

RIDGE_FLOP_PER_BYTE = {"HBM": (115, 560), "GDDR": (75, 420), "LPDDR": (48, 950), "SRAM": (0.3, 5.4)}
SWEEP_S = {
    "HBM": (19e-3, 46e-3),
    "GDDR": (25e-3, 86e-3),
    "LPDDR": (80e-3, 1.2),
    "DDR": (0.2, 2.0),
    "SRAM": (0.0, 0.05e-3),
}
BANDWIDTH_GB_PER_S_PER_W = {"HBM": (2.2, 8), "GDDR": (1.8, 5), "LPDDR": (0.7, 8), "DDR": (0.8, 3)}
OPERATIONS_PER_W = ((12.0, (0.4, 3.8)), (6.0, (0.6, 6.0)), (0.0, (0.6, 13.0)))
OPERATIONS_PER_W_UNKNOWN_PROCESS = (0.4, 15.0)
PJ_PER_OPERATION = {"desktop_gpu": (1.9, 4.9)}
PJ_PER_OPERATION_DEFAULT = (0.44, 3.1)
MEMORY_SHARE_OF_TDP = (0.048, 0.455)
SINGLE_DIE_BEFORE_2024_FLOP_PER_S = 1.1e15
SRAM_GB_PER_S_PER_W = 200
NVLINK_STEP = {"nvlink1": 20e9, "nvlink2": 25e9, "nvlink3": 25e9, "nvlink4": 25e9, "nvlink5": 50e9}
PCIE_LANE = (0.985e9, 1.969e9, 3.938e9)


@dataclass(frozen=True)
class Finding:
    """What a rule finds odd about a device."""

    rule: str
    text: str


Rule = Callable[[HardwareSpec], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule under the name of its function."""
    RULES[function.__name__] = function
    return function


def check(spec: HardwareSpec) -> list[Finding]:
    """Return everything odd about a device that its ``exceptions`` do not explain."""
    return [finding for finding in findings(spec) if finding.rule not in spec.exceptions]


def findings(spec: HardwareSpec) -> list[Finding]:
    """Return everything odd about a device, explained or not, in the order of the rules."""
    return [Finding(name, text) for name, run in RULES.items() for text in run(spec)]


def native_rates(spec: HardwareSpec) -> dict[str, float]:
    """Return the published dense rates by compute kind."""
    return {
        path.kind: path.dense_flop_per_s
        for path in spec.compute
        if path.support == "native" and path.dense_flop_per_s is not None
    }


def rate_16_bit(spec: HardwareSpec) -> float | None:
    """Return the native 16-bit rate, None where none is published."""
    rates = native_rates(spec)
    return next((rates[kind] for kind in SIXTEEN_BIT if kind in rates), None)


def family(spec: HardwareSpec) -> str | None:
    """Return the kind of main memory that decides most ranges: HBM, GDDR, LPDDR, DDR or SRAM."""
    main = spec.known_main_memory
    kind = "" if main is None else main.kind.upper()
    return next((word for word in ("SRAM", "HBM", "GDDR", "LPDDR", "DDR") if word in kind), None)


@rule
def arithmetic_closure(spec: HardwareSpec) -> Iterator[str]:
    """Cores x operations per cycle x clock equals the rate within 5 %, where all are known apart."""
    rates = native_rates(spec)
    for kind, per_cycle in spec.flop_per_cycle.items():
        if spec.n_cores is None or spec.clock_hz is None or kind not in rates:
            yield f"operations per cycle of {kind} are given without cores, clock or rate to check"
            continue
        ratio = rates[kind] / (spec.n_cores * per_cycle * spec.clock_hz)
        if abs(ratio / 2 - 1) < 0.1:
            yield f"the {kind} rate is {ratio:.3g} times what its arithmetic gives: a figure with sparsity?"
        elif not _within(ratio, 1, 1):
            yield f"the {kind} rate is {ratio:.3g} times cores x operations per cycle x clock"


@rule
def sparse_doubling(spec: HardwareSpec) -> Iterator[str]:
    """No rate comes from a figure with sparsity, and no single die before 2024 was as fast as one such."""
    for entry in spec.sources:
        sparse = entry.path.startswith("compute.") and re.search("spars", entry.source, re.IGNORECASE)
        if sparse and not re.search(r"halved|dense|derived", entry.source, re.IGNORECASE):
            yield f"{entry.path} cites a figure with sparsity"
    rate = rate_16_bit(spec) or 0.0
    old = spec.device_class.endswith("gpu") and spec.year is not None and spec.year < 2024
    if old and rate > SINGLE_DIE_BEFORE_2024_FLOP_PER_S:
        yield f"{rate / 1e12:.4g} TFLOP/s in 16 bits is more than one die of {spec.year} does"


@rule
def fewer_bits_never_slower(spec: HardwareSpec) -> Iterator[str]:
    """Rates are 1, 2, 4 or 8 times the 16-bit one within 5 %, or the file says why in a note."""
    reference = rate_16_bit(spec)
    if reference is None:
        return
    noted = {entry.path for entry in spec.sources if entry.note}
    for kind, rate in native_rates(spec).items():
        ratio = rate / reference
        if kind in ("fp32", "tf32"):
            if ratio > SLACK:
                yield f"{kind} runs at {ratio:.3g} times the 16-bit rate"
        elif ratio < 1 / SLACK:
            yield f"{kind} is slower than 16 bits: {ratio:.3g} times"
        elif f"compute.{kind}.rate" not in noted and not any(
            _within(ratio, whole, whole) for whole in (1, 2, 4, 8)
        ):
            yield f"{kind} runs at {ratio:.3g} times the 16-bit rate, without a note"


@rule
def ridge_point(spec: HardwareSpec) -> Iterator[str]:
    """16-bit rate over main bandwidth, FLOP per byte, lies where its kind of memory puts it."""
    rate, main = rate_16_bit(spec), spec.known_main_memory
    bounds = RIDGE_FLOP_PER_BYTE.get(family(spec) or "", (75, 420))
    if rate is not None and main is not None and main.bandwidth_bytes_per_s is not None:
        yield from _outside("ridge point", rate / main.bandwidth_bytes_per_s, bounds, "FLOP/B")


@rule
def sweep_time(spec: HardwareSpec) -> Iterator[str]:
    """Main capacity over bandwidth: catches GB for Gbit, and per card for per chip."""
    main = spec.known_main_memory
    if main is None or main.bandwidth_bytes_per_s is None:
        return
    sweep_s = main.capacity_bytes / main.bandwidth_bytes_per_s
    low, high = SWEEP_S.get(family(spec) or "", (0.019, 2.0))
    yield from _outside("time to read all of it once", sweep_s * 1e3, (low * 1e3, high * 1e3), "ms")


@rule
def operations_per_watt(spec: HardwareSpec) -> Iterator[str]:
    """Best dense rate of at least 4 bits over TDP, by process."""
    if spec.power.tdp_w is None or not native_rates(spec):
        return
    best = max(native_rates(spec).values()) / 1e12 / spec.power.tdp_w
    bounds = OPERATIONS_PER_W_UNKNOWN_PROCESS
    if spec.process_nm is not None:
        bounds = next(bounds for least_nm, bounds in OPERATIONS_PER_W if spec.process_nm >= least_nm)
    yield from _outside("operations per watt", best, bounds, "TOP/s/W")


@rule
def energy_per_operation(spec: HardwareSpec) -> Iterator[str]:
    """TDP over the 16-bit rate, pJ per operation: bounds the energy of a chip at its limit."""
    rate = rate_16_bit(spec)
    if spec.power.tdp_w is not None and rate is not None:
        bounds = PJ_PER_OPERATION.get(spec.device_class, PJ_PER_OPERATION_DEFAULT)
        yield from _outside("TDP per 16-bit operation", spec.power.tdp_w / rate * 1e12, bounds, "pJ")


@rule
def bandwidth_per_watt(spec: HardwareSpec) -> Iterator[str]:
    """Main bandwidth over TDP."""
    main = spec.known_main_memory
    if spec.power.tdp_w is None or main is None or main.bandwidth_bytes_per_s is None:
        return
    ratio = main.bandwidth_bytes_per_s / 1e9 / spec.power.tdp_w
    if family(spec) == "SRAM":
        if ratio < SRAM_GB_PER_S_PER_W:
            yield f"bandwidth per watt of {ratio:.3g} is below {SRAM_GB_PER_S_PER_W} (on-chip memory)"
        return
    bounds = BANDWIDTH_GB_PER_S_PER_W.get(family(spec) or "", (0.7, 8))
    yield from _outside("bandwidth per watt", ratio, bounds, "GB/s/W")


@rule
def memory_power(spec: HardwareSpec) -> Iterator[str]:
    """Bandwidth x energy of a bit from off-chip memory is a part of the TDP."""
    main = spec.known_main_memory
    if spec.power.tdp_w is None or main is None or family(spec) == "SRAM":
        return
    if main.bandwidth_bytes_per_s is not None and main.energy_j_per_bit is not None:
        share = main.bandwidth_bytes_per_s * 8 * main.energy_j_per_bit / spec.power.tdp_w
        yield from _outside("memory's share of the TDP", share, MEMORY_SHARE_OF_TDP, "")


@rule
def links(spec: HardwareSpec) -> Iterator[str]:
    """Domains of at least 2, NVLink and PCIe in whole lanes, the host no faster than scale-up."""
    for link in spec.links:
        if link.max_devices is not None and link.max_devices < 2:
            yield f"{link.name} joins {link.max_devices} device"
        if not 0 < link.latency_s < 1e-3:
            yield f"{link.name} takes {link.latency_s} s to start"
        yield from _whole_lanes(link)
    up, host = spec.link("scale_up"), spec.link("host")
    served = spec.device_class == "datacenter_gpu"
    if served and up and host and host.bandwidth_bytes_per_s > up.bandwidth_bytes_per_s:
        yield f"the host link {host.name} is faster than {up.name}"


def _whole_lanes(link: Link) -> Iterator[str]:
    step = NVLINK_STEP.get(link.name)
    if step and link.bandwidth_bytes_per_s % step:
        yield f"{link.name} is no multiple of {step / 1e9:g} GB/s per link and direction"
    if link.name == "pcie":
        lanes = [link.bandwidth_bytes_per_s / lane for lane in PCIE_LANE]
        if not any(_within(lane / width, 1, 1) for lane in lanes for width in (4, 8, 16)):
            yield f"pcie of {link.bandwidth_bytes_per_s / 1e9:.4g} GB/s is no 4, 8 or 16 lanes of Gen3 to 5"


@rule
def capacity(spec: HardwareSpec) -> Iterator[str]:
    """DRAM comes in whole GiB; the reserve is a small part of it; tiers go from fast to slow."""
    main = spec.known_main_memory
    if main is not None and family(spec) != "SRAM":
        stated = next((entry for entry in spec.sources if entry.path == f"memory.{main.name}.capacity"), None)
        if stated is not None and stated.unit in ("GB", "TB") and stated.value == int(stated.value):
            yield f"{stated.value:g} {stated.unit} of {main.kind}: memory chips come in GiB"
        gib = main.capacity_bytes / 2**30
        if abs(gib - round(gib)) / gib >= 0.03:
            yield f"{gib:.4g} GiB is not a whole number of GiB within 3 %"
    shared = spec.device_class in ("npu", "edge_gpu")
    if main is not None and spec.reserve_bytes > (0.4 if shared else 0.2) * 1.01 * main.capacity_bytes:
        yield f"the reserve is {spec.reserve_bytes / main.capacity_bytes:.0%} of the memory"
    known = [tier for tier in spec.memory if tier.bandwidth_bytes_per_s]
    for fast, slow in itertools.pairwise(known):
        if (fast.bandwidth_bytes_per_s or 0) <= (slow.bandwidth_bytes_per_s or 0):
            yield f"the tiers go from fast to slow, but {slow.name} is as fast as {fast.name}"


@rule
def provenance(spec: HardwareSpec) -> Iterator[str]:
    """Prices are dated, and what everybody needs is there or said to be missing."""
    if spec.price_usd_per_h is not None and not spec.price_date:
        yield "the price has no date"
    main = spec.known_main_memory
    if main is not None and main.bandwidth_bytes_per_s is None:
        explained = any(path.startswith(f"memory.{main.name}") for path in spec.missing)
        if not explained:
            yield f"the bandwidth of {main.name} is absent without a reason under 'missing'"
    if not native_rates(spec) and "compute" not in spec.missing:
        yield "no rate at all, without a reason under 'missing'"


def _within(value: float, low: float, high: float) -> bool:
    return low / SLACK <= value <= high * SLACK


def _outside(what: str, value: float, bounds: tuple[float, float], unit: str) -> Iterator[str]:
    if not _within(value, *bounds):
        yield f"{what} of {value:.3g} {unit} is outside {bounds[0]:g} to {bounds[1]:g}".replace("  ", " ")
