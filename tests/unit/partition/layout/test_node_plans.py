"""Replicas of one node against every plan of it."""

from __future__ import annotations

import pytest

from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.node_plans import replica_plans
from dse.sensitivity.noise import noise_table
from hardware_specs.spec import RuntimeProfile
from tests.factories import make_cluster, make_graph, make_spec
from tests.layout_oracle import every_plan, period_s

GRAPH = make_graph(n_layers=3)
PRECISIONS = tuple(parse_precision(name) for name in ("bf16", "int4_g64"))
WORKLOAD = Workload(2, 128, 8)


def inputs_of(graph=GRAPH, runtime=None) -> ModelInputs:
    units = units_of(graph, "block")
    runtime = runtime or RuntimeProfile("any", "made up")
    return ModelInputs(graph, units, PRECISIONS, noise_table(graph, units, PRECISIONS), runtime)


@pytest.fixture(scope="module")
def cluster():
    return make_cluster({"toy": make_spec(reserve=0.0)}, {"toy": 3})


def test_every_number_of_devices_gets_its_best_replicas(cluster):
    inputs = inputs_of()
    plans = replica_plans(inputs, cluster, WORKLOAD, device_counts=(1, 2, 3))
    table = inputs.table(cluster, WORKLOAD, (1, 2))
    penalty = {
        (unit, precision.name): inputs.sensitivity.penalty[u, q]
        for u, unit in enumerate(inputs.sensitivity.units)
        for q, precision in enumerate(PRECISIONS)
    }
    everything = [
        (sum(stage.tensor_parallel for stage in plan.stages), cost.ttft_s, cost.tpot_s, plan, cost)
        for plan, cost in every_plan(table, cluster, WORKLOAD, (1, 2), (1, 2), penalty, 1e9)
    ]
    for most in (1, 2, 3):
        within = [entry for entry in everything if entry[0] <= most]
        found = [plan for plan in plans if plan.n_devices <= most]
        n_tokens = WORKLOAD.batch * WORKLOAD.output_tokens
        best_rate = max(n_tokens / period_s(cost, plan, WORKLOAD) for *_, plan, cost in within)
        assert min(p.ttft_s for p in found) == pytest.approx(min(e[1] for e in within), rel=5.1e-3)
        assert min(p.tpot_s for p in found) == pytest.approx(min(e[2] for e in within), rel=5.1e-3)
        assert max(p.tokens_per_s for p in found) == pytest.approx(best_rate, rel=5.1e-3)


def test_no_replica_beats_another(cluster):
    plans = replica_plans(inputs_of(), cluster, WORKLOAD)
    costs = [(p.n_devices, p.ttft_s, p.tpot_s, -p.tokens_per_s) for p in plans]
    for a in costs:
        assert not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in costs)
    assert all(plan.n_devices == sum(plan.degrees) for plan in plans)
    assert {plan.n_devices for plan in plans} <= {1, 2}


def test_rent_is_unknown_where_a_price_is(cluster):
    cluster = make_cluster({"toy": make_spec(price=None)}, {"toy": 1})
    (plan,) = replica_plans(inputs_of(), cluster, WORKLOAD, objectives=("tpot",))
    assert plan.usd_per_h is None
