"""What machines can be rented or bought: catalogues of nodes with prices, numbers, power and place.

A file of ``catalogues/`` is what a market or a data centre offers, as a file of ``clusters/`` is what stands
there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import Field

from dse.content import content_hash
from dse.documents import Closed, as_file, packaged_names, read_file, read_packaged, validate
from dse.errors import ConfigError
from hardware_specs.document import Leaf, LinkDocument, PriceLeaf, TierDocument
from hardware_specs.loader import PACKAGE, load_device
from hardware_specs.parts import link_of, memory_tier
from hardware_specs.reader import Reader
from hardware_specs.spec import Cluster, ClusterNode, HardwareSpec, Link, MemoryTier, Sourced

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Purchase:
    """What a machine costs its owner, straight-line over its life; running it costs electricity besides."""

    price_usd: float
    lifetime_s: float

    @property
    def usd_per_h(self) -> float:
        """Depreciation per hour."""
        return self.price_usd / (self.lifetime_s / SECONDS_PER_HOUR)


@dataclass(frozen=True)
class NodeOffer:
    """One type of machine, ``n_devices`` of one device type.

    Attributes:
        rent_usd_per_h: of the whole machine on demand; the sum of the device files' prices where the file
            gives none; None where neither knows. spot_usd_per_h: of machines that may be taken away.
        purchase: where the machine is bought instead.
        n_available: how many there are, None for any number.
        host_static_w, host_peak_w: beside the devices; None where unknown.
        rack_units: height, None where unknown.
        price_date: when the rent was true.
    """

    name: str
    spec: HardwareSpec
    n_devices: int
    intra_link: Link | None = None
    host_memory: tuple[MemoryTier, ...] = ()
    rent_usd_per_h: float | None = None
    spot_usd_per_h: float | None = None
    purchase: Purchase | None = None
    n_available: int | None = None
    host_static_w: float | None = None
    host_peak_w: float | None = None
    rack_units: float | None = None
    price_date: str = ""

    @property
    def static_w(self) -> float | None:
        """Power of a machine that is on, None where its devices' is unknown; an unknown host counts 0."""
        static_w = self.spec.power.static_w
        return None if static_w is None else static_w * self.n_devices + (self.host_static_w or 0.0)

    @property
    def peak_w(self) -> float | None:
        """Largest power of the machine, None where that of its devices is unknown."""
        tdp_w = self.spec.power.tdp_w
        return None if tdp_w is None else tdp_w * self.n_devices + (self.host_peak_w or 0.0)

    def gaps(self) -> tuple[str, ...]:
        """Return what is unknown, in words."""
        known = {
            "spot price": self.purchase is not None or self.spot_usd_per_h is not None,
            "idle power": self.static_w is not None,
            "power of the host": self.host_peak_w is not None,
            "rack units": self.rack_units is not None,
        }
        return tuple(what for what, is_known in known.items() if not is_known)


@dataclass(frozen=True)
class Catalogue:
    """Offers and the place where they would run.

    Attributes:
        network: joins machines; None where no replica or transfer may span two.
        electricity_usd_per_kwh: what an owner pays; carbon_g_per_kwh: of the grid, None where unknown.
        max_power_w, max_rack_units: of the place, None for no limit.
    """

    name: str
    description: str
    nodes: tuple[NodeOffer, ...]
    network: Link | None = None
    electricity_usd_per_kwh: float | None = None
    carbon_g_per_kwh: float | None = None
    max_power_w: float | None = None
    max_rack_units: float | None = None
    source: str = ""
    content_hash: str = ""
    sources: tuple[Sourced, ...] = field(default=(), hash=False)

    def cluster(self, offer: NodeOffer, n_nodes: int = 1) -> Cluster:
        """Return a cluster of equal machines of the catalogue, for pricing and planning a replica."""
        return self.cluster_of([(offer, offer.n_devices)] * n_nodes, f"{offer.name} x{n_nodes}")

    def cluster_of(self, machines: Sequence[tuple[NodeOffer, int]], name: str) -> Cluster:
        """Return a cluster of machines, of each of which only so many devices are used."""
        nodes = tuple(
            ClusterNode(
                f"{offer.name}-{[other.name for other, _ in machines[:index]].count(offer.name)}",
                offer.spec.name,
                n_devices,
                offer.intra_link if n_devices > 1 else None,
                host_memory=offer.host_memory,
            )
            for index, (offer, n_devices) in enumerate(machines)
        )
        return Cluster(
            name,
            f"{len(nodes)} machines of {self.name}",
            nodes,
            self.network if len(nodes) > 1 else None,
            {offer.spec.name: offer.spec for offer, _ in machines},
            source=self.source,
            content_hash=content_hash([self.content_hash, [[offer.name, n] for offer, n in machines]]),
        )

    def usd_per_h(self, offer: NodeOffer, *, spot: bool = False) -> float | None:
        """Return what a machine costs per hour, electricity of its idle power included where it is owned.

        None where no price is known, or with ``spot`` no spot price; an owned machine has no spot price and
        keeps its own.
        """
        if offer.purchase is not None:
            static_w = offer.static_w or 0.0
            return offer.purchase.usd_per_h + static_w / 1e3 * (self.electricity_usd_per_kwh or 0.0)
        return offer.spot_usd_per_h if spot else offer.rent_usd_per_h


class _PurchaseDocument(Closed):
    price: PriceLeaf
    lifetime: Leaf


class _PriceDocument(Closed):
    on_demand: PriceLeaf | None = None
    spot: PriceLeaf | None = None


class _HostDocument(Closed):
    static: Leaf | None = None
    peak: Leaf | None = None


class _OfferDocument(Closed):
    name: str
    device: str
    count: int = Field(default=1, ge=1, strict=True)
    price: _PriceDocument | None = None
    purchase: _PurchaseDocument | None = None
    available: Leaf | None = None
    host: _HostDocument = _HostDocument()
    rack_units: Leaf | None = None
    intra_link: LinkDocument | None = None
    host_memory: tuple[TierDocument, ...] = ()


class _PlaceDocument(Closed):
    power: Leaf | None = None
    rack_units: Leaf | None = None
    electricity: PriceLeaf | None = None
    carbon: Leaf | None = None


class CatalogueDocument(Closed):
    """A file of ``catalogues/``; what nobody published is absent."""

    name: str
    description: str
    source: str
    sources: dict[str, str] = Field(default_factory=dict)
    nodes: tuple[_OfferDocument, ...] = Field(min_length=1)
    network: LinkDocument | None = None
    place: _PlaceDocument = _PlaceDocument()


def catalogue_names() -> tuple[str, ...]:
    """Return the names of all packaged catalogues, sorted."""
    return packaged_names(PACKAGE, "catalogues")


def load_catalogue(name_or_path: str | Path) -> Catalogue:
    """Return a catalogue by its name, or from a file; device paths in it are relative to the file.

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that does not fit the
            schema, each in one line.
    """
    path = as_file(name_or_path)
    if path is None:
        return _packaged(str(name_or_path))

    def device(reference: str) -> HardwareSpec:
        return load_device(path.parent / reference if as_file(reference) else reference)

    return parse_catalogue(read_file(path), str(path), device)


@cache
def _packaged(name: str) -> Catalogue:
    content, file = read_packaged(PACKAGE, "catalogues", "catalogue", name)
    return parse_catalogue(content, file, load_device)


def parse_catalogue(content: object, file: str, device: Callable[[str], HardwareSpec]) -> Catalogue:
    """Return the catalogue of a parsed YAML document.

    Raises:
        ConfigError: as for clusters; also an availability of 0, a machine without a price, one that is both
            rented and bought, or an incomplete device.
    """
    document = validate(CatalogueDocument, content, file)
    read = Reader(file, document.sources)
    place = document.place
    offers: list[NodeOffer] = []
    for index, entry in enumerate(document.nodes):
        if entry.name in {offer.name for offer in offers}:
            raise ConfigError(
                f"node names must be unique, but '{entry.name}' is there twice",
                file=file,
                path=f"nodes.{index}.name",
            )
        offers.append(_offer(entry, f"nodes.{index}", read, device))
    network = None if document.network is None else link_of(document.network, "network", read)
    return Catalogue(
        name=document.name,
        description=document.description,
        nodes=tuple(offers),
        network=network,
        electricity_usd_per_kwh=read.maybe(place.electricity, "place.electricity", "usd_per_kwh", zero=True),
        carbon_g_per_kwh=read.maybe(place.carbon, "place.carbon", "g_per_kwh", zero=True),
        max_power_w=read.maybe(place.power, "place.power", "watt"),
        max_rack_units=read.maybe(place.rack_units, "place.rack_units", "count"),
        source=read.source(document.source, "source"),
        content_hash=content_hash([content, [offer.spec.content_hash for offer in offers]]),
        sources=tuple(read.sourced),
    )


def _offer(
    entry: _OfferDocument, path: str, read: Reader, device: Callable[[str], HardwareSpec]
) -> NodeOffer:
    try:
        spec = device(entry.device)
    except ConfigError as error:
        raise ConfigError(str(error), file=read.file, path=f"{path}.device") from error
    if spec.incomplete_reason is not None:
        raise ConfigError(f"{spec.name} is {spec.incomplete_reason}", file=read.file, path=f"{path}.device")
    link = (spec.link("scale_up") or spec.link("host")) if entry.count > 1 else None
    if entry.intra_link is not None:
        link = link_of(entry.intra_link, f"{path}.intra_link", read)
    rent, spot, date = _rent(entry, path, read, spec)
    purchase = None
    if entry.purchase is not None:
        purchase = Purchase(
            read.si(entry.purchase.price, f"{path}.purchase.price", "usd"),
            read.si(entry.purchase.lifetime, f"{path}.purchase.lifetime", "second"),
        )
    if (purchase is None) == (entry.price is None) and purchase is not None:
        raise ConfigError("is both rented ('price') and bought ('purchase')", file=read.file, path=path)
    if purchase is None and rent is None:
        raise ConfigError(
            f"no price is known: give 'price' or 'purchase' ({spec.name}'s file has no price either)",
            file=read.file,
            path=path,
        )
    return NodeOffer(
        name=entry.name,
        spec=spec,
        n_devices=entry.count,
        intra_link=link,
        host_memory=tuple(
            memory_tier(tier, f"{path}.host_memory.{tier.name}", read) for tier in entry.host_memory
        ),
        rent_usd_per_h=None if purchase is not None else rent,
        spot_usd_per_h=spot,
        purchase=purchase,
        n_available=read.count(entry.available, f"{path}.available"),
        host_static_w=read.maybe(entry.host.static, f"{path}.host.static", "watt", zero=True),
        host_peak_w=read.maybe(entry.host.peak, f"{path}.host.peak", "watt", zero=True),
        rack_units=read.maybe(entry.rack_units, f"{path}.rack_units", "count"),
        price_date=date,
    )


def _rent(
    entry: _OfferDocument, path: str, read: Reader, spec: HardwareSpec
) -> tuple[float | None, float | None, str]:
    """Return USD/h on demand and on the spot market, and the date of the former."""
    given = entry.price or _PriceDocument()
    spot = read.maybe(given.spot, f"{path}.price.spot", "usd_per_h")
    if given.on_demand is not None:
        rent = read.si(given.on_demand, f"{path}.price.on_demand", "usd_per_h")
        return rent, spot, given.on_demand.date
    if spec.price_usd_per_h is None:
        return None, spot, ""
    source = f"derived: {entry.count} times the price in {spec.name}'s file"
    rent = spec.price_usd_per_h * entry.count
    read.derived(f"{path}.price.on_demand", rent, "USD/h", source)
    return rent, spot, spec.price_date
