"""Step times and memory of replicas against the cost table, the plan's prediction and direct pricing."""

from __future__ import annotations

import numpy as np
import pytest

from dse.capacity.replica import Batching, Replica, replica_from_plan
from dse.capacity.step_times import TabulatedSteps
from dse.errors import ConfigError, DoesNotFitMemory
from dse.evaluate.build import build_cost_table
from dse.evaluate.plan_cost import predict
from dse.evaluate.tensor_parallel import TensorGroup
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from hardware_specs.spec import Cluster, RuntimeProfile
from tests.factories import make_cluster, make_graph, make_spec

RUNTIME = RuntimeProfile(
    "eager", "", ties=(("q_proj", "k_proj", "v_proj"),), fuses_ties=True, step_overhead_s=1e-4
)
PRECISIONS = tuple(parse_precision(name) for name in ("bf16", "int4_g64_asym"))
GRAPH = make_graph(n_layers=4)


def toy_cluster() -> Cluster:
    specs = {"toy": make_spec(), "slow": make_spec("slow", bandwidth=3e11)}
    return make_cluster(specs, {"toy": 4, "slow": 2})


def mixed_plan(stages: tuple[Stage, ...]) -> Plan:
    units = units_of(GRAPH, "block")
    items = tuple((unit.name, PRECISIONS[unit.layer % 2]) for unit in units)
    return Plan(GRAPH.model, "toys", Assignment(items), stages, 1, 1)


ARRANGEMENTS = {
    "one": (Stage(("n_toy/0",), (0, 4)),),
    "tensor": (Stage(("n_toy/0", "n_toy/1"), (0, 4), 2),),
    "pipeline": (Stage(("n_toy/0", "n_toy/1"), (0, 1), 2), Stage(("n_slow/0",), (1, 4))),
}


def replica(name: str, **options: object) -> Replica:
    return replica_from_plan(
        mixed_plan(ARRANGEMENTS[name]),
        GRAPH,
        toy_cluster(),
        max_context_tokens=8192,
        runtime=RUNTIME,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_single_request_costs_what_the_plan_is_predicted_to(name: str) -> None:
    cluster, prompt, output = toy_cluster(), 700, 12
    plan = mixed_plan(ARRANGEMENTS[name])
    group = TensorGroup(cluster.specs["toy"], 2, cluster.nodes[0].intra_link)  # type: ignore[arg-type]
    workload = Workload(1, prompt, output)
    units = units_of(GRAPH, "block")
    table = build_cost_table(
        GRAPH, units, PRECISIONS, cluster.specs, workload, [1], groups=[group], runtime=RUNTIME
    )
    predicted = predict(plan, table, cluster, workload)
    steps = replica(name).steps
    assert isinstance(steps, TabulatedSteps)
    prefill, hops = steps.prefill_costs([prompt]), steps.hop_costs([prompt])
    assert prefill[0].sum() + hops[0].sum() == pytest.approx(predicted.ttft_s, rel=1e-13)
    context = prompt + np.arange(1.0, output)
    decode = steps.decode_costs(1, context)
    decode_s = decode[0].sum() + (output - 1) * steps.hop_costs(1.0)[0].sum()
    assert decode_s == pytest.approx((output - 1) * predicted.tpot_s, rel=1e-13)
    joules = prefill[1].sum() + decode[1].sum() + hops[1].sum() + (output - 1) * steps.hop_costs(1.0)[1].sum()
    degree = [stage.tensor_parallel for stage in plan.stages]
    static_w = 50.0 * sum(degree)
    assert joules + static_w * predicted.total_s == pytest.approx(
        predicted.energy_j_per_token * output, rel=1e-12
    )


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_equal_sequences_cost_what_the_table_says(batch: int) -> None:
    cluster, workload = toy_cluster(), Workload(batch, 300, 2)
    units = units_of(GRAPH, "block")
    table = build_cost_table(GRAPH, units, PRECISIONS, cluster.specs, workload, [batch], runtime=RUNTIME)
    plan = mixed_plan(ARRANGEMENTS["one"])
    plan = Plan(plan.model, plan.cluster, plan.assignment, plan.stages, batch, batch)
    steps = replica("one").steps
    assert isinstance(steps, TabulatedSteps)
    tpot_s = predict(plan, table, cluster, workload).tpot_s
    assert steps.decode_costs(batch, 301.0)[0].sum() == pytest.approx(tpot_s, rel=1e-13)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_tables_hold_what_direct_pricing_gives(name: str) -> None:
    """Nodes are exact; between them the error stays below what the module states."""
    steps = replica(name).steps
    assert isinstance(steps, TabulatedSteps)
    rng = np.random.default_rng(0)
    for _ in range(60):
        n, whole, k = int(rng.integers(1, 200)), int(rng.integers(2, 6000)), int(rng.integers(1, 40))
        segment = steps.segment(n, whole)
        k = min(k, segment.steps_left(whole))
        direct = steps.decode_costs(n, whole + np.arange(k)).sum(axis=-1)
        others_s, others_j = steps.decode(n)
        run_s, run_j = segment.run(whole, k)
        assert run_s + k * sum(others_s) == pytest.approx(direct[0].sum(), rel=1e-11)
        assert run_j + k * others_j == pytest.approx(
            direct[1].sum() + k * steps.hop_costs(float(n))[1].sum(), rel=1e-11
        )
        assert np.add(segment.stages(whole), others_s) == pytest.approx(
            steps.decode_costs(n, whole)[0], rel=1e-12
        )
        context = whole + rng.random()
        attention = [float(stage.decode_attention(n, context)[0]) for stage in steps.stages]
        assert segment.stages(context) == pytest.approx(attention, rel=1e-4)
        query, prefix = int(rng.integers(1, 2049)), int(np.exp(rng.uniform(0, 9)))
        chunk_s, chunk_j = steps.chunk(query, query + prefix)
        costs = np.stack([stage.chunk_attention([query], [query + prefix])[:, 0] for stage in steps.stages])
        assert chunk_s == pytest.approx(costs[:, 0], rel=1e-3)
        assert chunk_j == pytest.approx(costs[:, 1].sum(), rel=1e-3)


def test_tabulated_chunks_are_exact_and_make_up_the_prompt() -> None:
    steps = replica("pipeline").steps
    assert isinstance(steps, TabulatedSteps)
    steps.tabulate([1000, 512, 130], 512)
    for query, context in ((512, 512), (488, 1000), (130, 130)):
        direct = [float(stage.chunk_attention([query], [context])[0, 0]) for stage in steps.stages]
        assert steps.chunk(query, context)[0] == direct
    steps.tabulate([1000], None)
    whole = np.add(steps.chunk(1000, 1000)[0], steps.launch_s()) + steps.mixed(1000, 1)[0]
    assert whole == pytest.approx(steps.prefill_costs([1000])[0, :, 0], rel=1e-13)


def test_the_cache_gets_what_is_left() -> None:
    """By hand for bf16: 4 layers of 4 KV heads x 64 x 2 x 2 bytes per position."""
    units = units_of(GRAPH, "block")
    plan = Plan(GRAPH.model, "toys", Assignment.uniform(tuple(u.name for u in units), PRECISIONS[0]),
                ARRANGEMENTS["one"], 1, 1)  # fmt: skip
    found = replica_from_plan(plan, GRAPH, toy_cluster(), max_context_tokens=4096)
    per_token = 4 * 2 * 4 * 64 * 2
    assert found.kv_bytes_per_token == per_token
    weights = 2 * sum(op.parameters for block in GRAPH.blocks for op in block.ops) * 4
    weights += 2 * sum(op.parameters for part in (GRAPH.prologue, GRAPH.epilogue) for op in part.ops)
    upper = (16e9 - 1e9 - weights) / per_token
    assert found.kv_tokens is not None
    assert upper - 0.05e9 / per_token < found.kv_tokens < upper
    assert found.price_usd_per_h == 1.0


def test_tensor_parallelism_shares_the_cache() -> None:
    one, two = replica("one").kv_tokens, replica("tensor").kv_tokens
    assert one is not None
    assert two is not None
    assert 1.99 < two / one < 2.1


def test_unsound_replicas_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_context_tokens"):
        replica_from_plan(mixed_plan(ARRANGEMENTS["one"]), GRAPH, toy_cluster(), max_context_tokens=1)
    with pytest.raises(ConfigError, match="batch_tokens"):
        Batching(batch_tokens=0)
    tiny = make_cluster({"toy": make_spec(capacity=1.005e9)}, {"toy": 1})
    with pytest.raises(DoesNotFitMemory, match=r"exceed each device's memory by 0\.\d\d GB"):
        replica_from_plan(mixed_plan(ARRANGEMENTS["one"]), GRAPH, tiny, max_context_tokens=4096)
