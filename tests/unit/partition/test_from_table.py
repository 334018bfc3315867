"""Folding a cost table into layer choices, and plans out of arrangements.

Oracle: ``dse.evaluate.plan_cost.predict``, which prices a plan from the table without the planner's arrays.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_table import CostTable
from dse.evaluate.plan_cost import predict
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.partition.from_table import TableProblem, divisors, problem_from_table
from dse.partition.objective import objective_s, penalty_of, quantity, stage_use
from dse.partition.orders import candidate_orders
from dse.partition.problem import Goal, Objective
from dse.partition.solve import solve
from dse.plan import Assignment, Plan, Stage
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import Cluster
from tests.factories import make_cluster, make_graph, make_spec

FORMATS = ("bf16", "int8_row", "int4_g64")
WORKLOAD = Workload(batch=4, prompt_tokens=64, output_tokens=8)


def precision(name: str):
    return parse_precision({"weights": name, "activations": "bf16", "kv": "bf16"})


def sensitivity_of(table: CostTable, seed: int = 0) -> SensitivityTable:
    """Random penalties, listed in another order than the table's, with 0 for the reference."""
    rng = np.random.default_rng(seed)
    units, precisions = [u.name for u in table.units][::-1], table.precisions[::-1]
    penalty = rng.lognormal(0, 1, (len(units), len(precisions)))
    penalty[:, precisions.index(precision("bf16"))] = 0.0
    return SensitivityTable("kl", "nats", tuple(units), precisions, penalty, "toy", "0", 0, 1)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    small = make_spec("small", bandwidth=2e11, capacity=1.02e9, reserve=1e9)
    rates = {"bf16": 50e12, "fp16": 50e12, "fp32": 5e12}
    other = make_spec("other", native=rates, bandwidth=1e11, capacity=1.015e9, weight_only_bits=(8,))
    return make_cluster({"small": small, "other": other}, {"small": 2, "other": 1})


@pytest.fixture(scope="module")
def table(cluster: Cluster) -> CostTable:
    graph = make_graph(n_layers=4, tied=True)
    units = units_of(graph, "sublayer")
    return build_cost_table(
        graph, units, [precision(name) for name in FORMATS], cluster.specs, WORKLOAD, (1, 2, 4)
    )


@pytest.fixture(scope="module")
def folded(table: CostTable, cluster: Cluster) -> TableProblem:
    return problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD)


@pytest.mark.parametrize("max_penalty", [None, 4.0])
def test_planned_seconds_and_memory_are_the_plans(
    folded: TableProblem, table: CostTable, cluster: Cluster, max_penalty: float | None
) -> None:
    solution = solve(folded.problem, Goal(max_penalty=max_penalty))
    assert solution.status == "optimal"
    assert solution.arrangement is not None
    plan = folded.plan_from(solution.arrangement, model="toy", granularity="sublayer")
    cost = predict(plan, table, cluster, WORKLOAD)
    assert cost.total_s == pytest.approx(solution.value, rel=1e-12)
    assert cost.fits
    use = stage_use(folded.problem, solution.arrangement)
    for device, need in zip(use.devices, use.memory_bytes, strict=True):
        memory = cost.memory_bytes[folded.problem.devices[device]]
        assert memory.total - memory.reserve == pytest.approx(need, rel=1e-12)
    table_penalty = sensitivity_of(table)
    expected = sum(
        table_penalty.penalty[table_penalty.units.index(unit), table_penalty.precisions.index(p)]
        for unit, p in plan.assignment.items
    )
    assert solution.penalty == pytest.approx(expected)


def test_no_plan_at_all_is_better(folded: TableProblem, table: CostTable, cluster: Cluster) -> None:
    """Random plans of all kinds, priced without the planner, never beat it under their own penalty."""
    rng = np.random.default_rng(3)
    names = [unit.name for unit in table.units]
    table_penalty = sensitivity_of(table)
    n_fit = 0
    for _ in range(60):
        picks = rng.integers(0, len(FORMATS), len(names))
        order = rng.permutation(3)[: rng.integers(1, 4)]
        cuts = np.sort(rng.choice(np.arange(1, 4), len(order) - 1, replace=False))
        bounds = [0, *cuts.tolist(), 4]
        plan = Plan(
            "toy",
            cluster.name,
            Assignment(tuple(zip(names, (table.precisions[q] for q in picks), strict=True))),
            tuple(
                Stage((folded.problem.devices[d],), (bounds[s], bounds[s + 1])) for s, d in enumerate(order)
            ),
            int(rng.choice([1, 2, 4])),
            int(rng.choice([1, 2, 4])),
        )
        try:
            cost = predict(plan, table, cluster, WORKLOAD)
        except ConfigError:
            continue  # a precision that the device does not run
        if not cost.fits:
            continue
        n_fit += 1
        penalty = sum(
            table_penalty.penalty[table_penalty.units.index(unit), table_penalty.precisions.index(p)]
            for unit, p in plan.assignment.items
        )
        solution = solve(folded.problem, Goal(max_penalty=penalty))
        assert solution.value is not None
        assert solution.value <= cost.total_s * (1 + 1e-9)
    assert n_fit >= 10


def test_folded_choices_are_the_undominated_combinations(table: CostTable, cluster: Cluster) -> None:
    """All 9 combinations of a layer, compared by definition."""
    folded = problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD)
    problem = folded.problem
    for layer in range(4):
        found = set(folded.combinations[layer])
        assert found <= set(itertools.product(range(3), repeat=2))
        everything = problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD, max_choices=9)
        assert set(everything.combinations[layer]) == found
        for a, b in itertools.permutations(range(len(folded.combinations[layer])), 2):
            covers = problem.allowed[:, layer, a] | ~problem.allowed[:, layer, b]
            shared = problem.allowed[:, layer, a] & problem.allowed[:, layer, b]
            no_worse = (
                covers.all()
                and (problem.prefill_s[:, shared, layer, a] <= problem.prefill_s[:, shared, layer, b]).all()
                and (problem.decode_s[:, shared, layer, a] <= problem.decode_s[:, shared, layer, b]).all()
                and problem.memory_bytes[layer, a] <= problem.memory_bytes[layer, b]
                and problem.penalty[layer, a] <= problem.penalty[layer, b]
            )
            assert not no_worse


def test_unsupported_precisions_stay_off_their_device(folded: TableProblem, table: CostTable) -> None:
    other = table.devices.index("other")
    assert not table.supported[other].all()
    for layer, combinations in enumerate(folded.combinations):
        for k, combination in enumerate(combinations):
            able = table.supported[other, list(combination)].all()
            assert folded.problem.allowed[2, layer, k] == able


def test_thinning_is_counted_and_keeps_uniform_choices(table: CostTable, cluster: Cluster) -> None:
    full = problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD)
    widest = max(len(c) for c in full.combinations)
    thin = problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD, max_choices=4)
    assert full.n_thinned == 0
    assert widest > 4
    assert thin.n_thinned > 0
    assert max(len(c) for c in thin.combinations) == 4
    for layer in range(4):
        kept = set(full.combinations[layer])
        assert {(q, q) for q in range(3)} & kept <= set(thin.combinations[layer])


def test_unmixed_layers_and_pins(table: CostTable, cluster: Cluster) -> None:
    usable = np.ones((len(table.units), 3), dtype=bool)
    usable[0] = [True, False, False]
    folded = problem_from_table(
        table, sensitivity_of(table), cluster, WORKLOAD, usable=usable, mixed_within_layer=False
    )
    assert folded.combinations[0] == ((0, 0),)
    assert all(a == b for combinations in folded.combinations for a, b in combinations)
    assert folded.choice_of(0, [precision("bf16")] * 2) == 0
    assert folded.choice_of(0, [precision("int8_row")] * 2) is None


def test_candidate_orders_skip_equivalent_ones(cluster: Cluster) -> None:
    """Two equal devices and another: 3 places for the odd one."""
    orders, complete = candidate_orders(cluster)
    assert complete
    assert len(orders) == 3
    assert {order.index(2) for order in orders} == {0, 1, 2}


def test_many_devices_keep_nodes_together() -> None:
    specs = {name: make_spec(name) for name in ("a", "b", "c")}
    orders, complete = candidate_orders(make_cluster(specs, {"a": 4, "b": 4, "c": 1}))
    assert not complete
    assert len(orders) == 6


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)


def test_objective_of_every_micro_batch(folded: TableProblem, table: CostTable, cluster: Cluster) -> None:
    """Single-device plans of uniform bf16 at all nine pairs of micro-batches."""
    from dse.partition.problem import Arrangement

    choices = tuple(folded.choice_of(layer, [precision("bf16")] * 2) for layer in range(4))
    for p, d in itertools.product((1, 2, 4), repeat=2):
        arrangement = Arrangement(((0, 0, 3), (2, 3, 4)), choices, p, d)
        plan = folded.plan_from(arrangement, model="toy")
        expected = predict(plan, table, cluster, WORKLOAD).total_s
        assert objective_s(folded.problem, Goal(), arrangement) == pytest.approx(expected, rel=1e-12)
        assert penalty_of(folded.problem, arrangement) == 0.0


def test_mismatches_are_named(table: CostTable, cluster: Cluster) -> None:
    sensitivity = sensitivity_of(table)
    with pytest.raises(ConfigError, match="micro-batch 3 is not priced"):
        problem_from_table(table, sensitivity, cluster, WORKLOAD, prefill_micro_batches=(3,))
    fewer = SensitivityTable("kl", "nats", ("x",), sensitivity.precisions, np.zeros((1, 3)), "toy", "0", 0, 1)
    with pytest.raises(ConfigError, match=r"lacks layers\.0\.attention"):
        problem_from_table(table, fewer, cluster, WORKLOAD)
    with pytest.raises(ConfigError, match="no device can run"):
        problem_from_table(
            table, sensitivity, cluster, WORKLOAD, usable=np.zeros((len(table.units), 3), dtype=bool)
        )


@pytest.mark.parametrize("objective", ["energy", "cost", "tpot"])
def test_energy_money_and_latency_are_the_plans(
    table: CostTable, cluster: Cluster, objective: Objective
) -> None:
    folded = problem_from_table(table, sensitivity_of(table), cluster, WORKLOAD, with_energy=True)
    goal = Goal(objective=objective, max_penalty=4.0)
    solution = solve(folded.problem, goal)
    assert solution.status == "optimal"
    assert solution.arrangement is not None
    plan = folded.plan_from(solution.arrangement, model="toy", granularity="sublayer")
    cost = predict(plan, table, cluster, WORKLOAD)
    expected: dict[Objective, float | None] = {
        "time": cost.total_s,
        "ttft": cost.ttft_s,
        "tpot": cost.tpot_s,
        "energy": cost.energy_j_per_token,
        "cost": cost.cost_usd_per_mtok,
    }
    for name, value in expected.items():
        assert quantity(folded.problem, goal, solution.arrangement, name) == pytest.approx(value, rel=1e-12)
    assert solution.value == pytest.approx(expected[objective], rel=1e-12)
