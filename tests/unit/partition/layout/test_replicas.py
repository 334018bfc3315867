"""Replicas and pools against every split of devices and requests."""

from __future__ import annotations

import itertools

import pytest

from dse.errors import ConfigError
from dse.partition.branch import Limits
from dse.partition.layout import replicas
from dse.partition.layout.fluid import fluid_bound_s
from dse.partition.layout.pipeline import LayoutOptions, Pools
from dse.partition.layout.replicas import best_deployment
from dse.partition.layout.shares import in_proportion
from dse.partition.problem import Goal, Objective
from tests.deployment_oracle import EveryDeployment
from tests.layout_oracle import tiny_instance

LIMITS = Limits(time_s=None, gap_frac=1e-7)
SHARED: tuple[Objective, ...] = ("time", "throughput", "tpot", "ttft", "energy", "cost")


def deployment_of(seed: int, objective: Objective, n_replicas: int | None, pools: Pools):
    instance = tiny_instance(seed)
    goal = Goal(objective=objective, max_penalty=instance.max_penalty)
    options = LayoutOptions(degrees=None, n_replicas=n_replicas, pools=pools)
    return best_deployment(instance.inputs, instance.cluster, instance.workload, goal, options, LIMITS)


def check(seed: int, objective: Objective, pools: Pools) -> None:
    instance = tiny_instance(seed)
    if pools == "separate" and instance.workload.output_tokens == 1:
        with pytest.raises(ConfigError, match="nothing to decode"):
            deployment_of(seed, objective, None, pools)
        return
    found = deployment_of(seed, objective, None, pools)
    every = EveryDeployment(instance, objective)
    whole = tuple(node.n_devices for node in instance.cluster.nodes)
    n_most = min(sum(whole), instance.workload.batch)
    best = every.replicas(whole, "both", n_most) if pools == "same" else every.pools(n_most)
    assert found.exact
    if best is None:
        assert found.status == "infeasible"
        return
    assert found.value == pytest.approx(best, rel=1e-6)
    assert best * (1 - 3e-6) <= found.bound <= best * (1 + 1e-9)
    for role in ("both", "prefill", "decode"):
        parts = [replica for replica in found.replicas if replica.role == role]
        assert not parts or sum(replica.batch for replica in parts) == instance.workload.batch
        assert not parts or sum(replica.share_frac for replica in parts) == pytest.approx(1)
    used = [sum(r.counts.get(node.name, 0) for r in found.replicas) for node in instance.cluster.nodes]
    assert all(n <= most for n, most in zip(used, whole, strict=True))


@pytest.mark.parametrize("seed", [2, 3, 4, 6, 7, 8])
def test_replicas_equal_every_split(seed: int) -> None:
    check(seed, SHARED[seed % 6], "same")


@pytest.mark.parametrize("seed", [2, 4, 7, 9])
def test_pools_equal_every_split(seed: int) -> None:
    check(seed, SHARED[seed % 4], "separate")


@pytest.mark.parametrize(
    ("seed", "pools"), [(2, "same"), (4, "same"), (6, "same"), (2, "separate"), (3, "separate")]
)
def test_limited_devices_equal_every_choice_of_them(seed: int, pools: Pools) -> None:
    instance = tiny_instance(seed)
    whole = tuple(node.n_devices for node in instance.cluster.nodes)
    most = sum(whole) - 1
    objective: Objective = "time"
    goal = Goal(objective=objective, max_penalty=instance.max_penalty, max_devices=most)
    options = LayoutOptions(degrees=None, n_replicas=None, pools=pools)
    found = best_deployment(instance.inputs, instance.cluster, instance.workload, goal, options, LIMITS)
    every = EveryDeployment(instance, objective)
    n_most = min(most, instance.workload.batch)
    values = []
    for counts in itertools.product(*(range(n + 1) for n in whole)):
        if sum(counts) != most:
            continue
        if pools == "same":
            values.append(every.replicas(counts, "both", n_most))
        for prefill in itertools.product(*(range(n + 1) for n in counts)) if pools == "separate" else ():
            decode = tuple(a - b for a, b in zip(counts, prefill, strict=True))
            if sum(prefill) and sum(decode):
                parts = every.replicas(prefill, "prefill", n_most), every.replicas(decode, "decode", n_most)
                values.append(None if None in parts else sum(part or 0.0 for part in parts))
    known = [value for value in values if value is not None]
    assert found.value == (pytest.approx(min(known), rel=1e-6) if known else None)
    assert found.value is None or found.bound == pytest.approx(found.value, rel=3e-6)
    assert sum(n for replica in found.replicas for n in replica.counts.values()) <= most


@pytest.mark.parametrize("objective", ["time", "throughput", "ttft", "tpot", "energy", "cost"])
def test_the_bound_of_the_work_is_below_every_split(objective: Objective) -> None:
    n_feasible = 0
    for seed in (2, 3, 4, 6):
        instance = tiny_instance(seed)
        goal = Goal(objective=objective, max_penalty=instance.max_penalty)
        options = LayoutOptions(degrees=None)
        bound = fluid_bound_s(instance.inputs, instance.cluster, instance.workload, goal, options)
        whole = tuple(node.n_devices for node in instance.cluster.nodes)
        best = EveryDeployment(instance, objective).replicas(whole, "both", 2)
        if best is not None:
            n_feasible += 1
            assert 0 < bound <= best * (1 + 1e-9)
    assert n_feasible >= 2


@pytest.mark.slow
@pytest.mark.parametrize("pools", ["same", "separate"])
@pytest.mark.parametrize("seed", range(300, 410))
def test_many_deployments_equal_every_split(seed: int, pools: Pools) -> None:
    check(seed, SHARED[seed % (6 if pools == "same" else 4)], pools)


@pytest.mark.parametrize("seed", [2, 6])
def test_large_clusters_are_searched_node_by_node(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restricted search is no better than the exact one, and its bound no higher."""
    exact = deployment_of(seed, "throughput", None, "same")
    monkeypatch.setattr(replicas, "MAX_WORK", 0)
    found = deployment_of(seed, "throughput", None, "same")
    assert not found.exact
    assert exact.value is not None
    assert found.value is not None
    assert found.value >= exact.value * (1 - 1e-6)
    assert found.bound <= exact.value * (1 + 1e-9)
    assert found.bound > 0


def test_requests_are_shared_in_proportion() -> None:
    assert in_proportion(32, [3.0, 1.0]) == [24, 8]
    assert in_proportion(5, [1.0, 1.0, 1000.0]) == [1, 1, 3]
    assert sum(in_proportion(17, [0.3, 0.5, 0.9])) == 17
