"""Every plan of a tiny cluster, one after the other: the oracle of the layout decisions.

It shares no code with the planner: plans are made of device subsets, and priced by ``dse.evaluate``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dse.evaluate.cost_table import CostTable
from dse.evaluate.plan_cost import PlanCost, predict
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.partition.layout.inputs import ModelInputs
from dse.plan import Assignment, Plan, Stage
from dse.sensitivity.noise import noise_table
from hardware_specs.spec import Cluster, RuntimeProfile
from tests.factories import make_cluster, make_graph, make_spec


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


PRECISIONS = tuple(parse_precision(name) for name in ("bf16", "int4_g64"))


@dataclass(frozen=True)
class TinyInstance:
    """A model of 2 to 4 layers on up to 4 devices of 2 types in 2 nodes, and a bound on the penalty."""

    inputs: ModelInputs
    cluster: Cluster
    workload: Workload
    max_penalty: float

    @property
    def sizes(self) -> list[int]:
        """Candidate micro-batches."""
        return [size for size in (1, 2, 4) if self.workload.batch % size == 0]

    @property
    def penalty(self) -> dict[tuple[str, str], float]:
        """Of every unit and precision."""
        table = self.inputs.sensitivity
        return {
            (unit, precision.name): float(table.penalty[u, q])
            for u, unit in enumerate(table.units)
            for q, precision in enumerate(table.precisions)
        }


def tiny_instance(seed: int) -> TinyInstance:
    """A random one; memory is short in many, and the cache is copied in groups of some."""
    draw = random.Random(seed)
    n_layers = draw.choice([2, 3, 4])
    graph = make_graph(n_layers=n_layers, ffn=draw.choice([1024, 2048]), n_kv_heads=draw.choice([1, 2, 4]))
    counts = draw.choice([(1, 2), (2, 2), (2, 1), (3, 1), (1, 1)])
    workload = Workload(draw.choice([1, 2, 4]), draw.choice([64, 256, 1024]), draw.choice([1, 4, 32]))
    capacity = draw.choice([0.3, 0.6, 1.0, 2.0, 10]) * 1e7 * n_layers
    specs = {
        name: make_spec(
            name,
            bandwidth=draw.choice([0.3, 1, 2]) * 1e12,
            capacity=capacity * draw.choice([0.5, 1, 2]),
            reserve=0.0,
            price=draw.choice([1.0, 2.0]),
        )
        for name in ("a", "b")
    }
    cluster = make_cluster(specs, {"a": counts[0], "b": counts[1]})
    units = units_of(graph, "block")
    noise = noise_table(graph, units, PRECISIONS)
    factors = np.array([draw.choice([0.5, 1, 2]) for _ in units])
    table = replace(noise, penalty=noise.penalty * factors[:, None])
    inputs = ModelInputs(graph, units, PRECISIONS, table, RuntimeProfile("any", "made up"))
    return TinyInstance(inputs, cluster, workload, float(table.penalty.sum() * draw.choice([0.3, 0.6, 1.0])))


def value_of(objective: str, cost: PlanCost, plan: Plan, workload: Workload) -> float:
    """The objective of a plan, from what ``dse.evaluate`` says of it."""
    if objective == "throughput":
        return period_s(cost, plan, workload)
    values = {
        "time": cost.total_s,
        "ttft": cost.ttft_s,
        "tpot": cost.tpot_s,
        "energy": cost.energy_j_per_token,
        "cost": cost.cost_usd_per_mtok,
    }
    value = values[objective]
    assert value is not None
    return value


def least(instance: TinyInstance, objective: str, n_chunks: Sequence[int] = (1,)) -> float | None:
    """The least value of any plan; None where none fits."""
    best: float | None = None
    degrees = instance.inputs.degrees(max(node.n_devices for node in instance.cluster.nodes))
    for chunks in n_chunks:
        table = instance.inputs.table(instance.cluster, instance.workload, degrees, chunks)
        plans = every_plan(
            table,
            instance.cluster,
            instance.workload,
            degrees,
            instance.sizes,
            instance.penalty,
            instance.max_penalty,
        )
        for plan, cost in plans:
            value = value_of(objective, cost, plan, instance.workload)
            if objective == "throughput" and chunks > 1:
                value = period_s(cost, plan, instance.workload, chunks)
            best = value if best is None else min(best, value)
    return best
