"""The cheapest fleet that still serves its load at its levels when any one machine fails.

One integer program: the machines are bought once, and for every type of machine that the fleet has there is a
copy of the replicas and of the routing on one machine fewer of it (the robust counterpart of a finite set of
scenarios, Ben-Tal and Nemirovski, Math. Program. 88, 2000). Copies are added for the types that turn out to
be bought, so that what is left out relaxes the problem and every bound holds.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

from dse.capacity.fleet import Fleet, FleetProblem
from dse.capacity.fleet_solver import (
    Program,
    SolverOptions,
    add_serving,
    build_program,
    nothing_found,
    read_fleet,
    run_program,
)


def surviving_fleet(problem: FleetProblem, options: SolverOptions | None = None) -> Fleet:
    """Return the cheapest fleet that survives the loss of any one machine at the same levels.

    What is lost is replaced by nothing: the replicas are built anew on the machines that are left, and the
    requests are routed anew.

    Args:
        problem: the data; its ``n_slices`` must be None.
        options: when to stop; the time is for all solves together.

    Returns:
        The fleet with the replicas and the routing while all machines are there. Its bound holds for all
        fleets that survive.
    """
    options = options or SolverOptions()
    began = time.monotonic()
    lost: set[int] = set()
    most = _most_nodes(problem)
    while True:
        left_s = max(1.0, options.time_s - (time.monotonic() - began))
        limits = replace(options, time_s=left_s)
        program = build_program(problem, "cost", limits)
        for node in sorted(lost):
            _add_copy(problem, program, node, most[node], limits)
        result = run_program(program, limits)
        if not result.has_primal_feasible_solution():
            return nothing_found("cost", result, time.monotonic() - began)
        fleet = read_fleet(problem, "cost", program, result, time.monotonic() - began, limits)
        new = {index for index, n in enumerate(fleet.n_nodes) if n} - lost
        if not new:
            return fleet
        lost |= new


def _add_copy(
    problem: FleetProblem, program: Program, node: int, most: float, options: SolverOptions
) -> None:
    """Serve everything once more on one machine of a type fewer, if the fleet has any of it."""
    model = program.model
    has_any = model.add_binary_variable()
    model.add_linear_constraint(program.nodes[node] <= most * has_any)
    model.add_linear_constraint(program.nodes[node] >= has_any)
    left: list[Any] = [n - has_any if index == node else n for index, n in enumerate(program.nodes)]
    add_serving(problem, Program(model, nodes=left), options)


def _most_nodes(problem: FleetProblem) -> list[float]:
    """Return how many machines of each type no best fleet exceeds.

    With one more than every option's replicas need if each carried the whole load, all of it and all its
    failures can be served.
    """
    needs: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for route in problem.routes:
        rate = problem.demands[route.demand].rate_per_s
        for use in route.uses:
            taken = max(use.shares, default=0.0) * rate
            needs[use.option][route.demand] = max(needs[use.option][route.demand], taken)
    most = [1.0] * len(problem.nodes)
    for option, by_demand in needs.items():
        for node, share in problem.node_share(option):
            most[node] += share * math.ceil(sum(by_demand.values()) + 1e-6)
    return [
        math.ceil(n) if node.n_available is None else float(node.n_available)
        for n, node in zip(most, problem.nodes, strict=True)
    ]
