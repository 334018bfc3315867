"""From replicas, length buckets and prices to the fleet problem, and back to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from dse.capacity.analytic import OperatingPoint, Serving, operating_points, serving
from dse.capacity.apart import decode_points, prefill_points, transfer_s
from dse.capacity.buckets import Buckets, Range
from dse.capacity.fleet import (
    Demand,
    FleetProblem,
    LevelRow,
    Limits,
    NodeType,
    Option,
    Route,
    Use,
)
from dse.capacity.load import Floats, Load, ServiceLevel
from dse.capacity.options import ReplicaOption
from dse.errors import ConfigError
from hardware_specs.catalogue import Catalogue

GOODPUT = "goodput"


@dataclass(frozen=True, eq=False)
class Group:
    """Replicas of one option at one operating point: what an option of the fleet problem means."""

    option: ReplicaOption
    point: OperatingPoint


@dataclass(frozen=True)
class Stream:
    """Requests that a router can tell apart: a class and range of prompts, and of outputs if predicted.

    ``members`` are the buckets inside.
    """

    class_index: int
    prompts: Range
    outputs: Range
    members: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Assembled:
    """The fleet problem with what it was made from.

    Attributes:
        groups: per option of the problem.
        streams: per demand of the problem the requests that it holds.
        unserved: demand name -> why no option serves it.
    """

    problem: FleetProblem
    groups: tuple[Group, ...]
    streams: tuple[Stream, ...]
    buckets: Buckets
    load: Load
    catalogue: Catalogue
    unserved: dict[str, str]


@dataclass(frozen=True)
class Terms:
    """Prices and limits that are not in the catalogue.

    Attributes:
        spot: whether machines are rented on the spot market where it has a price.
        max_usd_per_h: budget.
        price_factor: node name -> factor on its price.
        derating: option name -> factor on what its requests take, from simulations that failed.
        route_by_output: whether the router knows how long the output will be.
        separate_pools: whether prefill and decode may also have pools of their own, joined by the network.
    """

    spot: bool = False
    max_usd_per_h: float | None = None
    price_factor: Mapping[str, float] | None = None
    derating: Mapping[str, float] | None = None
    route_by_output: bool = False
    separate_pools: bool = False


def levels_of(load: Load) -> list[tuple[int, ServiceLevel]]:
    """Return (class, level) of all classes."""
    return [(index, level) for index, entry in enumerate(load.classes) for level in entry.levels]


def assemble(
    catalogue: Catalogue,
    options: Sequence[ReplicaOption],
    load: Load,
    buckets: Buckets,
    terms: Terms = Terms(),
    served: Mapping[str, Serving] | None = None,
) -> Assembled:
    """Return the problem of serving the buckets with the options.

    Args:
        catalogue: the machines; one without a price in the terms asked for has none on offer.
        options: replicas on them.
        load: for the classes and levels.
        buckets: what to plan for.
        terms: prices and limits.
        served: of ``served_by``, to spare its computation: only lengths and shares count, not the rate.

    Raises:
        ConfigError: no machine has a price.
    """
    priced = served_by(options, buckets) if served is None else served
    levels_asked = levels_of(load)
    nodes = _nodes(catalogue, terms)
    if all(node.n_available == 0 for node in nodes):
        raise ConfigError("no machine of the catalogue has such a price", path=catalogue.name)
    groups = _undominated(
        [
            Group(option, point)
            for option in options
            if option.name in priced
            for point in _points(option, priced[option.name], buckets, levels_asked, catalogue, terms)
        ],
        catalogue,
    )
    streams = streams_of(buckets, by_output=terms.route_by_output)
    mixing = _mixing(streams, buckets)
    demands = tuple(
        Demand(load.classes[s.class_index].name, _name_of(s, load), float(rate))
        for s, rate in zip(
            streams,
            [buckets.share[list(s.members)].sum() * buckets.rate_per_s for s in streams],
            strict=True,
        )
    )
    levels, columns = _level_rows(load, streams)
    routes: list[Route] = []
    for o, group in enumerate(groups):
        factor = (terms.derating or {}).get(group.option.name, 1.0)
        met = mixing @ _with_goodput(group.point.attained_frac, load, buckets, columns)
        shares, energy_j = mixing @ group.point.shares * factor, mixing @ group.point.energy_j
        for d in range(len(demands)):
            uses = (Use(o, tuple(shares[d].tolist())),)
            attained = tuple(None if isnan(value) else value for value in met[d].tolist())
            part, chain = group.point.part, group.option.bits.name
            routes.append(Route(d, uses, attained, float(energy_j[d]), part, "" if part == "both" else chain))
    problem = FleetProblem(
        nodes=nodes,
        options=tuple(Option(group.option.name, group.option.devices) for group in groups),
        demands=demands,
        routes=tuple(routes),
        levels=levels,
        limits=Limits(terms.max_usd_per_h, catalogue.max_power_w, catalogue.max_rack_units),
    )
    names = [demand.name for demand in demands]
    unserved = dict.fromkeys(names, "no option holds its context") if not groups else {}
    return Assembled(problem, groups, streams, buckets, load, catalogue, unserved)


def streams_of(buckets: Buckets, *, by_output: bool) -> tuple[Stream, ...]:
    """Return what a router can tell apart."""
    found: dict[tuple[int, Range, Range], list[int]] = {}
    for d, c in enumerate(buckets.class_index):
        outputs = buckets.output_ranges[d] if by_output else (1, None)
        found.setdefault((int(c), buckets.prompt_ranges[d], outputs), []).append(d)
    return tuple(Stream(*key, tuple(members)) for key, members in found.items())


def _mixing(streams: Sequence[Stream], buckets: Buckets) -> Floats:
    """Return (streams, D) the share of each bucket in its stream."""
    out = np.zeros((len(streams), len(buckets.share)))
    for row, stream in zip(out, streams, strict=True):
        members = list(stream.members)
        row[members] = buckets.share[members] / buckets.share[members].sum()
    return out


def _name_of(stream: Stream, load: Load) -> str:
    """Return e.g. ``chat, prompts 192-383``."""

    def words(limits: Range) -> str:
        return f"{limits[0]}+" if limits[1] is None else f"{limits[0]}-{limits[1] - 1}"

    name = f"{load.classes[stream.class_index].name}, prompts {words(stream.prompts)}"
    return name if stream.outputs == (1, None) else f"{name}, outputs {words(stream.outputs)}"


def _points(
    option: ReplicaOption,
    served: Serving,
    buckets: Buckets,
    levels: Sequence[tuple[int, ServiceLevel]],
    catalogue: Catalogue,
    terms: Terms,
) -> list[OperatingPoint]:
    points = operating_points(served, buckets, levels)
    if terms.separate_pools and catalogue.network is not None:
        moving_s = transfer_s(buckets, option.replica.kv_bytes_per_token, catalogue.network)
        points += prefill_points(served, buckets, levels, moving_s)
        points += decode_points(served, buckets, levels, moving_s)
    return points


def served_by(options: Sequence[ReplicaOption], buckets: Buckets) -> dict[str, Serving]:
    """Price every option for the buckets, by name; options whose cache is too small are left out."""
    found: dict[str, Serving] = {}
    for option in options:
        priced = serving(option.steps, option.room, buckets)
        if priced is not None:
            found[option.name] = priced
    return found


def _nodes(catalogue: Catalogue, terms: Terms) -> tuple[NodeType, ...]:
    nodes = []
    for offer in catalogue.nodes:
        price = catalogue.usd_per_h(offer, spot=terms.spot)
        nodes.append(
            NodeType(
                offer.name,
                offer.n_devices,
                0.0 if price is None else price * (terms.price_factor or {}).get(offer.name, 1.0),
                0 if price is None else offer.n_available,
                static_w=offer.static_w or 0.0,
                peak_w=offer.peak_w or 0.0,
                rack_units=offer.rack_units or 0.0,
                carbon_g_per_kwh=catalogue.carbon_g_per_kwh or 0.0,
                usd_per_kwh=(catalogue.electricity_usd_per_kwh or 0.0) if offer.purchase is not None else 0.0,
            )
        )
    return tuple(nodes)


def _level_rows(load: Load, streams: Sequence[Stream]) -> tuple[tuple[LevelRow, ...], list[int | None]]:
    """Return the rows of all levels and goodputs, and for each the class of a goodput or None."""
    rows: list[LevelRow] = []
    columns: list[int | None] = []
    for index, level in levels_of(load):
        mine = tuple(d for d, stream in enumerate(streams) if stream.class_index == index)
        rows.append(LevelRow(f"{load.classes[index].name} {level.name}", mine, level.percentile / 100.0))
        columns.append(None)
    for index, entry in enumerate(load.classes):
        if entry.goodput_frac is not None:
            mine = tuple(d for d, stream in enumerate(streams) if stream.class_index == index)
            rows.append(LevelRow(f"{entry.name} {GOODPUT}", mine, entry.goodput_frac))
            columns.append(index)
    return tuple(rows), columns


def _with_goodput(attained: Floats, load: Load, buckets: Buckets, columns: Sequence[int | None]) -> Floats:
    """Append a column per goodput: the product of the class's levels, as if they were independent."""
    extra = []
    for column in columns:
        if column is not None:
            mine = [k for k, (index, _) in enumerate(levels_of(load)) if index == column]
            extra.append(np.where(buckets.class_index == column, attained[:, mine].prod(axis=1), 1.0))
    return np.concatenate([attained, np.array(extra).T.reshape(len(attained), -1)], axis=1)


def _alike(group: Group) -> tuple[object, str, str]:
    """What groups must have in common to take each other's place."""
    part = group.point.part
    machines = group.option.devices if group.option.also else group.option.offer
    return machines, part, "" if part == "both" else group.option.bits.name


def _undominated(groups: list[Group], catalogue: Catalogue) -> tuple[Group, ...]:
    """Leave out groups that another on the same machines beats in every share, level and energy.

    Compared per part of a machine, since replicas of unlike size hold it together.
    """
    rows = []
    for group in groups:
        offer = catalogue.nodes[group.option.offer]
        parts = 1 if group.option.also else max(1, offer.n_devices // group.option.n_devices)
        size = 1.0 / parts if group.option.n_devices <= offer.n_devices else group.option.n_devices
        rows.append(
            np.concatenate(
                [
                    (group.point.shares * size).ravel(),
                    -np.nan_to_num(group.point.attained_frac, nan=1.0).ravel().round(4),
                    group.point.energy_j,
                ]
            )
        )
    kept: list[int] = []
    for i, row in enumerate(rows):
        beaten = any(
            j != i
            and _alike(groups[j]) == _alike(groups[i])
            and (rows[j] <= row).all()
            and ((rows[j] < row).any() or j < i)
            for j in kept + list(range(i, len(rows)))
        )
        if not beaten:
            kept.append(i)
    return tuple(groups[i] for i in kept)
