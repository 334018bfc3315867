"""One model, one load, one catalogue: priced once, solved for as many questions as are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dse.capacity.analytic import Serving
from dse.capacity.assemble import Assembled, Terms, assemble, served_by
from dse.capacity.buckets import Buckets, buckets_of
from dse.capacity.fleet import Fleet, FleetObjective
from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.load import Load
from dse.capacity.narrowing import promising
from dse.capacity.options import ReplicaOption
from hardware_specs.catalogue import Catalogue

SHORTLIST = 28
GAP_FRAC = 0.01


@dataclass(frozen=True, eq=False)
class Answer:
    """A fleet and the problem that it solves."""

    assembled: Assembled
    fleet: Fleet

    @property
    def exists(self) -> bool:
        """Whether anything does."""
        return self.fleet.value is not None

    def nodes(self) -> dict[str, int]:
        """Return how many machines of each type the fleet has."""
        counts = zip(self.assembled.problem.nodes, self.fleet.n_nodes, strict=True) if self.exists else ()
        return {node.name: n for node, n in counts if n}

    def attained(self) -> dict[str, float]:
        """Return the analytic share of requests that meets each level."""
        problem, out = self.assembled.problem, {}
        for index, level in enumerate(problem.levels):
            inside = set(level.demands)
            met = total = 0.0
            for route, frac in zip(problem.routes, self.fleet.routed_frac, strict=True):
                attained = route.attained_frac[index]
                if route.demand in inside and attained is not None:
                    weight = frac * problem.demands[route.demand].rate_per_s
                    met, total = met + weight * attained, total + weight
            out[level.name] = met / total if total else 0.0
        return out


@dataclass(frozen=True, eq=False)
class Market:
    """What can be bought for a load.

    Attributes:
        options: replicas on the machines of the catalogue.
        buckets: of the load; their rate is what is planned for.
        served: options priced for the buckets.
        solver: limits of every solve.
    """

    catalogue: Catalogue
    options: tuple[ReplicaOption, ...]
    load: Load
    buckets: Buckets
    served: Mapping[str, Serving] = field(repr=False)
    terms: Terms = field(default_factory=Terms)
    objective: FleetObjective = "cost"
    solver: SolverOptions = field(default_factory=lambda: SolverOptions(time_s=20.0, gap_frac=GAP_FRAC))

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        options: Sequence[ReplicaOption],
        load: Load,
        *,
        rate_per_s: float | None = None,
        terms: Terms | None = None,
        objective: FleetObjective = "cost",
    ) -> Market:
        """Price the options for a load; ``rate_per_s`` None plans for its busiest minute."""
        buckets = buckets_of(load, rate_per_s)
        served = served_by(options, buckets)
        return cls(catalogue, tuple(options), load, buckets, served, terms or Terms(), objective)

    def assembled(self) -> Assembled:
        """Return the fleet problem."""
        return assemble(self.catalogue, self.options, self.load, self.buckets, self.terms, self.served)

    def solve(self, objective: FleetObjective | None = None) -> Answer:
        """Return the best fleet."""
        assembled = self.assembled()
        return Answer(assembled, solve_fleet(assembled.problem, objective or self.objective, self.solver))

    def at_rate(self, rate_per_s: float) -> Market:
        """Return the market for another rate; the lengths stay."""
        return replace(self, buckets=replace(self.buckets, rate_per_s=rate_per_s))

    def repriced(self, buckets: Buckets) -> Market:
        """Return the market for other lengths, which every option is priced for anew."""
        return replace(self, buckets=buckets, served=served_by(self.options, buckets))

    def under(self, terms: Terms) -> Market:
        """Return the market under other prices and limits."""
        return replace(self, terms=terms)

    def only(self, names: Sequence[str]) -> Market:
        """Return the market with some of the options, by name."""
        wanted = set(names)
        return replace(self, options=tuple(option for option in self.options if option.name in wanted))

    def with_load(self, load: Load) -> Market:
        """Return the market for the same requests with other service levels."""
        return replace(self, load=load)

    def shortlist(self, answer: Answer) -> Market:
        """Return the market with the options that the relaxed problem finds most worth their price.

        Questions that are asked many times go to these; every machine keeps its two best.
        """
        scores = promising(answer.assembled.problem, "cost")
        best: dict[str, float] = {}
        for group, score in zip(answer.assembled.groups, scores, strict=True):
            best[group.option.name] = min(score, best.get(group.option.name, score))
        used = {
            group.option.name
            for group, n in zip(answer.assembled.groups, answer.fleet.n_replicas, strict=True)
            if n
        }
        ranked = sorted(best, key=lambda name: (name not in used, best[name]))
        chosen = set(ranked[:SHORTLIST])
        offers: dict[int, int] = {}
        offer_of = {option.name: option.offer for option in self.options if not option.also}
        for name in ranked:
            offer = offer_of.get(name)
            if offer is not None and offers.get(offer, 0) < 2:
                chosen.add(name)
                offers[offer] = offers.get(offer, 0) + 1
        return self.only(sorted(chosen))
