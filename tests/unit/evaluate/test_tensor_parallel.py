"""Tensor parallelism against hand counts: shares of work, two all-reduces a block, memory, energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models.collectives import all_reduce_time_s, half_all_reduce_time_s
from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.plan_cost import predict
from dse.evaluate.tensor_parallel import (
    TensorGroup,
    all_reduce_costs,
    attention_part,
    group_name,
    group_of_cluster,
)
from dse.formats.grammar import parse_precision
from dse.graph.operator import Attention
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from hardware_specs.spec import RuntimeProfile
from tests.factories import make_cluster, make_graph, make_spec

GRAPH = make_graph(n_layers=2)
UNITS = units_of(GRAPH, "block")
BF16 = parse_precision("bf16")
WORKLOAD = Workload(4, 64, 16)
# No floors and one roof at a time: times are proportional to the work.
SPEC = make_spec(floor_s=0.0, exponent=20.0, device_class="npu")
CLUSTER = make_cluster({"toy": SPEC}, {"toy": 4})
LINK = CLUSTER.nodes[0].intra_link


def table_of(degrees, spec=SPEC):
    groups = [TensorGroup(spec, degree, LINK) for degree in degrees]
    return build_cost_table(GRAPH, UNITS, (BF16,), {"toy": spec}, WORKLOAD, (4,), groups)


def test_names():
    assert group_name("toy", 1) == "toy"
    assert table_of((2, 4)).devices == ("toy", "toy x2", "toy x4")


def test_weights_are_read_in_parts():
    """Decode is bound by weights and cache: a fourth of both on each device, and what all read whole."""
    table = table_of((4,))
    one, four = table.unit_time_s[1, 0, 0].sum(), table.unit_time_s[1, 0, 1].sum()
    assert 0.25 < four / one < 0.27
    whole, parts = table.unit_energy_j[1, 0, 0].sum(), table.unit_energy_j[1, 0, 1].sum()
    assert whole < parts < 1.1 * whole


def test_two_all_reduces_a_block():
    # Norms and additions are done by every device; activation and rope in parts.
    table = table_of((2,))
    message = 4 * 64 * 512 * 2.0
    reduce_s = 2 * float(all_reduce_time_s(message, 2, LINK))
    added = table.layer_time_s[0, 0, 1] - table.layer_time_s[0, 0, 0]
    assert (added < reduce_s).all()
    assert (table.layer_time_s[0, 0, 1] > reduce_s).all()
    no_others = replace(GRAPH.blocks[0], ops=tuple(op for op in GRAPH.blocks[0].ops if op.weight_shape))
    bare = replace(GRAPH, blocks=(replace(no_others, ops=(*no_others.ops, GRAPH.blocks[0].ops[5])),))
    group = TensorGroup(SPEC, 2, LINK)
    alone = build_cost_table(bare, UNITS, (BF16,), {"toy": SPEC}, WORKLOAD, (4,), [group])
    np.testing.assert_allclose(alone.layer_time_s[0, 0, 1], reduce_s)


def test_a_plan_on_a_group():
    table = table_of((4,))
    devices = tuple(f"n_toy/{index}" for index in range(4))
    assignment = Assignment.uniform(tuple(unit.name for unit in UNITS), BF16)
    plan = Plan("toy", "toys", assignment, (Stage(devices, (0, 2), 4),), 4, 4)
    single = replace(plan, stages=(Stage(devices[:1], (0, 2)),))
    four, one = predict(plan, table, CLUSTER, WORKLOAD), predict(single, table, CLUSTER, WORKLOAD)
    assert set(four.memory_bytes) == set(devices)
    held = [use.weights for use in four.memory_bytes.values()]
    assert sum(held) == pytest.approx(one.memory_bytes["n_toy/0"].weights)
    assert four.memory_bytes["n_toy/3"].kv == pytest.approx(one.memory_bytes["n_toy/0"].kv / 4)
    # Four devices are rented and idle for longer than a fourth of the time.
    assert four.cost_usd_per_mtok / one.cost_usd_per_mtok == pytest.approx(4 * four.total_s / one.total_s)


def test_errors():
    with pytest.raises(ConfigError, match="cannot be shared out to 3"):
        attention_part(Attention(8, 4, 64), 3)
    table = table_of((2,))
    assignment = Assignment.uniform(tuple(unit.name for unit in UNITS), BF16)
    plan = Plan("toy", "toys", assignment, (Stage(("n_toy/0",), (0, 2), 2),), 4, 4)
    with pytest.raises(ConfigError, match="needs as many devices"):
        predict(plan, table, CLUSTER, WORKLOAD)
    three = replace(plan, stages=(Stage(("n_toy/0", "n_toy/1", "n_toy/2"), (0, 2), 3),))
    with pytest.raises(ConfigError, match="'toy x3' is not priced"):
        predict(three, table, CLUSTER, WORKLOAD)


def test_a_runtime_fuses_and_adds_host_time():
    """q, k and v share one floor, gate and up another: 7 launches become 4, and 3 inputs less are read."""
    spec = make_spec(floor_s=1e-3, exponent=20.0, device_class="npu")
    runtime = RuntimeProfile(
        "fusing",
        "made up",
        ties=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
        fuses_ties=True,
        step_overhead_s=5e-3,
    )
    plain, fused = (
        build_cost_table(GRAPH, UNITS, (BF16,), {"toy": spec}, WORKLOAD, (4,), runtime=entry)
        for entry in (None, runtime)
    )
    saved = plain.unit_time_s[..., 0] - fused.unit_time_s[..., 0]
    np.testing.assert_allclose(saved, 3e-3, rtol=1e-4)
    assert (saved > 3e-3).all()
    np.testing.assert_allclose(fused.first_time_s - plain.first_time_s, 5e-3, rtol=1e-9)
    np.testing.assert_array_equal(fused.unit_energy_j >= 0, True)


def test_groups_across_machines():
    """Oracle: reduce-scatter and all-gather inside, an all-reduce of each part across, by hand."""
    outer = CLUSTER.inter_link
    group = TensorGroup(SPEC, 8, LINK, 2, outer)
    assert group.name == "toy x8 on 2 nodes"
    message = np.array([1e6])
    time_s, energy_j = all_reduce_costs(group, message)
    inside_s = 2 * half_all_reduce_time_s(message, 4, LINK)
    assert time_s == pytest.approx(2 * (inside_s + all_reduce_time_s(message / 4, 2, outer)))
    # 2 nodes x 4 devices send 2 x 3/4 inside; every device 2 x 1/2 of its fourth across.
    bits = 8 * 1e6
    expected_j = 2 * (8 * 1.5 * bits * LINK.energy_j_per_bit + 8 * bits / 4 * outer.energy_j_per_bit)
    assert energy_j == pytest.approx(expected_j)
    one_machine = all_reduce_costs(TensorGroup(SPEC, 8, LINK), message)
    assert one_machine[0] < time_s


def test_a_plan_across_machines():
    """A stage whose devices are in two machines pays for the network between them."""
    nodes = tuple(replace(CLUSTER.nodes[0], name=name, n_devices=2) for name in ("a", "b"))
    cluster = replace(CLUSTER, nodes=nodes)
    devices = ("a/0", "a/1", "b/0", "b/1")
    group = group_of_cluster(cluster, devices)
    assert (group.n_nodes, group.link, group.outer) == (2, LINK, cluster.inter_link)
    table = build_cost_table(GRAPH, UNITS, (BF16,), {"toy": SPEC}, WORKLOAD, (4,), [group])
    plan = Plan(
        "toy",
        "toys",
        Assignment.uniform(tuple(unit.name for unit in UNITS), BF16),
        (Stage(devices, (0, 2), 4),),
        4,
        4,
    )
    inside = replace(CLUSTER, nodes=(replace(CLUSTER.nodes[0], n_devices=4),))
    near = replace(plan, stages=(Stage(tuple(f"n_toy/{i}" for i in range(4)), (0, 2), 4),))
    slow, fast = predict(plan, table, cluster, WORKLOAD), predict(near, table_of((4,)), inside, WORKLOAD)
    message = 4 * 64 * 512 * 2.0
    added = all_reduce_costs(group, message)[0] - all_reduce_costs(TensorGroup(SPEC, 4, LINK), message)[0]
    assert slow.stage_prefill_s[0] - fast.stage_prefill_s[0] == pytest.approx(2 * added)


def test_wrong_groups():
    cluster = make_cluster({"toy": SPEC, "npu": make_spec("npu")}, {"toy": 3, "npu": 1})
    with pytest.raises(ConfigError, match="of one type"):
        group_of_cluster(cluster, ("n_toy/0", "n_npu/0"))
    nodes = (replace(cluster.nodes[0], name="a", n_devices=2), replace(cluster.nodes[0], name="b"))
    with pytest.raises(ConfigError, match="equally many on every node"):
        group_of_cluster(replace(cluster, nodes=nodes), ("a/0", "a/1", "b/0"))
    with pytest.raises(ConfigError, match="at least two"):
        group_of_cluster(cluster, ("n_toy/0",))
    with pytest.raises(ConfigError, match="shared out to 3 nodes"):
        TensorGroup(SPEC, 4, LINK, 3, LINK)
    with pytest.raises(ConfigError, match="no link to other machines"):
        TensorGroup(SPEC, 4, LINK, 2)
