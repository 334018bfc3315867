"""Sections of a device file, from their documents to the frozen types."""

from __future__ import annotations

from collections.abc import Mapping

from dse.errors import ConfigError
from hardware_specs import families
from hardware_specs.document import (
    DeviceDocument,
    KernelDocument,
    LinkDocument,
    PathDocument,
    PowerDocument,
    Quantity,
    TierDocument,
)
from hardware_specs.reader import Reader
from hardware_specs.spec import KERNEL_NAMES, ComputePath, KernelProfile, Link, MemoryTier, Power
from hardware_specs.units import parse_number

COMPUTE_KINDS = (
    *("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4"),
    *("mxfp8", "mxfp6", "mxfp4", "nvfp4"),
)
"""The compute kinds that a device file may speak of."""

MAX_EFFICIENCY = 2.0
"""Fitted efficiencies above 1 exist (operands in a cache); one above this bound is a slip."""


def compute_paths(paths: Mapping[str, PathDocument], read: Reader) -> tuple[ComputePath, ...]:
    """Return the compute paths; what is emulated must name a usable kind or say why it has no rate."""
    for kind, entry in paths.items():
        here = f"compute.{kind}"
        read.known_key(kind, "compute", COMPUTE_KINDS)
        problem = None
        if entry.support != "native" and entry.rate is not None:
            problem = f"only native kinds have a rate of their own, but this one is {entry.support}"
        if entry.support != "emulated" and entry.compute_as is not None:
            problem = f"only emulated kinds run as another one, but this one is {entry.support}"
        elif entry.support == "native" and entry.rate is None and not entry.reason:
            problem = "a native kind without a rate needs a 'reason'"
        elif entry.support == "unsupported" and not entry.reason:
            problem = "an unsupported kind needs a 'reason'"
        elif entry.support == "emulated" and entry.compute_as is None and not entry.reason:
            problem = "an emulated kind needs 'compute_as', or a 'reason' why none is known"
        if problem:
            raise ConfigError(problem, file=read.file, path=here)
        native = [name for name, path in paths.items() if path.support == "native"]
        if entry.compute_as is not None and entry.compute_as not in native:
            raise ConfigError(
                f"'{entry.compute_as}' is not a native kind of this device",
                file=read.file,
                path=f"{here}.compute_as",
                value=entry.compute_as,
                allowed=native,
            )
    return tuple(
        ComputePath(
            kind,
            entry.support,
            read.maybe(entry.rate, f"compute.{kind}.rate", "flop_per_s"),
            entry.compute_as,
            entry.reason,
        )
        for kind, entry in paths.items()
    )


def check_widths(bits: tuple[int, ...], reason: str, read: Reader) -> None:
    """Refuse widths outside 1..8, and no width at all without a reason."""
    wrong = [width for width in bits if not 1 <= width <= 8]
    if wrong:
        raise ConfigError(
            f"widths are 1 to 8 bits, but got {wrong[0]}", file=read.file, path="weight_only.bits"
        )
    if not bits and not reason:
        raise ConfigError("a device without any width needs a 'reason'", file=read.file, path="weight_only")


def memory_tiers(tiers: tuple[TierDocument, ...], read: Reader) -> tuple[MemoryTier, ...]:
    """Return the memory tiers; exactly one holds weights and KV cache."""
    mains = [tier.name for tier in tiers if tier.main]
    if len(mains) != 1:
        found = ", ".join(mains) or "none"
        raise ConfigError(
            f"exactly one tier must be 'main: true' (weights and KV live there), but {found} is",
            file=read.file,
            path="memory",
        )
    return tuple(
        MemoryTier(
            tier.name,
            tier.kind,
            read.si(tier.capacity, f"memory.{tier.name}.capacity", "bytes"),
            read.maybe(tier.bandwidth, f"memory.{tier.name}.bandwidth", "bytes_per_s"),
            read.maybe(tier.energy, f"memory.{tier.name}.energy", "joule_per_bit"),
            tier.main,
        )
        for tier in tiers
    )


def link_of(link: LinkDocument, path: str, read: Reader) -> Link:
    """Return one link; ``path`` is where it stands in the file."""
    return Link(
        link.name,
        link.kind,
        read.si(link.bandwidth, f"{path}.bandwidth", "bytes_per_s"),
        read.si(link.latency, f"{path}.latency", "second", zero=True),
        read.maybe(link.energy, f"{path}.energy", "joule_per_bit", zero=True),
        read.count(link.max_devices, f"{path}.max_devices"),
    )


def power_of(power: PowerDocument, read: Reader) -> Power:
    """Return the power section as the file states it."""
    for kind in power.per_flop:
        read.known_key(kind, "power.per_flop", COMPUTE_KINDS)
    tdp_w = read.maybe(power.tdp, "power.tdp", "watt")
    static_w = read.maybe(power.static, "power.static", "watt", zero=True)
    if static_w is None and not power.static_note:
        raise ConfigError(
            "needs 'static', or a 'static_note' why it is unknown", file=read.file, path="power"
        )
    if tdp_w is not None and static_w is not None and static_w > tdp_w:
        raise ConfigError(
            f"static power {static_w:g} W exceeds the TDP of {tdp_w:g} W",
            file=read.file,
            path="power.static",
        )
    return Power(
        tdp_w,
        static_w,
        {
            kind: read.si(leaf, f"power.per_flop.{kind}", "joule_per_flop")
            for kind, leaf in power.per_flop.items()
        },
        read.maybe(power.main_memory, "power.main_memory", "joule_per_bit"),
        power.static_note,
    )


def with_family_energy(
    power: Power,
    document: DeviceDocument,
    compute: tuple[ComputePath, ...],
    main: MemoryTier,
    read: Reader,
) -> Power:
    """Fill the energies that the file does not state, as derived numbers.

    Where the file states the energy of a kind, derived ones are scaled by the ratio of the stated to the
    derived energy of that kind, so that ratios between kinds stay those of the arithmetic.
    """
    device_class = document.device_class
    process = document.process
    process_nm = None if process is None else parse_number(process.value)
    stated = dict(power.energy_j_per_flop)
    scale, basis = 1.0, ""
    for kind, energy in stated.items():
        reference = families.flop_energy_j(kind, process_nm, device_class)
        if reference is not None:
            scale, basis = energy / reference, f", scaled by the stated {kind} value"
            break
    for path in compute:
        if path.support != "native" or path.kind in stated:
            continue
        derived = families.flop_energy_j(path.kind, process_nm, device_class)
        source = f"derived: delivery factor x energy of a multiply-add at {process_nm} nm / 2{basis}"
        if device_class == "cpu":
            derived, source = families.chip_bound_j(path, power.tdp_w), "derived: TDP / dense rate"
        if derived is not None:
            stated[path.kind] = derived * scale
            read.derived(f"power.per_flop.{path.kind}", derived * scale * 1e12, "pJ/FLOP", source)
    per_bit = power.main_memory_j_per_bit
    if per_bit is None and main.energy_j_per_bit is not None:
        off_chip = "SRAM" not in main.kind.upper()
        per_bit = main.energy_j_per_bit * (families.MEMORY_PLATFORM_FACTOR if off_chip else 1.0)
        source = families.MEMORY_FACTOR_SOURCE if off_chip else "derived: energy of the on-chip memory tier"
        read.derived("power.main_memory", per_bit * 1e12, "pJ/bit", source)
    return Power(power.tdp_w, power.static_w, stated, per_bit, power.static_note)


def kernel_of(name: str, entry: KernelDocument, read: Reader) -> KernelProfile:
    """Return one kernel profile of a file; its numbers share one source."""
    read.known_key(name, "kernels", KERNEL_NAMES)
    path = f"kernels.{name}"

    def number(value: object, key: str, upper: float) -> float:
        found = parse_number(value, file=read.file, path=f"{path}.{key}")
        if not 0 < found <= upper:
            raise ConfigError(
                f"must be above 0 and at most {upper:g}, but is {found:g}",
                file=read.file,
                path=f"{path}.{key}",
            )
        return found

    def seconds(quantity: Quantity | None, key: str) -> float | None:
        return None if quantity is None else read.seconds(quantity, f"{path}.{key}")

    return KernelProfile(
        name=name,
        flop_eff_frac=number(entry.flop_efficiency, "flop_efficiency", MAX_EFFICIENCY),
        byte_eff_frac=number(entry.byte_efficiency, "byte_efficiency", MAX_EFFICIENCY),
        floor_s=read.seconds(entry.floor, f"{path}.floor"),
        exponent=number(entry.exponent, "exponent", 20.0),
        provenance=entry.provenance,
        source=read.source(entry.source, f"{path}.source"),
        context_log_s=seconds(entry.context_log, "context_log"),
        wave_s=seconds(entry.wave, "wave"),
    )
