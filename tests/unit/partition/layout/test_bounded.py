"""Bounds that replicas and pools share, against every split of devices and requests."""

from __future__ import annotations

import random

import pytest

from dse.partition.branch import Limits
from dse.partition.layout import replicas
from dse.partition.layout.pipeline import LayoutOptions, Pools
from dse.partition.layout.replicas import best_deployment
from dse.partition.problem import Goal, Objective
from tests.bounded_oracle import QUANTITIES, EveryBoundedDeployment
from tests.layout_oracle import TinyInstance, tiny_instance

LIMITS = Limits(time_s=None, gap_frac=1e-7)


def solved(instance: TinyInstance, goal: Goal, pools: Pools):
    options = LayoutOptions(degrees=None, n_replicas=None, pools=pools)
    return best_deployment(instance.inputs, instance.cluster, instance.workload, goal, options, LIMITS)


def check(seed: int, pools: Pools) -> tuple[bool, bool]:
    """Compare one instance, with an objective and bounds drawn anew; whether it is feasible, and bound.

    The bounds are what some deployment comes to, so that most of them bind and some exclude each other.
    """
    instance, draw = tiny_instance(seed), random.Random(seed)
    if instance.workload.output_tokens == 1:
        pools = "same"
    objective: Objective = draw.choice(QUANTITIES)
    bounded = draw.sample([name for name in QUANTITIES if name != objective], draw.choice([1, 2]))
    most = draw.choice([None, None, 2])
    every = EveryBoundedDeployment(instance, (objective, *bounded))
    rows = every.deployments(pools, most)
    goal = Goal(objective=objective, max_penalty=instance.max_penalty, max_devices=most)
    if not len(rows):
        assert solved(instance, goal, pools).status == "infeasible"
        return False, False
    picks = [rows[draw.randrange(len(rows))] for _ in bounded]
    bounds = {
        name: float(row[QUANTITIES.index(name)]) * draw.choice([0.9, 1.000001, 1.1])
        for name, row in zip(bounded, picks, strict=True)
    }
    for name, limit in bounds.items():
        goal = goal.with_bound(name, limit)
    found, best = solved(instance, goal, pools), every.best(objective, bounds, pools, most)
    if best is None:
        assert found.status == "infeasible"
        return False, True
    assert found.value == pytest.approx(best, rel=2e-6)
    assert found.status == "optimal"
    assert best * (1 - 3e-6) <= found.bound <= best * (1 + 1e-6)
    assert sum(n for r in found.replicas for n in r.counts.values()) <= (most or 99)
    return True, best > every.best(objective, {}, pools, most) * (1 + 1e-6)


CASES: list[tuple[int, Pools]] = [
    *((seed, "same") for seed in (2, 6, 11, 41, 44, 56)),
    *((seed, "separate") for seed in (0, 44, 58)),
    *((seed, "auto") for seed in (56,)),
]


def test_shared_bounds_equal_every_split() -> None:
    outcomes = [check(seed, pools) for seed, pools in CASES]
    assert sum(feasible for feasible, _ in outcomes) >= len(CASES) // 2
    assert sum(bound for _, bound in outcomes) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("pools", ["same", "separate", "auto"])
@pytest.mark.parametrize("start", range(1000, 1350, 50))
def test_many_deployments_equal_every_split(start: int, pools: Pools) -> None:
    outcomes = [check(seed, pools) for seed in range(start, start + 50)]
    assert sum(bound for _, bound in outcomes) >= 5


@pytest.mark.parametrize("pools", ["same", "separate"])
def test_large_clusters_keep_shared_bounds(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of nodes one by one is no better than the exact one, and keeps the bounds too."""
    n_found = 0
    for seed in (0, 23):
        instance = tiny_instance(seed)
        every = EveryBoundedDeployment(instance, ("time", "cost"))
        least = every.best("cost", {}, pools, 3)
        assert least is not None
        goal = Goal(max_penalty=instance.max_penalty, max_cost_usd_per_mtok=1.5 * least, max_devices=3)
        best = solved(instance, goal, pools)
        with monkeypatch.context() as patch:
            patch.setattr(replicas, "MAX_WORK", 0)
            found = solved(instance, goal, pools)
        assert not found.exact
        assert best.value is not None
        assert found.bound <= best.value * (1 + 1e-6)
        if found.value is not None:
            n_found += 1
            assert found.value >= best.value * (1 - 2e-6)
            assert sum(n for r in found.replicas for n in r.counts.values()) <= 3
    assert n_found > 0
