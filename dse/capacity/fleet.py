"""The problem of what to buy, as plain data: node types, replicas on them, requests, and who may serve whom.

A *demand* is one length bucket of one request class, at a rate. An *option* is a replica of a plan that may
be built on some devices. A *route* says that an option (or a pair of them, prefill and decode apart) can
serve a demand, and which share of the replica each request per second takes; shares of unlike requests add
up, as in Melange (arXiv 2404.14527), but once per resource of the replica (time, cache) instead of once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FleetObjective = Literal["cost", "energy", "carbon", "load"]
Part = Literal["both", "prefill", "decode"]
FleetStatus = Literal["optimal", "feasible", "infeasible"]
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class NodeType:
    """What can be bought or rented, one machine.

    Attributes:
        n_devices: that replicas share.
        usd_per_h: rent, or what owning costs per hour.
        n_available: how many there are at most, None for any number.
        static_w: drawn while it is on; peak_w: what power limits count; rack_units: likewise. All 0 where
            unknown.
        carbon_g_per_kwh: of its grid.
        usd_per_kwh: what energy beside the static one costs its owner, 0 where it is in the rent.
    """

    name: str
    n_devices: int
    usd_per_h: float
    n_available: int | None = None
    static_w: float = 0.0
    peak_w: float = 0.0
    rack_units: float = 0.0
    carbon_g_per_kwh: float = 0.0
    usd_per_kwh: float = 0.0


@dataclass(frozen=True)
class Option:
    """A replica that may be built; ``devices`` are (node type index, devices of it that one replica takes).

    ``n_max`` bounds the number of such replicas, None for no bound.
    """

    name: str
    devices: tuple[tuple[int, int], ...]
    n_max: int | None = None


@dataclass(frozen=True)
class Demand:
    """Requests of one class and one length bucket, per second."""

    request_class: str
    name: str
    rate_per_s: float


@dataclass(frozen=True)
class Use:
    """What one request per second takes of a replica: shares of its resources, of which all add up to 1.

    An option has as many resources as its longest ``shares``, e.g. (time, cache).
    """

    option: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Route:
    """A way to serve a demand, or its prefill or decode where the two have pools of their own.

    Attributes:
        uses: what a request takes of replicas.
        attained_frac: per level of ``FleetProblem.levels`` the share of these requests that will meet it;
            None for levels that the other part decides.
        energy_j: beside static energy, per request.
        part: each request that is prefilled on a "prefill" route is decoded on a "decode" route of the same
            ``chain``, any one.
        chain: what prefill and decode must have in common, e.g. the precisions.
    """

    demand: int
    uses: tuple[Use, ...]
    attained_frac: tuple[float | None, ...] = ()
    energy_j: float = 0.0
    part: Part = "both"
    chain: str = ""


@dataclass(frozen=True)
class LevelRow:
    """A service level: of the requests of the demands, ``min_frac`` must meet it."""

    name: str
    demands: tuple[int, ...]
    min_frac: float


@dataclass(frozen=True)
class Limits:
    """What all nodes together may not exceed; None is no limit."""

    max_usd_per_h: float | None = None
    max_power_w: float | None = None
    max_rack_units: float | None = None

    def parts(self) -> tuple[tuple[str, float, str], ...]:
        """Return (field of ``NodeType`` that adds up, limit, unit) of the limits that are set."""
        every = (
            ("usd_per_h", self.max_usd_per_h, "USD/h"),
            ("peak_w", self.max_power_w, "W"),
            ("rack_units", self.max_rack_units, "rack units"),
        )
        return tuple((name, limit, unit) for name, limit, unit in every if limit is not None)

    def without(self, part: str) -> Limits:
        """Return the limits without the one on a field of ``NodeType``."""
        return Limits(
            None if part == "usd_per_h" else self.max_usd_per_h,
            None if part == "peak_w" else self.max_power_w,
            None if part == "rack_units" else self.max_rack_units,
        )


@dataclass(frozen=True)
class FleetProblem:
    """All of it.

    ``n_slices``: a demand is routed in so many equal parts, each to one route (Melange's slices; equal slices
    are one integer variable, which loses nothing); None for any split.
    """

    nodes: tuple[NodeType, ...]
    options: tuple[Option, ...]
    demands: tuple[Demand, ...]
    routes: tuple[Route, ...]
    levels: tuple[LevelRow, ...] = ()
    limits: Limits = Limits()
    n_slices: int | None = None

    def node_share(self, option: int) -> tuple[tuple[int, float], ...]:
        """Return (node type, nodes that one replica takes); a node is cut into equal parts.

        A part holds as many devices as the largest that all parts of the node can have, so 3 of 8 devices
        take half a node. Replicas of more than a node take whole ones. Where the parts of a node nest (1, 2,
        4, 8), any numbers that add up also fit.
        """
        shares = []
        for node, wanted in self.options[option].devices:
            whole = self.nodes[node].n_devices
            parts = whole // wanted
            shares.append((node, 1.0 / parts if parts else float(-(-wanted // whole))))
        return tuple(shares)


@dataclass(frozen=True)
class Fleet:
    """An answer with its proof.

    Attributes:
        n_nodes: per node type; n_replicas: per option; routed_frac: per route the share of its demand.
        value: of the objective: USD/h, W, g/h of CO2e, or the factor of the load that is carried ("load").
        bound: proven bound on it; gap_frac: |value - bound| / value. "optimal" only within 1e-6.
        usd_per_h, energy_w, carbon_g_per_h: of this fleet, whatever the objective.
        reason: why there is none, where that is so.
    """

    status: FleetStatus
    objective: FleetObjective
    n_nodes: tuple[int, ...]
    n_replicas: tuple[int, ...]
    routed_frac: tuple[float, ...]
    value: float | None
    bound: float | None
    gap_frac: float | None
    time_s: float
    usd_per_h: float = 0.0
    energy_w: float = 0.0
    carbon_g_per_h: float = 0.0
    reason: str = ""


def totals(
    problem: FleetProblem, n_nodes: tuple[int, ...], routed_frac: tuple[float, ...]
) -> tuple[float, float, float]:
    """Return (USD/h, W, g/h of CO2e) of nodes and of what they serve."""
    usd = sum(node.usd_per_h * n for node, n in zip(problem.nodes, n_nodes, strict=True))
    watts = [node.static_w * n for node, n in zip(problem.nodes, n_nodes, strict=True)]
    for route, frac in zip(problem.routes, routed_frac, strict=True):
        for node, power_w in dynamic_w(problem, route):
            watts[node] += power_w * frac
            usd += power_w * frac / 1e3 * problem.nodes[node].usd_per_kwh
    grams = sum(node.carbon_g_per_kwh * w / 1e3 for node, w in zip(problem.nodes, watts, strict=True))
    return usd, sum(watts), grams


def dynamic_w(problem: FleetProblem, route: Route) -> list[tuple[int, float]]:
    """Return (node type, W beside static power) of serving a whole demand by a route.

    The energy of a request is split evenly over the node types that it visits.
    """
    visited = [node for use in route.uses for node, _ in problem.options[use.option].devices]
    power_w = route.energy_j * problem.demands[route.demand].rate_per_s
    return [(node, power_w / len(visited)) for node in visited]
