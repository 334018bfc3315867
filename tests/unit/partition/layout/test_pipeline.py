"""One pipeline over all degrees, chunks and orders against every plan, listed or searched."""

from __future__ import annotations

import pytest

from dse.errors import ConfigError
from dse.partition.branch import Limits
from dse.partition.layout import pipeline
from dse.partition.layout.inputs import part_of
from dse.partition.layout.pipeline import LayoutOptions, best_pipeline, degrees_of
from dse.partition.problem import Goal, Objective
from tests.layout_oracle import TinyInstance, least, tiny_instance

OBJECTIVES: tuple[Objective, ...] = ("time", "throughput", "tpot", "ttft", "energy", "cost")
LIMITS = Limits(time_s=60.0, gap_frac=1e-7)


def check(instance: TinyInstance, objective: Objective, n_chunks: tuple[int, ...] = (1,)) -> None:
    goal = Goal(objective=objective, max_penalty=instance.max_penalty)
    options = LayoutOptions(degrees=None, n_chunks=n_chunks)
    found = best_pipeline(
        instance.inputs, instance.cluster, instance.workload, goal, options, LIMITS
    ).solution
    best = least(instance, objective, n_chunks)
    if best is None:
        assert found.status == "infeasible"
        return
    assert found.value == pytest.approx(best, rel=1e-6)
    assert found.bound is not None
    assert best * (1 - 2e-6) <= found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(18))
def test_listed_groupings_equal_every_plan(seed: int) -> None:
    check(tiny_instance(seed), OBJECTIVES[seed % 6])


@pytest.mark.parametrize("seed", range(18, 24))
def test_searched_groupings_equal_every_plan(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_LANES", 0)
    check(tiny_instance(seed), OBJECTIVES[seed % 6])


@pytest.mark.parametrize("seed", range(24, 30))
def test_chunks_equal_every_plan(seed: int) -> None:
    check(tiny_instance(seed), OBJECTIVES[seed % 6], (1, 2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("seed", range(100, 210))
def test_many_groupings_equal_every_plan(seed: int, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not listed:
        monkeypatch.setattr(pipeline, "MAX_LANES", 0)
    check(tiny_instance(seed), OBJECTIVES[seed % 6], (1, 2) if seed % 2 else (1,))


@pytest.mark.parametrize("degree", [3, 8])
def test_a_degree_that_cannot_be_is_refused(degree: int) -> None:
    instance = tiny_instance(0)
    with pytest.raises(ConfigError, match=f"cannot be shared out to {degree} devices"):
        degrees_of(instance.inputs, instance.cluster, LayoutOptions(degrees=(1, degree)))


def test_without_a_node_for_the_degree_there_is_no_pipeline() -> None:
    instance = tiny_instance(0)
    single = part_of(instance.cluster, {instance.cluster.nodes[0].name: 1})
    options = LayoutOptions(degrees=(2,))
    found = best_pipeline(instance.inputs, single, instance.workload, Goal(), options, LIMITS)
    assert found.problem is None
    assert found.solution.status == "infeasible"
