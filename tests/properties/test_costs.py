"""Properties of costs that hold for every device, model and workload."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.energy import dynamic_energy_j
from cost_models.pricing import KERNEL_MODELS, price
from cost_models.work import Work
from dse.evaluate.build import build_cost_table
from dse.evaluate.plan_cost import predict
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from tests.factories import PROFILE_OF, make_cluster, make_graph, make_spec

GRAPH = make_graph(n_layers=3, hidden=128, ffn=256, n_heads=4, n_kv_heads=2, vocab=300)
UNITS = units_of(GRAPH, "block")
BITS = (2, 3, 4, 5, 6, 8)
LADDER = tuple(parse_precision(name) for name in (*(f"int{bits}_g64" for bits in BITS), "bf16"))
SLACK = 1 + 1e-12


@st.composite
def devices(draw):
    """A device with any efficiencies, floors and exponents."""
    return make_spec(
        native={"bf16": draw(st.floats(1e11, 1e15)), "int8": draw(st.floats(1e11, 2e15))},
        bandwidth=draw(st.floats(1e10, 8e12)),
        floor_s=draw(st.floats(0, 1e-4)),
        exponent=draw(st.floats(0.7, 12)),
        device_class=draw(st.sampled_from(["datacenter_gpu", "npu", "cpu"])),
        weight_only_bits=BITS,
        tdp_w=draw(st.one_of(st.none(), st.floats(60, 1000))),
    )


workloads = st.builds(Workload, st.integers(1, 16), st.integers(1, 300), st.integers(1, 80))


def table_of(spec, workload, micro_batches=(1, 2, 8)):
    return build_cost_table(GRAPH, UNITS, LADDER, {"toy": spec}, workload, micro_batches)


@settings(max_examples=40, deadline=None)
@given(spec=devices(), workload=workloads, factor=st.floats(1, 20))
def test_more_bandwidth_is_never_slower(spec, workload, factor):
    memory = replace(spec.memory[0], bandwidth_bytes_per_s=spec.main_memory.bandwidth_bytes_per_s * factor)
    slow, fast = table_of(spec, workload), table_of(replace(spec, memory=(memory,)), workload)
    assert (fast.unit_time_s <= slow.unit_time_s * SLACK).all()
    assert (fast.layer_time_s <= slow.layer_time_s * SLACK).all()
    assert (fast.last_time_s <= slow.last_time_s * SLACK).all()


@settings(max_examples=40, deadline=None)
@given(spec=devices(), workload=workloads)
def test_more_sequences_are_never_faster(spec, workload):
    table = table_of(spec, workload)
    for name in ("unit_time_s", "layer_time_s", "first_time_s", "last_time_s"):
        values = getattr(table, name)
        assert (np.diff(values, axis=1) >= -1e-12 * values[:, 1:]).all()


@settings(max_examples=40, deadline=None)
@given(spec=devices(), workload=workloads, more=st.integers(1, 200))
def test_longer_contexts_are_never_faster(spec, workload, more):
    longer = replace(workload, prompt_tokens=workload.prompt_tokens + more)
    short, long = table_of(spec, workload), table_of(spec, longer)
    assert (long.unit_time_s * SLACK >= short.unit_time_s).all()


@settings(max_examples=40, deadline=None)
@given(spec=devices(), workload=workloads)
def test_fewer_bits_are_never_more_bytes(spec, workload):
    table = table_of(spec, workload)
    assert (np.diff(table.unit_weight_bytes, axis=1) > 0).all()
    # Among weight-only widths below 8 bits (one kernel profile), they are never slower either.
    one_kernel = table.unit_time_s[..., :5]
    assert (np.diff(one_kernel, axis=-1) >= -1e-12 * one_kernel[..., 1:]).all()


@settings(max_examples=40, deadline=None)
@given(spec=devices(), workload=workloads)
def test_costs_are_finite_and_positive(spec, workload):
    table = table_of(spec, workload)
    for name in ("unit_time_s", "unit_energy_j", "unit_weight_bytes", "activation_bytes", "hop_bytes"):
        values = getattr(table, name)
        assert np.isfinite(values).all()
        assert (values > 0).all()


@settings(max_examples=30, deadline=None)
@given(
    spec=devices(),
    workload=workloads,
    choices=st.lists(st.sampled_from(LADDER), min_size=3, max_size=3),
    order=st.permutations(range(3)),
)
def test_totals_do_not_depend_on_the_order_of_equal_layers(spec, workload, choices, order):
    table = table_of(spec, workload, (workload.batch,))
    cluster = make_cluster({"toy": spec})

    def cost_of(precisions):
        items = tuple((unit.name, precision) for unit, precision in zip(UNITS, precisions, strict=True))
        stage = (Stage(("n_toy/0",), (0, 3)),)
        plan = Plan("toy", "toys", Assignment(items), stage, workload.batch, workload.batch)
        return predict(plan, table, cluster, workload)

    first, second = cost_of(choices), cost_of([choices[index] for index in order])
    assert first.total_s == pytest.approx(second.total_s, rel=1e-9)
    assert first.energy_j_per_token == pytest.approx(second.energy_j_per_token, rel=1e-9)
    assert first.memory_total_bytes == pytest.approx(second.memory_total_bytes, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    spec=devices(),
    kernel=st.sampled_from(KERNEL_MODELS.names()),
    flop=st.floats(0, 1e14),
    moved=st.floats(0, 1e10),
    factor=st.floats(1, 10),
)
def test_more_work_never_costs_less(spec, kernel, flop, moved, factor):
    base = Work(kernel, PROFILE_OF.get(kernel, kernel), "bf16", flop, flop / 100, moved, moved / 3)
    more = replace(base, flop=flop * factor, vector_flop=flop * factor / 100, read_bytes=moved * factor)
    less_cost, more_cost = price(base, spec), price(more, spec)
    assert more_cost.time_s * SLACK >= less_cost.time_s
    assert more_cost.energy_j * SLACK >= less_cost.energy_j


@settings(max_examples=60, deadline=None)
@given(spec=devices(), flop=st.floats(0, 1e14), moved=st.floats(0, 1e10))
def test_power_never_exceeds_the_limit(spec, flop, moved):
    work = Work("matmul", "gemm", "bf16", flop, 0, moved)
    time_s = price(work, spec).time_s
    energy_j = dynamic_energy_j(work, spec, time_s)
    assert energy_j >= 0
    if spec.power.tdp_w is not None and time_s > 0:
        assert energy_j / time_s + spec.power.static_w <= spec.power.tdp_w * SLACK
