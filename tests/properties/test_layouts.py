"""The closed forms of layouts against a discrete-event simulation: groups, chunks, pools and replicas."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cost_models.simulate import simulate_pipeline
from dse.partition.branch import Limits
from dse.partition.groups import device_groups, group_sequences
from dse.partition.layout.deployment import Replica
from dse.partition.layout.pipeline import LayoutOptions
from dse.partition.layout.replicas import best_deployment
from dse.partition.objective import quantity, stage_use
from dse.partition.problem import Arrangement, Goal, PipelineProblem
from tests.layout_oracle import TinyInstance, tiny_instance

seeds = st.integers(0, 100_000)
few = settings(max_examples=20, deadline=None)


def random_arrangement(instance: TinyInstance, draw: random.Random) -> tuple[PipelineProblem, Arrangement]:
    """A random plan over groups, with a random number of chunks and, in half of them, a hand-over."""
    inputs, cluster, workload = instance.inputs, instance.cluster, instance.workload
    degrees = inputs.degrees(max(node.n_devices for node in cluster.nodes))
    chunks = draw.choice([1, 2, 4])
    groups = device_groups(cluster, degrees)
    sequences = group_sequences(cluster, groups, inputs.n_layers)
    assert sequences is not None
    table = inputs.table(cluster, workload, degrees, chunks)
    problem = inputs.problem(table, cluster, workload, groups, sequences).problem
    if draw.random() < 0.5:
        typical = float(problem.prefill_s.mean()) * inputs.n_layers
        sizes = np.array(problem.prefill_micro_batches)
        problem = replace(problem, handover_s=typical * draw.choice([0.1, 1.0, 3.0]) * sizes)
    sequence = draw.choice(sequences)
    cut = sorted(draw.sample(range(1, inputs.n_layers), len(sequence) - 1))
    ends = zip([0, *cut], [*cut, inputs.n_layers], strict=True)
    stages = tuple((device, first, end) for device, (first, end) in zip(sequence, ends, strict=True))
    choices = []
    for device, first, end in stages:
        choices += [int(draw.choice(np.flatnonzero(problem.allowed[device, i]))) for i in range(first, end)]
    plan = Arrangement(
        stages,
        tuple(choices),
        draw.choice(problem.prefill_micro_batches),
        draw.choice(problem.decode_micro_batches),
    )
    return problem, plan


def simulated(problem: PipelineProblem, plan: Arrangement) -> tuple[float, float]:
    """Seconds to the end of the prefill and of everything; a hand-over is a stage with no link before it."""
    use = stage_use(problem, plan)
    n = len(use.devices)
    between = (
        [float(hop) for hop in use.hop_prefill_s[: n - 1]],
        [float(hop) for hop in use.hop_decode_s[: n - 1]],
    )
    prefill, decode = use.prefill_s.tolist(), use.decode_s.tolist()
    if problem.handover_s is not None:
        prefill, decode = [*prefill, float(use.hop_prefill_s[-1])], [*decode, 0.0]
        between[0].append(0.0)
        between[1].append(0.0)
    k = -(-problem.batch // plan.prefill_micro_batch) * problem.n_chunks
    m = -(-problem.batch // plan.decode_micro_batch)
    intervals = simulate_pipeline(prefill, decode, *between, k, m, problem.output_tokens)
    ends = [i.end_s for i in intervals if i.phase == "prefill"]
    return max(ends), max(i.end_s for i in intervals)


@few
@given(seeds)
def test_groups_chunks_and_handovers(seed: int) -> None:
    draw = random.Random(seed)
    problem, plan = random_arrangement(tiny_instance(seed), draw)
    ttft_s, total_s = simulated(problem, plan)
    assert quantity(problem, Goal("makespan"), plan, "ttft") == pytest.approx(ttft_s, rel=0.01)
    assert quantity(problem, Goal("makespan"), plan, "time") == pytest.approx(total_s, rel=0.01)


def simulated_replica(replica: Replica) -> tuple[float, float]:
    problem, plan = replica.pipeline.problem, replica.pipeline.solution.arrangement
    assert problem is not None
    assert plan is not None
    return simulated(problem.problem, plan)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 60), st.sampled_from(["same", "separate"]))
def test_replicas_and_pools(seed: int, pools: str) -> None:
    instance = tiny_instance(seed)
    assume(instance.workload.output_tokens > 1)
    goal = Goal("makespan", max_penalty=instance.max_penalty)
    options = LayoutOptions(degrees=None, n_replicas=None, pools="same" if pools == "same" else "separate")
    found = best_deployment(
        instance.inputs, instance.cluster, instance.workload, goal, options, Limits(gap_frac=1e-6)
    )
    assume(found.value is not None)
    ends = [(replica.role, simulated_replica(replica)) for replica in found.replicas]
    if found.separate:
        prefill_s = max(total for role, (_, total) in ends if role == "prefill")
        decode_s = max(total for role, (_, total) in ends if role == "decode")
        assert found.value == pytest.approx(prefill_s + decode_s, rel=0.01)
    else:
        assert found.value == pytest.approx(max(total for _, (_, total) in ends), rel=0.01)
