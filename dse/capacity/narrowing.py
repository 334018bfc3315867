"""Problems of many options: solve with a few of them, and prove that the others cannot help.

The prices of the linear relaxation say what a replica of every option is worth at best. One that costs more
than it is worth by more than the distance from the relaxation to a known fleet is in no better fleet (reduced
cost fixing, with a replica's worth bounded by a fractional knapsack per resource).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from dse.capacity.fleet import Fleet, FleetObjective, FleetProblem
from dse.capacity.fleet_solver import (
    OPTIMAL_GAP_FRAC,
    SolverOptions,
    build_program,
    serving_cost,
    solve_directly,
)

FIRST_OPTIONS = 36


@dataclass(frozen=True)
class _Relaxed:
    """The linear relaxation: its value, replicas per option, and by how much each option costs too much."""

    value: float
    replicas: np.ndarray
    excess: np.ndarray


def solve_large(problem: FleetProblem, objective: FleetObjective, options: SolverOptions) -> Fleet:
    """Return the best fleet of a problem with many options, with a bound over all of them."""
    began = time.monotonic()
    relaxed = _relaxed(problem, objective)
    if relaxed is None:
        return Fleet("infeasible", objective, (), (), (), None, None, None, time.monotonic() - began)
    order = np.lexsort((relaxed.excess, -relaxed.replicas))
    best: tuple[Fleet, list[int]] | None = None
    bound, size = relaxed.value, FIRST_OPTIONS
    while True:
        kept = sorted(int(o) for o in order[:size])
        left_s = options.time_s - (time.monotonic() - began)
        whole = len(kept) == len(problem.options)
        limits = replace(options, time_s=max(1.0, left_s if whole else left_s / 2))
        found = solve_directly(_narrow(problem, kept), objective, limits)
        if found.value is not None and (best is None or best[0].value is None or found.value < best[0].value):
            best = found, kept
        if best is None or best[0].value is None:
            if whole or left_s <= 0:
                return replace(found, time_s=time.monotonic() - began)
            size = len(problem.options)
            continue
        value = best[0].value
        useful = set(np.flatnonzero(relaxed.excess <= (value - relaxed.value) * (1 + 1e-9) + 1e-9))
        if useful <= set(kept) and found.bound is not None:
            bound = max(bound, min(value, found.bound))
        gap = (value - bound) / value if value else 0.0
        if gap <= options.gap_frac or useful <= set(kept) or left_s <= 0:
            break
        order = np.array(sorted(useful | set(best[1]), key=lambda o: (o not in best[1], relaxed.excess[o])))
        size = len(order)
    return _widened(problem, best[0], best[1], bound, time.monotonic() - began)


def _narrow(problem: FleetProblem, kept: list[int]) -> FleetProblem:
    place = {option: index for index, option in enumerate(kept)}
    routes = [route for route in problem.routes if all(use.option in place for use in route.uses)]
    return replace(
        problem,
        options=tuple(problem.options[o] for o in kept),
        routes=tuple(
            replace(route, uses=tuple(replace(use, option=place[use.option]) for use in route.uses))
            for route in routes
        ),
    )


def _widened(problem: FleetProblem, fleet: Fleet, kept: list[int], bound: float, time_s: float) -> Fleet:
    """Return a fleet of the narrow problem as one of the whole."""
    place = {option: index for index, option in enumerate(kept)}
    inside = iter(fleet.routed_frac)
    value = fleet.value or 0.0
    bound = min(bound, value)
    gap_frac = (value - bound) / value if value else 0.0
    return replace(
        fleet,
        status="optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible",
        n_replicas=tuple(
            fleet.n_replicas[place[o]] if o in place else 0 for o in range(len(problem.options))
        ),
        routed_frac=tuple(
            next(inside) if all(use.option in place for use in route.uses) else 0.0
            for route in problem.routes
        ),
        bound=bound,
        gap_frac=gap_frac,
        time_s=time_s,
    )


def _relaxed(problem: FleetProblem, objective: FleetObjective) -> _Relaxed | None:
    """Solve the relaxation and price every option; None where even that is infeasible."""
    from ortools.math_opt.python import mathopt

    program = build_program(problem, objective, SolverOptions(integer_nodes=False))
    result = mathopt.solve(program.model, mathopt.SolverType.GLOP)
    if not result.has_primal_feasible_solution():
        return None
    price = result.dual_values
    cost = np.array(
        [
            sum(-price(program.node_rows[node]) * share for node, share in problem.node_share(o))
            for o in range(len(problem.options))
        ]
    )
    rates = [demand.rate_per_s for demand in problem.demands]
    level_rate = [sum(rates[d] for d in level.demands) for level in problem.levels]
    level_price = [price(row) for row in program.level_rows]
    members = [set(level.demands) for level in problem.levels]
    gains: list[list[tuple[float, tuple[float, ...]]]] = [[] for _ in problem.options]
    for route in problem.routes:
        gain = -serving_cost(problem, objective, route)
        if route.part != "decode":
            gain += price(program.served_rows[route.demand])
        if route.part != "both":
            gain += price(program.handed_rows[route.demand, route.chain]) * (
                1 if route.part == "prefill" else -1
            )
        for k, level in enumerate(problem.levels):
            attained = route.attained_frac[k]
            if attained is not None and route.demand in members[k]:
                weight = rates[route.demand] / level_rate[k]
                gain += level_price[k] * (attained - level.min_frac) * weight
        if gain > 0:
            for use in route.uses:
                taken = tuple(share * rates[route.demand] for share in use.shares)
                gains[use.option].append((gain, taken))
    worth = np.array([_worth(entries) for entries in gains])
    replicas = np.array([float(result.variable_values(variable)) for variable in program.replicas])
    return _Relaxed(float(result.objective_value()), replicas, np.maximum(cost - worth, 0.0))


def _worth(entries: list[tuple[float, tuple[float, ...]]]) -> float:
    """Return the most that one replica can gain: the least over its resources of a fractional knapsack."""
    best = float("inf")
    for resource in range(max((len(taken) for _, taken in entries), default=0)):
        rows = [(gain, taken[resource] if resource < len(taken) else 0.0) for gain, taken in entries]
        rows.sort(key=lambda row: -row[0] / max(row[1], 1e-300))
        room, total = 1.0, 0.0
        for gain, size in rows:
            part = 1.0 if size <= room else room / size
            total += gain * part
            room -= size * part
            if room <= 0:
                break
        best = min(best, total)
    return best if entries else 0.0


def promising(problem: FleetProblem, objective: FleetObjective) -> list[float]:
    """Return by how much each option costs more than it is worth in the linear relaxation, 0 for the best."""
    relaxed = _relaxed(problem, objective)
    return [0.0] * len(problem.options) if relaxed is None else [float(value) for value in relaxed.excess]
