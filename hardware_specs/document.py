"""The shape of spec files: closed pydantic models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dse.documents import Closed
from hardware_specs.spec import Availability, DeviceClass, LinkKind, Scope, Support, TopologyKind

Confidence = Literal["high", "medium", "low"]


class Quantity(Closed):
    """A number with its unit, inside an entry that has one source for all its numbers."""

    value: Any
    unit: str


class Leaf(Quantity):
    """A number with its unit and where it comes from: free text, or the id of an entry of ``sources``."""

    source: str
    note: str = ""
    confidence: Confidence = "high"


class PriceLeaf(Leaf):
    """A price and the year or month it was true, as "2025" or "2026-05"."""

    date: str = Field(default="", pattern=r"^\d{4}(-\d{2})?$|^$")


class PathDocument(Closed):
    """What the device does with one compute kind."""

    support: Support
    rate: Leaf | None = None
    compute_as: str | None = None
    reason: str = ""


class WeightOnlyDocument(Closed):
    """Widths of integer weights that kernels expand on the fly."""

    bits: tuple[int, ...]
    source: str
    reason: str = ""


class PairDocument(Closed):
    """What the device does with one pair of operand kinds, where that is not what each kind alone says."""

    weights: str
    activations: str
    support: Support
    compute_as: str | None = None
    source: str
    reason: str = ""


class ArithmeticDocument(Closed):
    """Operations per cycle and core, known apart from the rates: what a rate is checked against."""

    kind: str
    per_cycle: Leaf


class SparsityDocument(Closed):
    """What the vendor says of sparsity; rates here are dense whatever it says."""

    statement: str
    source: str
    speedup: Leaf | None = None


class TopologyDocument(Closed):
    """How the devices of a domain are joined; ``dims`` are the sides of the largest torus or mesh."""

    kind: TopologyKind
    source: str
    dims: tuple[int, ...] = ()
    neighbours: Leaf | None = None
    note: str = ""


class IntervalDocument(Closed):
    """Ratios of measured to predicted time: a tenth is below ``low``, a tenth above ``high``."""

    low: Any
    high: Any


class CollectiveDocument(Closed):
    """All-reduce of one library over a link, all of one fit."""

    start: Quantity
    hop: Quantity
    efficiency: Any
    half: Quantity
    source: str
    provenance: Literal["calibrated", "analytic"] = "calibrated"
    interval: IntervalDocument | None = None


class TierDocument(Closed):
    """One memory; ``weights`` and ``kv`` say what may be placed there (the main tier holds both)."""

    name: str
    kind: str
    main: bool = False
    weights: bool | None = Field(default=None, strict=True)
    kv: bool | None = Field(default=None, strict=True)
    scope: Scope = "device"
    via: LinkKind | None = None
    capacity: Leaf
    bandwidth: Leaf | None = None
    energy: Leaf | None = None


class LinkDocument(Closed):
    """One link; bandwidth is per device, and per direction unless ``direction`` says both are added."""

    name: str
    kind: LinkKind
    direction: Literal["per_direction", "bidirectional"] = "per_direction"
    bandwidth: Leaf
    latency: Leaf
    energy: Leaf | None = None
    max_devices: Leaf | None = None
    topology: TopologyDocument | None = None
    collectives: dict[str, CollectiveDocument] = Field(default_factory=dict)


class PowerDocument(Closed):
    """Board power."""

    tdp: Leaf | None = None
    typical: Leaf | None = None
    static: Leaf | None = None
    static_note: str = ""
    main_memory: Leaf | None = None
    per_flop: dict[str, Leaf] = Field(default_factory=dict)


class TilingDocument(Closed):
    """Tiles of a matrix kernel."""

    wave: Any
    small_loss: Any
    split_loss: Any


class DepthDocument(Closed):
    """Latency along the contraction axis."""

    time: Quantity
    exponent: Any


class ReturningDocument(Closed):
    """Weights that come back before they have left the chip."""

    half: Quantity
    speedup: Any


class SmallBatchDocument(Closed):
    """The kernel for few rows."""

    flop_efficiency: Any
    byte_efficiency: Any
    floor: Quantity


class QueryTilesDocument(Closed):
    """Query tiles of prefill attention."""

    rows: int = Field(ge=1, strict=True)
    least_rows: int = Field(ge=1, strict=True)
    longest: Any
    tile: Quantity | None = None
    width_power: Any = 0.0


class KernelDocument(Closed):
    """Constants of one kernel profile, all of one fit."""

    flop_efficiency: Any
    byte_efficiency: Any
    floor: Quantity
    exponent: Any
    source: str
    provenance: Literal["calibrated", "analytic"] = "calibrated"
    context_log: Quantity | None = None
    wave: Quantity | None = None
    wave_share: Any = None
    activation_efficiency: Any = None
    tiling: TilingDocument | None = None
    depth: DepthDocument | None = None
    returning: ReturningDocument | None = None
    quantize_efficiency: Any = None
    small_batch: SmallBatchDocument | None = None
    dense_fallback: bool = Field(default=False, strict=True)
    exp_efficiency: Any = None
    query_tiles: QueryTilesDocument | None = None
    interval: IntervalDocument | None = None


class FamilyDocument(Closed):
    """A file of ``defaults/``: kernels that devices of a class share."""

    kernels: dict[str, KernelDocument]


class LinksDocument(Closed):
    """``defaults/links.yaml``: collectives that links of a kind share."""

    scale_up: dict[str, CollectiveDocument]
    host: dict[str, CollectiveDocument]


class DeviceDocument(Closed):
    """A file of ``devices/``; what nobody published is absent.

    Attributes:
        availability: "incomplete" devices lack so much that nothing on them is timed.
        missing: what is absent although people ask for it (a dotted path), and why.
        exceptions: which rule of ``hardware_specs.sanity`` the device rightly breaks, and why.
        sources: texts that numbers may name by their key.
        arithmetic: operations per cycle and core, known apart from the rates: what a rate is checked against.
        compute: every kind of ``parts.COMPUTE_KINDS``; rates are dense.
        pairs: pairs of operand kinds where each kind alone does not say what happens.
        memory: fast to slow; one tier is ``main``.
        kernels: constants fitted to this device; the rest come from its class.
    """

    name: str
    vendor: str
    device_class: DeviceClass = Field(alias="class")
    description: str
    availability: Availability = "shipping"
    missing: dict[str, str] = Field(default_factory=dict)
    exceptions: dict[str, str] = Field(default_factory=dict)
    year: int | None = Field(default=None, strict=True)
    sources: dict[str, str] = Field(default_factory=dict)
    process: Leaf | None = None
    cores: Leaf | None = None
    clock: Leaf | None = None
    arithmetic: tuple[ArithmeticDocument, ...] = ()
    compute: dict[str, PathDocument]
    pairs: tuple[PairDocument, ...] = ()
    weight_only: WeightOnlyDocument
    sparsity: SparsityDocument | None = None
    memory: tuple[TierDocument, ...] = ()
    reserve: Leaf | None = None
    links: tuple[LinkDocument, ...] = ()
    power: PowerDocument
    kernels: dict[str, KernelDocument] = Field(default_factory=dict)
    price: PriceLeaf | None = None


class NodeDocument(Closed):
    """One machine of a cluster: ``count`` devices of one type."""

    name: str
    device: str
    count: int = Field(default=1, ge=1, strict=True)
    memory_limit: Leaf | None = None
    intra_link: LinkDocument | None = None
    host_memory: tuple[TierDocument, ...] = ()


class ClusterDocument(Closed):
    """A file of ``clusters/``."""

    name: str
    description: str
    source: str
    sources: dict[str, str] = Field(default_factory=dict)
    nodes: tuple[NodeDocument, ...] = Field(min_length=1)
    inter_link: LinkDocument | None = None
    grid_intensity: Leaf | None = None


class RuntimeDocument(Closed):
    """A file of ``runtimes/``; an absent list of formats allows all."""

    name: str
    description: str
    source: str
    ties: tuple[tuple[str, ...], ...] = ()
    weight_formats: tuple[str, ...] | None = None
    activation_formats: tuple[str, ...] | None = None
    kv_formats: tuple[str, ...] | None = None
    kv_is_global: bool = False
    mixed_within_layer: bool = True
    fuses_ties: bool = False
    fuses_norm_and_add: bool = False
    step_overhead: Leaf | None = None
