"""Offloaded layers on one device against every choice of every layer; no arithmetic is shared."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from dse.partition.branch import Limits
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.pipeline import LayoutOptions, best_pipeline
from dse.partition.problem import Goal
from dse.plan import Plan
from hardware_specs.spec import Link, MemoryTier
from tests.factories import make_cluster, make_spec
from tests.layout_oracle import tiny_instance

LIMITS = Limits(time_s=None, gap_frac=1e-7)
HOST_RATE = 20e9


def cluster_of(capacity: float, host_bytes: float | None = None):
    spec = make_spec("a", capacity=capacity, reserve=0.0)
    spec = replace(spec, links=(Link("pcie", "host", HOST_RATE, 1e-6),))
    cluster = make_cluster({"a": spec}, {"a": 1})
    if host_bytes is None:
        return cluster
    dram = MemoryTier("dram", "DDR5", host_bytes, 100e9, weights=True, kv=True, scope="node", via="host")
    return replace(cluster, nodes=(replace(cluster.nodes[0], host_memory=(dram,)),))


def every_choice(inputs: ModelInputs, cluster, workload, max_penalty: float) -> float | None:
    """The least time of the batch: each layer at each precision, on the device or streamed."""
    table = inputs.table(cluster, workload)
    n_layers, n_precisions = table.unit_weight_bytes.shape
    context = workload.prompt_tokens + workload.output_tokens
    best = None
    sizes = [size for size in range(1, workload.batch + 1) if workload.batch % size == 0]
    choices = list(itertools.product(range(n_precisions), [False, True]))
    for picks in itertools.product(choices, repeat=n_layers):
        lost = sum(inputs.sensitivity.penalty[u, q] for u, (q, _) in enumerate(picks))
        if lost > max_penalty * (1 + 1e-12):
            continue
        streamed = [table.unit_weight_bytes[u, q] for u, (q, out) in enumerate(picks) if out]
        held = sum(table.unit_weight_bytes[u, q] for u, (q, out) in enumerate(picks) if not out)
        held += sum(
            table.layer_fixed_bytes[u] + workload.batch * context * table.unit_kv_bytes_per_token[u, q]
            for u, (q, _) in enumerate(picks)
        )
        held += table.first_bytes + table.last_bytes - table.tied_bytes + 2 * max(streamed, default=0.0)
        for prefill, decode in itertools.product(sizes, repeat=2):
            index = table.micro_batch_index(prefill), table.micro_batch_index(decode)
            room = cluster.capacity_bytes(cluster.devices[0][0])
            room -= max(table.activation_bytes[p, m] for p, m in enumerate(index))
            if held > room:
                continue
            totals = []
            for p, m in enumerate(index):
                total = table.first_time_s[p, m, 0] + table.last_time_s[p, m, 0]
                for u, (q, out) in enumerate(picks):
                    layer_s = table.unit_time_s[p, m, 0, u, q] + table.layer_time_s[p, m, 0, u]
                    fetch_s = 1e-6 + table.unit_weight_bytes[u, q] / HOST_RATE if out else 0.0
                    total += max(layer_s, fetch_s)
                totals.append(total)
            k, m = workload.batch // prefill, workload.batch // decode
            time_s = k * totals[0] + (workload.output_tokens - 1) * m * totals[1]
            best = time_s if best is None else min(best, time_s)
    return best


@pytest.mark.parametrize(
    ("seed", "capacity"), [(1, 9e6), (3, 9e6), (9, 7e6), (12, 1.2e7), (13, 1e9), (14, 1e6)]
)
def test_offload_equals_every_choice(seed: int, capacity: float) -> None:
    instance = tiny_instance(seed)
    cluster = cluster_of(capacity)
    goal = Goal(max_penalty=instance.max_penalty)
    options = LayoutOptions(offload="host")
    found = best_pipeline(instance.inputs, cluster, instance.workload, goal, options, LIMITS)
    best = every_choice(instance.inputs, cluster, instance.workload, instance.max_penalty)
    if best is None:
        assert found.problem is None
        return
    assert found.value == pytest.approx(best, rel=1e-6)
    assert found.bound == pytest.approx(best, rel=3e-6)


def test_a_plan_says_which_layers_are_outside_and_reads_back() -> None:
    instance = tiny_instance(19)
    options = LayoutOptions(offload="host")
    cluster = cluster_of(1.7e7)
    goal = Goal(max_penalty=instance.max_penalty)
    found = best_pipeline(instance.inputs, cluster, instance.workload, goal, options, LIMITS)
    assert found.problem is not None
    assert found.solution.arrangement is not None
    plan = found.problem.plan_from(found.solution.arrangement, model="toy")
    assert plan.offloaded_layers
    assert Plan.from_json(plan.to_json()) == plan


def test_a_host_that_is_too_small_takes_nothing() -> None:
    instance = tiny_instance(19)
    options = LayoutOptions(offload="host")
    cluster = cluster_of(1.7e7, host_bytes=1e5)
    goal = Goal(max_penalty=instance.max_penalty)
    assert best_pipeline(instance.inputs, cluster, instance.workload, goal, options, LIMITS).problem is None
