"""Why no fleet will do: which service level breaks first, what is short, and what would mend it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dse.capacity.fleet import FleetProblem, Limits
from dse.capacity.fleet_solver import SolverOptions, least_missed, solve_fleet

QUICK = SolverOptions(time_s=10.0, gap_frac=1e-2)


@dataclass(frozen=True)
class Shortage:
    """What is missing.

    Attributes:
        broken: the levels that cannot hold at any fleet size, (name, share of requests that can at best meet
            it); the first one breaks first.
        carried_frac: the share of the load that the limits allow with all levels held, None where levels are
            broken anyway.
        remedies: each one alone lets everything be served.
        reason: all of it in one line.
    """

    broken: tuple[tuple[str, float], ...]
    carried_frac: float | None
    remedies: tuple[str, ...]
    reason: str


def unlimited(problem: FleetProblem) -> FleetProblem:
    """Return the problem with any number of nodes and without limits."""
    return replace(
        problem,
        nodes=tuple(replace(node, n_available=None) for node in problem.nodes),
        options=tuple(replace(option, n_max=None) for option in problem.options),
        limits=Limits(),
    )


def shortage(problem: FleetProblem, unserved: dict[str, str] | None = None) -> Shortage:
    """Say what an infeasible problem lacks.

    Args:
        problem: without a feasible fleet.
        unserved: demand name -> why no option serves it, where that is known.
    """
    served = {route.demand for route in problem.routes}
    lost = [demand for index, demand in enumerate(problem.demands) if index not in served]
    if lost:
        first = max(lost, key=lambda demand: demand.rate_per_s)
        why = (unserved or {}).get(first.name, "no option can")
        text = f"no option serves {first.request_class} requests of {first.name}: {why}"
        return Shortage((), None, (), text)
    broken = _broken_levels(problem)
    if broken:
        name, reached = broken[0]
        target = next(level.min_frac for level in problem.levels if level.name == name)
        remedy = "relax its limit or offer faster nodes"
        if reached >= 0.001:
            remedy = f"ask {name} of {reached:.1%} of the requests, {remedy}"
        more = f"; then {', '.join(other for other, _ in broken[1:])}" if broken[1:] else ""
        text = f"{name} breaks first: at best {reached:.1%} of the requests meet it, not {target:.1%}{more}"
        return Shortage(tuple(broken), None, (remedy,), f"{text}; to mend it, {remedy}")
    return _short_of_supply(problem)


def _broken_levels(problem: FleetProblem) -> list[tuple[str, float]]:
    """Levels that no fleet of any size holds together with the others, the worst first."""
    free = unlimited(problem)
    if solve_fleet(free, options=replace(QUICK, integer_nodes=False)).status != "infeasible":
        return []
    missed = least_missed(free, SolverOptions(time_s=10.0, integer_nodes=False, shortfall=True))
    targets = {level.name: level.min_frac for level in problem.levels}
    found = [(name, max(0.0, targets[name] - by)) for name, by in missed.items() if by > 1e-6]
    return sorted(found, key=lambda entry: entry[1] - targets[entry[0]])


def _short_of_supply(problem: FleetProblem) -> Shortage:
    """The levels can hold, so nodes, power, racks or money are short: how much of each alone would do."""
    carried = solve_fleet(problem, "load", QUICK).value or 0.0
    remedies = []
    for index, node in enumerate(problem.nodes):
        if node.n_available is None:
            continue
        nodes = list(problem.nodes)
        nodes[index] = replace(node, n_available=None)
        found = solve_fleet(replace(problem, nodes=tuple(nodes)), options=QUICK)
        if found.n_nodes:
            more = found.n_nodes[index] - node.n_available
            if more > 0:
                remedies.append(f"{more} more {node.name}")
    for part, limit, unit in problem.limits.parts():
        found = solve_fleet(replace(problem, limits=problem.limits.without(part)), options=QUICK)
        if found.n_nodes:
            need = sum(n * getattr(node, part) for n, node in zip(found.n_nodes, problem.nodes, strict=True))
            remedies.append(f"{need:.6g} {unit} instead of {limit:.6g}")
    text = f"the nodes and limits carry {carried:.0%} of the load"
    mend = "; ".join(f"({i}) {remedy}" for i, remedy in enumerate(remedies, start=1))
    return Shortage((), carried, tuple(remedies), f"{text}; it would do with any of {mend}" if mend else text)
