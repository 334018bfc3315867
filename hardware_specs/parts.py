"""Sections of a device file, from their documents to the frozen types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from dse.errors import ConfigError
from hardware_specs import families
from hardware_specs.calibrated import collective_of
from hardware_specs.document import (
    ArithmeticDocument,
    DeviceDocument,
    LinkDocument,
    PairDocument,
    PathDocument,
    PowerDocument,
    SparsityDocument,
    TierDocument,
    TopologyDocument,
)
from hardware_specs.reader import Reader
from hardware_specs.spec import (
    ComputePath,
    Link,
    MemoryTier,
    OperandPair,
    Power,
    Sparsity,
    Topology,
)
from hardware_specs.units import parse_number

COMPUTE_KINDS = (
    *("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4"),
    *("mxfp8", "mxfp6", "mxfp4", "nvfp4"),
)
"""The compute kinds that every device file speaks of."""

VENDOR_KINDS = ("mxint8", "mxint4")
"""Kinds that few devices have; a file without them has no path for them."""


def compute_paths(paths: Mapping[str, PathDocument], read: Reader) -> tuple[ComputePath, ...]:
    """Return the compute paths; what is emulated must name a usable kind or say why it has no rate."""
    for kind, entry in paths.items():
        here = f"compute.{kind}"
        read.known_key(kind, "compute", COMPUTE_KINDS + VENDOR_KINDS)
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
        _check_native(entry.compute_as, native, read, here)
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


def _check_native(kind: str | None, native: list[str], read: Reader, path: str) -> None:
    """Refuse to compute as a kind that the device does not compute itself."""
    if kind is not None and kind not in native:
        raise ConfigError(
            f"'{kind}' is not a native kind of this device",
            file=read.file,
            path=f"{path}.compute_as",
            value=kind,
            allowed=native,
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


def operand_pairs(
    pairs: tuple[PairDocument, ...], compute: tuple[ComputePath, ...], read: Reader
) -> tuple[OperandPair, ...]:
    """Return what the file says of pairs of operand kinds; an emulated pair names the kind it runs as."""
    native = [path.kind for path in compute if path.support == "native"]
    for index, pair in enumerate(pairs):
        path = f"pairs.{index}"
        read.source(pair.source, f"{path}.source")
        if pair.support == "unsupported" and not pair.reason:
            raise ConfigError("an unsupported pair needs a 'reason'", file=read.file, path=path)
        if (pair.compute_as is not None) != (pair.support == "emulated"):
            raise ConfigError(
                "emulated pairs, and only they, name the kind they run as in 'compute_as'",
                file=read.file,
                path=path,
            )
        _check_native(pair.compute_as, native, read, path)
    return tuple(
        OperandPair(pair.weights, pair.activations, pair.support, pair.compute_as, pair.reason)
        for pair in pairs
    )


def flop_per_cycle(entries: tuple[ArithmeticDocument, ...], read: Reader) -> dict[str, float]:
    """Return operations per cycle and core by compute kind (a multiply-add is two)."""
    for entry in entries:
        read.known_key(entry.kind, "arithmetic", COMPUTE_KINDS + VENDOR_KINDS)
    return {
        entry.kind: read.si(entry.per_cycle, f"arithmetic.{entry.kind}.per_cycle", "count")
        for entry in entries
    }


def sparsity_of(document: SparsityDocument | None, read: Reader) -> Sparsity | None:
    """Return the vendor's statement on sparsity; rates stay dense."""
    if document is None:
        return None
    speedup = read.maybe(document.speedup, "sparsity.speedup", "ratio")
    return Sparsity(document.statement, read.source(document.source, "sparsity.source"), speedup)


def memory_tiers(
    tiers: tuple[TierDocument, ...], missing: Mapping[str, str], read: Reader
) -> tuple[MemoryTier, ...]:
    """Return the memory tiers of a device; exactly one holds weights and KV cache.

    A file that has none says why under ``missing.memory``.
    """
    mains = [tier.name for tier in tiers if tier.main]
    if not tiers and "memory" not in missing:
        raise ConfigError(
            "needs at least one entry, or a reason under missing.memory", file=read.file, path="memory"
        )
    if len(mains) > 1 or (not mains and "memory" not in missing):
        found = ", ".join(mains) or "none"
        raise ConfigError(
            f"exactly one tier must be 'main: true' (weights and KV live there), but {found} is",
            file=read.file,
            path="memory",
        )
    return tuple(memory_tier(tier, f"memory.{tier.name}", read) for tier in tiers)


def memory_tier(tier: TierDocument, path: str, read: Reader) -> MemoryTier:
    """Return one memory tier; ``path`` is where it stands in the file."""
    return MemoryTier(
        tier.name,
        tier.kind,
        read.si(tier.capacity, f"{path}.capacity", "bytes"),
        read.maybe(tier.bandwidth, f"{path}.bandwidth", "bytes_per_s"),
        read.maybe(tier.energy, f"{path}.energy", "joule_per_bit"),
        tier.main,
        tier.main if tier.weights is None else tier.weights,
        tier.main if tier.kv is None else tier.kv,
        tier.scope,
        tier.via,
    )


def link_of(link: LinkDocument, path: str, read: Reader) -> Link:
    """Return one link; ``path`` is where it stands in the file."""
    bandwidth = read.si(link.bandwidth, f"{path}.bandwidth", "bytes_per_s")
    max_devices = read.count(link.max_devices, f"{path}.max_devices")
    return Link(
        link.name,
        link.kind,
        bandwidth / 2.0 if link.direction == "bidirectional" else bandwidth,
        read.si(link.latency, f"{path}.latency", "second", zero=True),
        read.maybe(link.energy, f"{path}.energy", "joule_per_bit", zero=True),
        max_devices,
        None if link.topology is None else _topology(link.topology, max_devices, f"{path}.topology", read),
        tuple(collective_of(name, entry, path, read) for name, entry in link.collectives.items()),
    )


def _topology(topology: TopologyDocument, max_devices: int | None, path: str, read: Reader) -> Topology:
    """Return how a link joins its devices; the sides of a torus or mesh multiply to the domain."""
    read.source(topology.source, f"{path}.source")
    if topology.dims and topology.kind not in {"torus", "mesh"}:
        raise ConfigError(
            f"only a torus or mesh has dims, but this is a {topology.kind}", file=read.file, path=path
        )
    if topology.dims and max_devices is not None and math.prod(topology.dims) != max_devices:
        raise ConfigError(
            f"the dims hold {math.prod(topology.dims)} devices, but max_devices is {max_devices}",
            file=read.file,
            path=f"{path}.dims",
        )
    return Topology(
        topology.kind, topology.dims, read.count(topology.neighbours, f"{path}.neighbours"), topology.note
    )


def power_of(power: PowerDocument, read: Reader) -> Power:
    """Return the power section as the file states it."""
    for kind in power.per_flop:
        read.known_key(kind, "power.per_flop", COMPUTE_KINDS + VENDOR_KINDS)
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
        read.maybe(power.typical, "power.typical", "watt"),
    )


def with_family_energy(
    power: Power,
    document: DeviceDocument,
    compute: tuple[ComputePath, ...],
    main: MemoryTier | None,
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
    if per_bit is None and main is not None and main.energy_j_per_bit is not None:
        off_chip = "SRAM" not in main.kind.upper()
        per_bit = main.energy_j_per_bit * (families.MEMORY_PLATFORM_FACTOR if off_chip else 1.0)
        source = families.MEMORY_FACTOR_SOURCE if off_chip else "derived: energy of the on-chip memory tier"
        read.derived("power.main_memory", per_bit * 1e12, "pJ/bit", source)
    return replace(power, energy_j_per_flop=stated, main_memory_j_per_bit=per_bit)
