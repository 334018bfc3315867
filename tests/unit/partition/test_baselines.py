"""Published planners on the same tables. Oracles: recorded plans of cluster 3, enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.partition.baselines import (
    ada_bits,
    even_split,
    mixed_baselines,
    one_precision_baselines,
    pipe_edge,
)
from dse.partition.bitwidth_transfer import LayerPrecisions
from dse.partition.objective import objective_s, penalty_of, stage_use, violations
from dse.partition.problem import Arrangement, Goal
from dse.partition.solve import solve
from tests.pipeline_problems import only, published_cluster, random_problem

RECORDED_S = {"Uniform4": 919.02915, "PipeEdge": 104.60391, "LLM-PQ": 58.77125}


def test_recorded_baselines_of_cluster_3(shared_data: Path) -> None:
    problem, plans, _ = published_cluster(shared_data)
    problem = only(problem, order=0)
    by_name = {plan.name: plan.arrangement for plan in plans}
    for k, name, found in (
        (0, "Uniform4", even_split(problem, np.full(48, 0))),
        (1, "PipeEdge", pipe_edge(problem, np.full(48, 1))),
    ):
        assert found.arrangement is not None
        assert found.arrangement.choices == (k,) * 48
        assert [s[1:] for s in found.arrangement.stages] == [s[1:] for s in by_name[name].stages]
        value = objective_s(problem, Goal("llmpq"), found.arrangement)
        assert value == pytest.approx(RECORDED_S[name], abs=2e-3)


def test_ada_bits_reaches_the_recorded_bits(shared_data: Path) -> None:
    """Any penalty that falls with the bits: as many 16-bit layers as recorded, the rest 8-bit."""
    problem, plans, _ = published_cluster(shared_data)
    problem = replace(only(problem, order=0), penalty=np.tile([20.0, 1.0, 0.0], (48, 1)))
    recorded = next(plan.arrangement for plan in plans if plan.name == "AdaBits")
    found = ada_bits(problem).arrangement
    assert found is not None
    assert not violations(problem, Goal(), found)
    assert penalty_of(problem, found) == penalty_of(problem, recorded) == 35.0


@pytest.mark.parametrize("seed", range(12))
def test_pipe_edge_is_the_least_bottleneck(seed: int) -> None:
    problem = random_problem(seed, n_layers=6, n_devices=3)
    choices = np.zeros(6, dtype=np.int64)
    best = np.inf
    for order in problem.orders:
        for n in range(1 if problem.allow_empty else 3, 4):
            for used in itertools.combinations(order, n):
                for inner in itertools.combinations(range(1, 6), n - 1):
                    cut = (0, *inner, 6)
                    stages = tuple((d, cut[s], cut[s + 1]) for s, d in enumerate(used))
                    plan = Arrangement(stages, (0,) * 6, 2, 2)
                    if violations(problem, Goal(), plan):
                        continue
                    use = stage_use(problem, plan)
                    best = min(best, max([*use.prefill_s, *use.hop_prefill_s]))
    found = pipe_edge(problem, choices)
    assert (found.arrangement is None) == (not np.isfinite(best))
    if found.arrangement is not None:
        use = stage_use(problem, found.arrangement)
        assert max([*use.prefill_s, *use.hop_prefill_s]) == best


@pytest.mark.parametrize("seed", range(8))
def test_no_baseline_beats_the_planner(seed: int) -> None:
    problem = random_problem(seed, n_layers=6, n_devices=3)
    best = solve(problem, Goal()).value
    precisions = LayerPrecisions.alike(6, (16, 8, 4))
    found = [*one_precision_baselines(problem, np.zeros(6, dtype=np.int64))]
    found += [*mixed_baselines(problem, Goal(), precisions)]
    assert len({baseline.name for baseline in found}) == 5
    for baseline in found:
        if baseline.arrangement is None:
            assert baseline.reason
            continue
        assert best is not None
        assert objective_s(problem, Goal(), baseline.arrangement) >= best * (1 - 1e-9)
