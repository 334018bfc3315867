"""The relaxation over all groupings: what its linear program alone proves, against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dse.graph.workload import Workload
from dse.partition.groups import device_groups
from dse.partition.layout.aggregate import Aggregation
from dse.partition.layout.classes import layer_classes, stage_classes
from dse.partition.problem import Goal, PipelineProblem
from hardware_specs.spec import Cluster
from tests.factories import make_cluster, make_spec
from tests.layout_oracle import tiny_instance

N_DEVICES = 3
WORKLOAD = Workload(8, 64, 4)


def equal_devices() -> tuple[PipelineProblem, Cluster]:
    """A pipeline problem on three equal devices whose ends and transfers take no time."""
    cluster = make_cluster({"a": make_spec("a", capacity=1e12, reserve=0.0, price=2.0)}, {"a": N_DEVICES})
    inputs = tiny_instance(0).inputs
    groups = device_groups(cluster, (1,))
    problem = inputs.problem(inputs.table(cluster, WORKLOAD), cluster, WORKLOAD, groups, ((0,),)).problem
    nothing = {
        name: 0 * getattr(problem, name)
        for name in (
            "first_prefill_s",
            "first_decode_s",
            "last_prefill_s",
            "last_decode_s",
            "hop_prefill_s",
            "hop_decode_s",
        )
    }
    return replace(problem, **nothing), cluster


@pytest.mark.parametrize("max_devices", [None, 2])
def test_the_slowest_of_equal_devices_has_no_less_than_its_share(max_devices: int | None) -> None:
    """k micro-batches take at least sum P + (k - 1) sum P / n, with n the devices there are."""
    problem, cluster = equal_devices()
    goal = Goal(objective="ttft", max_devices=max_devices)
    stages = stage_classes(cluster, device_groups(cluster, (1,)))
    pair = Aggregation(problem, stages, layer_classes(problem), goal, 0, 0)
    layers_s = float(problem.prefill_s[0, 0].min(axis=1).sum())
    k = WORKLOAD.batch // problem.prefill_micro_batches[0]
    expected = layers_s * (1 + (k - 1) / (max_devices or N_DEVICES))
    assert pair.solve(float("inf"), integer=False).bound == pytest.approx(expected, rel=1e-5)
