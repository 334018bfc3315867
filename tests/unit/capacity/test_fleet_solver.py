"""The fleet program. Oracles: enumeration of all fleets with scipy's linear programs, Melange's published
example (6.70 USD/h), and the LP relaxation as a lower bound."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from dse.capacity.fleet import (
    Demand,
    Fleet,
    FleetProblem,
    LevelRow,
    Limits,
    NodeType,
    Option,
    Route,
    Use,
)
from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.instances import melange_example, one_device_nodes, seeded
from dse.capacity.shortage import shortage
from dse.errors import ConfigError


def fits(problem: FleetProblem, replicas: tuple[int, ...]) -> bool:
    """Whether these replicas carry the load (independent of the solver: scipy's simplex)."""
    n = len(problem.routes)
    equal = np.zeros((len(problem.demands), n))
    most: list[np.ndarray] = []
    right: list[float] = []
    keys = sorted({(u.option, k) for r in problem.routes for u in r.uses for k in range(len(u.shares))})
    rows = {key: np.zeros(n) for key in keys}
    for i, route in enumerate(problem.routes):
        equal[route.demand, i] = 1
        for use in route.uses:
            for k, share in enumerate(use.shares):
                rows[use.option, k][i] += share * problem.demands[route.demand].rate_per_s
    for (option, _), row in rows.items():
        most.append(row)
        right.append(replicas[option])
    for index, level in enumerate(problem.levels):
        row = np.zeros(n)
        for i, route in enumerate(problem.routes):
            if route.demand in level.demands:
                row[i] = (level.min_frac - route.attained_frac[index]) * problem.demands[
                    route.demand
                ].rate_per_s
        most.append(row)
        right.append(1e-9)
    found = linprog(np.zeros(n), np.array(most), np.array(right) + 1e-9, equal, np.ones(len(equal)))
    return bool(found.status == 0)


def cheapest(problem: FleetProblem, most: int) -> float | None:
    """Enumerate all numbers of replicas, each on the fewest nodes."""
    best = None
    for replicas in itertools.product(range(most + 1), repeat=len(problem.options)):
        taken = np.zeros(len(problem.nodes))
        for option, count in enumerate(replicas):
            for node, share in problem.node_share(option):
                taken[node] += share * count
        nodes = np.ceil(taken - 1e-9)
        if any(
            t.n_available is not None and n > t.n_available for t, n in zip(problem.nodes, nodes, strict=True)
        ):
            continue
        cost = float(sum(n * t.usd_per_h for n, t in zip(nodes, problem.nodes, strict=True)))
        if (best is None or cost < best) and fits(problem, replicas):
            best = cost
    return best


def random_problem(seed: int) -> FleetProblem:
    rng = np.random.default_rng(seed)
    nodes = (
        NodeType("small", 2, float(rng.uniform(1, 3)), n_available=3),
        NodeType("big", 4, float(rng.uniform(4, 9)), n_available=2),
    )
    options = (Option("s1", ((0, 1),)), Option("s2", ((0, 2),)), Option("b2", ((1, 2),)))
    demands = tuple(Demand("chat", f"d{i}", float(rng.uniform(0.2, 2))) for i in range(3))
    routes = tuple(
        Route(
            d,
            (Use(o, tuple(rng.uniform(0.05, 0.5, 2) / (1 + o))),),
            (float(rng.uniform(0.7, 1.0)),),
        )
        for d in range(3)
        for o in range(3)
        if rng.uniform() < 0.85 or o == 2
    )
    routes += (Route(0, (Use(0, (0.05,)), Use(2, (0.0, 0.08))), (1.0,)),)  # prefill and decode apart
    return FleetProblem(nodes, options, demands, routes, (LevelRow("ttft", (0, 1, 2), 0.8),))


@pytest.mark.parametrize("seed", range(12))
def test_equals_enumeration(seed: int) -> None:
    problem = random_problem(seed)
    expected = cheapest(problem, 5)
    found = solve_fleet(problem)
    if expected is None:
        assert found.status == "infeasible"
        return
    assert found.status == "optimal"
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert fits(problem, found.n_replicas)
    relaxed = solve_fleet(problem, options=SolverOptions(integer_nodes=False))
    assert relaxed.value is not None
    assert relaxed.value <= expected * (1 + 1e-9)


def test_melange_example(shared_data: Path) -> None:
    """6.70 USD/h, proven (``dse bench capacity`` times it); the packaged numbers are the published file's."""
    data = json.loads((shared_data / "planning" / "melange_example.json").read_text())
    problem = one_device_nodes(
        {name: device["cost_usd_per_h"] for name, device in data["devices"].items()},
        {name: device["requests_per_s"] for name, device in data["devices"].items()},
        data["workload_distribution"],
        data["total_request_rate_per_s"],
        data["slice_factor"],
    )
    assert problem == melange_example()
    found = solve_fleet(problem)
    assert found.status == "optimal"
    assert found.value == pytest.approx(data["optimum_usd_per_h"], abs=1e-9)
    assert found.bound == pytest.approx(data["optimum_usd_per_h"], abs=1e-6)
    for lone, cost in (("A10G", 12.12), ("A100-80GB", 7.34)):
        only = tuple(replace(node, n_available=None if node.name == lone else 0) for node in problem.nodes)
        assert solve_fleet(replace(problem, nodes=only)).value == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_buckets_within_a_hundredth(seed: int) -> None:
    found = solve_fleet(seeded(seed=seed), options=SolverOptions(time_s=10.0, gap_frac=0.01))
    assert found.gap_frac is not None
    assert found.gap_frac <= 0.01
    relaxed = solve_fleet(seeded(seed=seed), options=SolverOptions(integer_nodes=False))
    assert relaxed.value is not None
    assert found.value is not None
    assert relaxed.value <= found.value <= relaxed.value * 1.03


def test_equal_slices_are_one_variable() -> None:
    """Oracle: the same bucket written as eight demands, each wholly on one route."""
    whole = melange_example()
    apart = replace(
        whole,
        demands=tuple(replace(d, rate_per_s=d.rate_per_s / 8) for d in whole.demands for _ in range(8)),
        routes=tuple(replace(route, demand=8 * route.demand + k) for route in whole.routes for k in range(8)),
        n_slices=1,
    )
    expected = solve_fleet(apart, options=SolverOptions(time_s=20))
    found = solve_fleet(replace(whole, n_slices=8))
    assert expected.status == "optimal"
    assert found.value == pytest.approx(expected.value, rel=1e-6)


def test_other_objectives() -> None:
    """Two kinds of node carry one request a second each: closed forms."""
    nodes = (
        NodeType("dear", 1, 5.0, 4, static_w=100.0, peak_w=300.0, carbon_g_per_kwh=50.0),
        NodeType("dirty", 1, 1.0, 4, static_w=90.0, peak_w=300.0, carbon_g_per_kwh=500.0, usd_per_kwh=0.1),
    )
    options = (Option("a", ((0, 1),)), Option("b", ((1, 1),)))
    demands = (Demand("c", "d", 2.0),)
    routes = (Route(0, (Use(0, (1.0,)),), energy_j=10.0), Route(0, (Use(1, (1.0,)),), energy_j=50.0))
    problem = FleetProblem(nodes, options, demands, routes)
    cost = solve_fleet(problem)
    assert cost.n_nodes == (0, 2)
    assert cost.value == pytest.approx(2 * 1.0 + 100 / 1e3 * 0.1)
    assert cost.energy_w == pytest.approx(2 * 90 + 2 * 50)
    assert solve_fleet(problem, "energy").value == pytest.approx(2 * 100 + 2 * 10)
    carbon = solve_fleet(problem, "carbon")
    assert carbon.value == pytest.approx((2 * 100 + 2 * 10) / 1e3 * 50)
    assert carbon.carbon_g_per_h == pytest.approx(carbon.value)
    limited = replace(problem, limits=Limits(max_usd_per_h=7.0, max_power_w=1000.0))
    assert solve_fleet(limited, "load").value == pytest.approx(1.5)
    unlimited = replace(problem, nodes=tuple(replace(node, n_available=None) for node in nodes))
    with pytest.raises(ConfigError, match="without a limit"):
        solve_fleet(unlimited, "load")


def test_what_is_short_is_named() -> None:
    problem = random_problem(0)
    none = replace(problem, nodes=tuple(replace(node, n_available=1) for node in problem.nodes))
    heavy = replace(none, demands=tuple(replace(d, rate_per_s=30 * d.rate_per_s) for d in none.demands))
    found = shortage(heavy)
    assert found.carried_frac is not None
    assert found.carried_frac < 1
    assert any("more big" in remedy for remedy in found.remedies)
    strict = replace(problem, levels=(replace(problem.levels[0], min_frac=0.999),))
    level = shortage(strict)
    assert level.broken[0][0] == "ttft"
    best = [max(r.attained_frac[0] for r in problem.routes if r.demand == d) for d in range(3)]
    rates = [d.rate_per_s for d in problem.demands]
    assert level.broken[0][1] == pytest.approx(np.dot(best, rates) / sum(rates), abs=1e-6)
    lost = replace(problem, routes=tuple(r for r in problem.routes if r.demand != 1))
    assert "d1: too long" in shortage(lost, {"d1": "too long"}).reason
    budget = replace(problem, limits=Limits(max_usd_per_h=0.5))
    assert "USD/h instead of 0.5" in shortage(budget).reason


def test_shares_of_a_node_nest() -> None:
    problem = FleetProblem(
        (NodeType("n", 8, 1.0),), tuple(Option(str(k), ((0, k),)) for k in (1, 2, 3, 4, 8, 12)), (), ()
    )
    shares = [problem.node_share(o)[0][1] for o in range(6)]
    assert shares == [1 / 8, 1 / 4, 1 / 2, 1 / 2, 1, 2]


def test_fleet_without_answer() -> None:
    problem = replace(random_problem(1), routes=())
    found: Fleet = solve_fleet(problem)
    assert found.status == "infeasible"
    assert found.value is None
    assert "no option serves" in found.reason
