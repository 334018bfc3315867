"""Fleets that survive the loss of a machine. Oracle: enumeration of all fleets and of all their losses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dse.capacity.fleet import Demand, FleetProblem, NodeType, Option, Route, Use
from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.survival import surviving_fleet
from tests.unit.capacity.test_fleet_solver import fits


def small(seed: int) -> FleetProblem:
    """Three types of machines (one without bound on its number), four options, two demands."""
    rng = np.random.default_rng(seed)
    nodes = (
        NodeType("a", 2, float(rng.uniform(1, 3)), 4),
        NodeType("b", 1, float(rng.uniform(1, 3)), 3),
        NodeType("c", 2, float(rng.uniform(2, 5)), None if seed % 2 else 3),
    )
    options = (
        Option("a1", ((0, 1),)),
        Option("b1", ((1, 1),)),
        Option("c2", ((2, 2),)),
        Option("a1b1", ((0, 1), (1, 1))),
    )
    demands = (Demand("x", "short", 1.0), Demand("x", "long", 0.5))
    speed = (0.5, 0.45, 0.25, 0.2)
    routes = tuple(
        Route(d, (Use(o, (float(speed[o] * rng.uniform(0.5, 1.5) * (1 + d)), 0.05)),))
        for o in range(len(options))
        for d in range(len(demands))
        if (o, d) != (1, 1)
    )
    return FleetProblem(nodes, options, demands, routes)


def serves(problem: FleetProblem, n_nodes: tuple[int, ...]) -> bool:
    """Whether any replicas on the machines serve everything."""
    most = [
        int(min(n_nodes[node] / share + 1e-9 for node, share in problem.node_share(o)))
        for o in range(len(problem.options))
    ]
    for replicas in itertools.product(*(range(n + 1) for n in most)):
        taken = np.zeros(len(n_nodes))
        for option, count in enumerate(replicas):
            for node, share in problem.node_share(option):
                taken[node] += share * count
        if (taken <= np.array(n_nodes) + 1e-9).all() and fits(problem, replicas):
            return True
    return False


def cheapest_survivor(problem: FleetProblem) -> float | None:
    best = None
    ranges = [range(4 if node.n_available is None else node.n_available + 1) for node in problem.nodes]
    fleets = sorted(
        itertools.product(*ranges),
        key=lambda n: sum(k * node.usd_per_h for k, node in zip(n, problem.nodes, strict=True)),
    )
    for n_nodes in fleets:
        left = [tuple(k - (i == lost) for i, k in enumerate(n_nodes)) for lost, n in enumerate(n_nodes) if n]
        if left and all(serves(problem, rest) for rest in left):
            best = sum(k * node.usd_per_h for k, node in zip(n_nodes, problem.nodes, strict=True))
            break
    return best


@pytest.mark.parametrize("seed", range(8))
def test_equals_enumeration(seed: int) -> None:
    problem = small(seed)
    found = surviving_fleet(problem)
    expected = cheapest_survivor(problem)
    assert expected is not None
    assert found.value == pytest.approx(expected)
    assert found.bound == pytest.approx(expected)
    alone = solve_fleet(problem).value
    assert alone is not None
    assert expected > alone


def test_there_may_be_none() -> None:
    problem = small(0)
    nodes = tuple(replace(node, n_available=0 if i else 1) for i, node in enumerate(problem.nodes))
    assert surviving_fleet(replace(problem, nodes=nodes)).status == "infeasible"


def test_a_time_limit_still_bounds() -> None:
    found = surviving_fleet(small(1), SolverOptions(time_s=20.0, gap_frac=0.5))
    assert found.value is not None
    assert found.bound is not None
    exact = cheapest_survivor(small(1))
    assert exact is not None
    assert found.bound <= exact + 1e-6 <= found.value + 1e-5
