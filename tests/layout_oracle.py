"""Every plan of a tiny cluster, one after the other: the oracle of the layout decisions.

It shares no code with the planner: plans are made of device subsets, and priced by ``dse.evaluate``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from dse.evaluate.cost_table import CostTable
from dse.evaluate.plan_cost import PlanCost, predict
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from hardware_specs.spec import Cluster


def device_subsets(cluster: Cluster, degrees: Sequence[int]) -> list[tuple[str, ...]]:
    """Every set of devices of one node whose size is a degree."""
    found = []
    for node in cluster.nodes:
        names = [f"{node.name}/{i}" for i in range(node.n_devices)]
        for degree in degrees:
            found += list(itertools.combinations(names, degree))
    return found


def pipelines(cluster: Cluster, degrees: Sequence[int], n_layers: int) -> Iterator[tuple[Stage, ...]]:
    """Every sequence of disjoint subsets with every cut."""
    subsets = device_subsets(cluster, degrees)
    for n in range(1, n_layers + 1):
        for groups in itertools.permutations(subsets, n):
            names = [name for group in groups for name in group]
            if len(set(names)) < len(names):
                continue
            for inner in itertools.combinations(range(1, n_layers), n - 1):
                cut = (0, *inner, n_layers)
                yield tuple(Stage(g, (cut[s], cut[s + 1]), len(g)) for s, g in enumerate(groups))


def canonical(stages: tuple[Stage, ...], cluster: Cluster) -> object:
    """What two pipelines share that cost the same: kinds, layers, and where nodes change."""
    kind = {node.name: node.device for node in cluster.nodes}
    nodes = [stage.devices[0].partition("/")[0] for stage in stages]
    return tuple(
        (kind[node], stage.tensor_parallel, stage.layers, s > 0 and nodes[s - 1] == node)
        for s, (node, stage) in enumerate(zip(nodes, stages, strict=True))
    )


def every_plan(
    table: CostTable,
    cluster: Cluster,
    workload: Workload,
    degrees: Sequence[int],
    sizes: Sequence[int],
    penalty: dict[tuple[str, str], float],
    max_penalty: float,
) -> Iterator[tuple[Plan, PlanCost]]:
    """Every plan that fits and loses no more than ``max_penalty``; units are whole layers."""
    units = tuple(unit.name for unit in table.units)
    seen = set()
    for stages in pipelines(cluster, degrees, len(units)):
        key = canonical(stages, cluster)
        if key in seen:
            continue
        seen.add(key)
        for picks in itertools.product(table.precisions, repeat=len(units)):
            lost = sum(penalty[unit, pick.name] for unit, pick in zip(units, picks, strict=True))
            if lost > max_penalty * (1 + 1e-12):
                continue
            assignment = Assignment(tuple(zip(units, picks, strict=True)))
            for prefill, decode in itertools.product(sizes, repeat=2):
                plan = Plan("toy", cluster.name, assignment, stages, prefill, decode)
                cost = predict(plan, table, cluster, workload)
                if cost.fits:
                    yield plan, cost


def period_s(cost: PlanCost, plan: Plan, workload: Workload, n_chunks: int = 1) -> float:
    """Seconds between batches in steady state: the busiest station, or one request's stay."""
    k = -(-workload.batch // plan.prefill_micro_batch) * n_chunks
    m = -(-workload.batch // plan.decode_micro_batch)
    rounds = workload.output_tokens - 1
    prefill = cost.stage_prefill_s + cost.hop_prefill_s
    decode = cost.stage_decode_s + cost.hop_decode_s
    busiest = max(k * p + rounds * m * d for p, d in zip(prefill, decode, strict=True))
    return max(busiest, sum(prefill) + rounds * sum(decode))
