"""The typed contents of a spec file: devices, links, clusters and runtimes. No language models here.

All numbers are SI base units and **dense** peaks (1 multiply-add is 2 FLOP). A value that nobody published
is None, and whoever needs it says so; it is never replaced by a guess here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from dse.errors import ConfigError, UnsupportedOnDevice
from hardware_specs.kernels import CollectiveProfile, KernelProfile

DeviceClass = Literal["datacenter_gpu", "desktop_gpu", "edge_gpu", "npu", "asic", "wafer", "cpu"]
Support = Literal["native", "emulated", "unsupported"]
LinkKind = Literal["scale_up", "scale_out", "host"]
Availability = Literal["shipping", "announced", "discontinued", "internal", "incomplete"]
Scope = Literal["device", "node", "remote"]
TopologyKind = Literal[
    "switch", "all_to_all", "ring", "mesh", "torus", "dragonfly", "tree", "point_to_point", "none"
]


@dataclass(frozen=True)
class Sourced:
    """Where one number of a spec file comes from; ``path`` is its dotted path in the file."""

    path: str
    value: float
    unit: str
    source: str
    confidence: str = "high"
    note: str = ""


@dataclass(frozen=True)
class ComputePath:
    """What a device does with one compute kind ("fp16", "bf16", "fp8", "int8", "int4", "mxfp4", ...).

    Attributes:
        support: "native" (the multiply-add array consumes it), "emulated" (storage only: up-converted to
            ``compute_as`` first and run at that rate), "unsupported".
        dense_flop_per_s: native rate, None where it was never published.
        reason: why it is not usable, where that is the case.
    """

    kind: str
    support: Support
    dense_flop_per_s: float | None = None
    compute_as: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class OperandPair:
    """What a device does with one pair of operand kinds, where that is not what each kind alone says.

    Attributes:
        weights, activations: operand kinds, e.g. "int4" and "int8".
        support: as for ``ComputePath``; "emulated" pairs run as ``compute_as``.
    """

    weights: str
    activations: str
    support: Support
    compute_as: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class MemoryTier:
    """A memory, fast to slow in ``HardwareSpec.memory``. The main tier is where weights and KV live.

    Attributes:
        weights, kv: whether weights or KV cache may be placed here at all; caches hold neither.
        scope: "device" for its own, "node" for memory shared by the devices of a machine, "remote".
        via: the kind of link that it is reached over, None for its own interface.
    """

    name: str
    kind: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float | None
    energy_j_per_bit: float | None = None
    main: bool = False
    weights: bool = False
    kv: bool = False
    scope: Scope = "device"
    via: LinkKind | None = None


@dataclass(frozen=True)
class Topology:
    """How the devices of a link's domain are joined.

    Attributes:
        dims: sides of the largest torus or mesh, () where there are none.
        n_neighbours: equal parts that ``Link.bandwidth_bytes_per_s`` adds up, one to each directly joined
            device; None where unknown or where a switch gives all of it to any one.
    """

    kind: TopologyKind
    dims: tuple[int, ...] = ()
    n_neighbours: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Link:
    """A way to other devices; the bandwidth is per direction and per device."""

    name: str
    kind: LinkKind
    bandwidth_bytes_per_s: float
    latency_s: float
    energy_j_per_bit: float | None = None
    max_devices: int | None = None
    topology: Topology | None = None
    collectives: tuple[CollectiveProfile, ...] = ()

    @property
    def peer_bandwidth_bytes_per_s(self) -> float:
        """What one pair of neighbours may use, per direction: its part of a mesh, ring or torus, else all."""
        neighbours = None if self.topology is None else self.topology.n_neighbours
        return self.bandwidth_bytes_per_s / (neighbours or 1)


@dataclass(frozen=True)
class Power:
    """Board power. Static power is drawn whenever the device is on; dynamic energy comes on top of it.

    ``main_memory_j_per_bit`` is what a bit from the main memory costs the whole board; the energy of the
    memory tier is that of the memory device and its interface alone.
    """

    tdp_w: float | None
    static_w: float | None
    energy_j_per_flop: dict[str, float] = field(default_factory=dict, hash=False)
    main_memory_j_per_bit: float | None = None
    static_note: str = ""
    typical_w: float | None = None


@dataclass(frozen=True)
class Sparsity:
    """What a vendor says of sparsity. It is never part of a rate here; ``speedup`` is the claimed factor."""

    statement: str
    source: str
    speedup: float | None = None


@dataclass(frozen=True)
class HardwareSpec:
    """One device as its spec file states it.

    ``weight_only_bits`` are the widths of integer weights that kernels expand to the activation kind on the
    fly, next to native integer products; ``weight_only_reason`` says why other widths are absent.
    ``missing`` maps what nobody published to the reason; a device whose availability is "incomplete" lacks so
    much that whatever asks for a rate or its main memory is refused. ``exceptions`` maps the name of a sanity
    rule to why this device rightly breaks it. ``flop_per_cycle`` is per core, known apart from the rates.
    """

    name: str
    vendor: str
    device_class: DeviceClass
    description: str
    compute: tuple[ComputePath, ...]
    memory: tuple[MemoryTier, ...]
    links: tuple[Link, ...]
    power: Power
    kernels: tuple[KernelProfile, ...]
    weight_only_bits: tuple[int, ...] = ()
    weight_only_reason: str = ""
    n_cores: int | None = None
    clock_hz: float | None = None
    process_nm: float | None = None
    reserve_bytes: float = 0.0
    price_usd_per_h: float | None = None
    year: int | None = None
    sources: tuple[Sourced, ...] = ()
    content_hash: str = ""
    availability: Availability = "shipping"
    missing: dict[str, str] = field(default_factory=dict, hash=False)
    exceptions: dict[str, str] = field(default_factory=dict, hash=False)
    pairs: tuple[OperandPair, ...] = ()
    sparsity: Sparsity | None = None
    flop_per_cycle: dict[str, float] = field(default_factory=dict, hash=False)
    price_date: str = ""

    @cached_property
    def main_memory(self) -> MemoryTier:
        """The tier that holds weights and KV cache.

        Raises:
            UnsupportedOnDevice: the device has none, or its capacity was never published.
        """
        if self.known_main_memory is None:
            reason = self.missing.get("memory", "no memory for weights is known")
            raise UnsupportedOnDevice(self.name, "memory", known=[], reason=f"no main memory: {reason}")
        return self.known_main_memory

    @cached_property
    def known_main_memory(self) -> MemoryTier | None:
        """The tier that holds weights and KV cache, None where it is not known."""
        return next((tier for tier in self.memory if tier.main), None)

    @property
    def incomplete_reason(self) -> str | None:
        """Why nothing on this device can be timed, None if its file is complete enough."""
        if self.availability != "incomplete":
            return None
        (first, why), *others = self.missing.items()
        more = f", as are {', '.join(what for what, _ in others)}" if others else ""
        lacks = f"{first} is missing ({why}){more}"
        return f"incomplete, so it cannot be timed: {lacks}; a copy of its file takes numbers of your own"

    def path(self, kind: str) -> ComputePath:
        """Return the compute path of a kind.

        Raises:
            UnsupportedOnDevice: the spec file does not list the kind.
        """
        for entry in self.compute:
            if entry.kind == kind:
                return entry
        raise UnsupportedOnDevice(self.name, kind, known=[entry.kind for entry in self.compute])

    def rate_flop_per_s(self, kind: str) -> float:
        """Return the dense rate at which a kind runs, following ``compute_as`` for emulated kinds.

        Raises:
            UnsupportedOnDevice: no path, the rate was never published, or the whole spec is incomplete.
        """
        entry = self.path(kind)
        if self.incomplete_reason is not None:
            raise UnsupportedOnDevice(self.name, kind, known=[], reason=self.incomplete_reason)
        if entry.support == "unsupported":
            raise UnsupportedOnDevice(
                self.name, kind, known=self._rated_kinds, reason=entry.reason or f"{kind} has no path"
            )
        if entry.support == "emulated" and entry.compute_as:
            return self.rate_flop_per_s(entry.compute_as)
        if entry.dense_flop_per_s is None:
            raise UnsupportedOnDevice(
                self.name, kind, known=self._rated_kinds, reason=f"the {kind} rate is not published"
            )
        return entry.dense_flop_per_s

    @property
    def _rated_kinds(self) -> list[str]:
        """Kinds that run at a known rate."""
        rated = {entry.kind for entry in self.compute if entry.dense_flop_per_s is not None}
        return [entry.kind for entry in self.compute if rated & {entry.kind, entry.compute_as}]

    def kernel(self, name: str) -> KernelProfile:
        """Return a kernel profile by name; every loaded spec has all of ``KERNEL_NAMES``."""
        for entry in self.kernels:
            if entry.name == name:
                return entry
        raise ConfigError(
            f"{self.name} has no kernel profile '{name}'",
            value=name,
            allowed=[entry.name for entry in self.kernels],
        )

    def link(self, kind: LinkKind) -> Link | None:
        """Return the first link of a kind, or None."""
        return next((entry for entry in self.links if entry.kind == kind), None)


@dataclass(frozen=True)
class ClusterNode:
    """One machine: devices of one type joined by a scale-up link (None for a single device).

    ``memory_limit_bytes`` is what the model may use of each device's main memory, beside the runtime reserve,
    where other software holds the rest; None leaves it all. ``host_memory`` are the machine's own memories
    (DRAM, SSD), fast to slow, shared by its devices.
    """

    name: str
    device: str
    n_devices: int
    intra_link: Link | None = None
    memory_limit_bytes: float | None = None
    host_memory: tuple[MemoryTier, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """Nodes joined by a network. Device names are ``node/index``, e.g. ``jetson/0``.

    ``specs`` maps each device type to its spec; ``inter_link`` joins nodes (None for a single node).
    ``price_usd_per_h`` is the sum of the devices' prices, or None if any is unknown. ``grid_g_per_kwh`` are
    grams of CO2 equivalent per kWh of the grid that feeds it, None where nobody says.
    """

    name: str
    description: str
    nodes: tuple[ClusterNode, ...]
    inter_link: Link | None
    specs: dict[str, HardwareSpec] = field(hash=False)
    source: str = ""
    content_hash: str = ""
    sources: tuple[Sourced, ...] = ()
    grid_g_per_kwh: float | None = None

    @cached_property
    def price_usd_per_h(self) -> float | None:
        """Sum of the devices' prices, None if any is unknown."""
        prices = [self.specs[kind].price_usd_per_h for _, kind in self.devices]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None

    @cached_property
    def devices(self) -> tuple[tuple[str, str], ...]:
        """(device name, device type) of every device, in file order."""
        return tuple(
            (f"{node.name}/{index}", node.device) for node in self.nodes for index in range(node.n_devices)
        )

    def spec_of(self, device: str) -> HardwareSpec:
        """Return the spec of a device by its name in the cluster."""
        types = dict(self.devices)
        if device not in types:
            raise ConfigError(f"cluster '{self.name}' has no device '{device}'", value=device, allowed=types)
        return self.specs[types[device]]

    def capacity_bytes(self, device: str) -> float:
        """Return the main memory of a device that the runtime reserve and the model may fill together."""
        spec = self.spec_of(device)
        name = device.partition("/")[0]
        limit = next(node.memory_limit_bytes for node in self.nodes if node.name == name)
        whole = spec.main_memory.capacity_bytes
        return whole if limit is None else min(whole, spec.reserve_bytes + limit)

    def link_between(self, first: str, second: str) -> Link:
        """Return the link that a transfer between two devices of the cluster uses.

        Raises:
            ConfigError: the file gives no link between them.
        """
        node_a, node_b = first.partition("/")[0], second.partition("/")[0]
        if node_a == node_b:
            node = next(entry for entry in self.nodes if entry.name == node_a)
            link = node.intra_link
        else:
            link = self.inter_link
        if link is None:
            raise ConfigError(f"cluster '{self.name}' has no link between '{first}' and '{second}'")
        return link


@dataclass(frozen=True)
class RuntimeProfile:
    """What a serving runtime can load, so that a search only makes plans that somebody can serve.

    Attributes:
        ties: groups of linear roles that must share a precision.
        weight_formats, activation_formats, kv_formats: allowed format names, which may be glob patterns
            ("int4_g*"); None allows all.
        kv_is_global: whether the KV cache has one precision for all layers.
        mixed_within_layer: whether units of one layer may differ.
        fuses_ties: whether tied linears (q/k/v, gate/up) run as one kernel.
        fuses_norm_and_add: whether a norm runs in one kernel with the addition whose sum it reads.
        step_overhead_s: host time of one pass of a micro-batch (scheduling, sampling), on top of the kernels.
    """

    name: str
    description: str
    ties: tuple[tuple[str, ...], ...] = ()
    weight_formats: tuple[str, ...] | None = None
    activation_formats: tuple[str, ...] | None = None
    kv_formats: tuple[str, ...] | None = None
    kv_is_global: bool = False
    mixed_within_layer: bool = True
    fuses_ties: bool = False
    fuses_norm_and_add: bool = False
    step_overhead_s: float = 0.0
    source: str = ""
    content_hash: str = ""

    def allows(self, tensor: Literal["weights", "activations", "kv"], format_name: str) -> bool:
        """Return whether the runtime can load a tensor in a format, by its canonical name."""
        lists = {
            "weights": self.weight_formats,
            "activations": self.activation_formats,
            "kv": self.kv_formats,
        }
        patterns = lists[tensor]
        return patterns is None or any(fnmatchcase(format_name, pattern) for pattern in patterns)
