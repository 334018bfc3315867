"""The cost table against pricing every operator of every layer on its own, one number at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models.pricing import price
from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.lowering import lower, lower_beside
from dse.evaluate.sizes import decode_contexts
from dse.formats.grammar import parse_precision
from dse.formats.storage import kv_bits_per_token, stored_bits
from dse.graph.units import units_of
from dse.graph.workload import Workload
from tests.factories import make_graph, make_profile, make_spec

GRAPH = make_graph()
WORKLOAD = Workload(batch=8, prompt_tokens=40, output_tokens=9)
PRECISIONS = tuple(
    parse_precision(name)
    for name in ("bf16", "int4_g64", "int8_row/int8_token/int8_head", "int3_g64/bf16/int4_g64", "nvfp4")
)
SPECS = {
    "toy": make_spec(),
    "npu": make_spec("npu", device_class="npu", bandwidth=30e9, static_w=None, weight_only_bits=(4, 8)),
}
MICRO_BATCHES = (1, 4)


def priced(ops, precision, spec, phase, size, query, context):
    """Costs of operators and of what runs beside them, one number at a time."""
    works = [lower(op, precision, spec, phase, size, query, context) for op in ops]
    works += [
        work
        for op in ops
        for _, work in lower_beside(op, GRAPH.blocks[0], precision, spec, phase, size, query, context)
    ]
    return [price(work, spec) for work in works]


def same(value):
    """Equal but for the order of sums."""
    return pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("granularity", ["block", "sublayer", "linear"])
def test_equals_pricing_one_by_one(granularity):
    # Oracle: price(lower(op)) for each operator of each layer, phase, micro-batch and decode step.
    units = units_of(GRAPH, granularity)
    table = build_cost_table(GRAPH, units, PRECISIONS, SPECS, WORKLOAD, MICRO_BATCHES)
    block = {op.name: op for op in GRAPH.blocks[0].ops}
    steps = [WORKLOAD.prompt_tokens + j for j in range(1, WORKLOAD.output_tokens)]
    for d, spec in enumerate(SPECS.values()):
        for q, precision in enumerate(PRECISIONS):
            if not table.supported[d, q]:
                continue
            for m, size in enumerate(MICRO_BATCHES):
                for u in (0, len(units) - 1):
                    ops = [block[name] for name in (*units[u].ops, *units[u].attention_ops)]
                    prefill = priced(ops, precision, spec, "prefill", size, 40, 40)
                    decode = [
                        cost
                        for context in steps
                        for cost in priced(ops, precision, spec, "decode", size, 1, context)
                    ]
                    assert table.unit_time_s[0, m, d, u, q] == same(sum(c.time_s for c in prefill))
                    assert table.unit_energy_j[0, m, d, u, q] == same(sum(c.energy_j for c in prefill))
                    assert table.unit_time_s[1, m, d, u, q] == same(
                        sum(c.time_s for c in decode) / len(steps)
                    )
                    assert table.unit_energy_j[1, m, d, u, q] == same(
                        sum(c.energy_j for c in decode) / len(steps)
                    )


def test_fixed_and_edge_costs_equal_pricing_one_by_one():
    table = build_cost_table(GRAPH, units_of(GRAPH, "block"), PRECISIONS, SPECS, WORKLOAD, MICRO_BATCHES)
    bf16, spec = PRECISIONS[0], SPECS["toy"]

    def cost(ops, phase, query, context):
        return sum(price(lower(op, bf16, spec, phase, 4, query, context), spec).time_s for op in ops)

    fixed = [op for op in GRAPH.blocks[0].ops if op.kind not in ("linear", "attention")]
    for p, (phase, query, context) in enumerate((("prefill", 40, 40), ("decode", 1, 44.5))):
        np.testing.assert_allclose(table.layer_time_s[p, 1, 0], cost(fixed, phase, query, context))
        assert table.first_time_s[p, 1, 0] == pytest.approx(cost(GRAPH.prologue.ops, phase, query, context))
        assert table.last_time_s[p, 1, 0] == pytest.approx(cost(GRAPH.epilogue.ops, phase, 1, context))


def test_bytes():
    units = units_of(GRAPH, "block")
    table = build_cost_table(GRAPH, units, PRECISIONS, SPECS, WORKLOAD, MICRO_BATCHES)
    shapes = [op.weight_shape for op in GRAPH.blocks[0].ops if op.kind == "linear"]
    for q, precision in enumerate(PRECISIONS):
        expected = sum(stored_bits(precision.weights, *shape) for shape in shapes) / 8
        np.testing.assert_allclose(table.unit_weight_bytes[:, q], expected)
        np.testing.assert_allclose(
            table.unit_kv_bytes_per_token[:, q], kv_bits_per_token(precision.kv, 4, 64) / 8
        )
    np.testing.assert_allclose(table.layer_fixed_bytes, 2 * 2 * 512)
    assert (table.first_bytes, table.last_bytes) == (2 * 2000 * 512, 2 * (512 + 2000 * 512))
    assert table.tied_bytes == 0
    np.testing.assert_allclose(table.hop_bytes, [[2 * 40 * 512, 4 * 2 * 40 * 512], [2 * 512, 4 * 2 * 512]])
    # All bf16 parameters, once.
    total = (
        table.unit_weight_bytes[:, 0].sum()
        + table.layer_fixed_bytes.sum()
        + table.first_bytes
        + table.last_bytes
    )
    assert total == 2 * GRAPH.parameters


def test_tied_head_is_held_twice_but_saved_on_one_device():
    graph = make_graph(tied=True)
    table = build_cost_table(graph, units_of(graph, "block"), PRECISIONS, SPECS, WORKLOAD, (1,))
    assert table.tied_bytes == 2 * 2000 * 512
    assert table.first_bytes + table.last_bytes - table.tied_bytes == 2 * (2000 * 512 + 512)


def test_window_bounds_the_cache():
    graph = make_graph(window=16)
    table = build_cost_table(graph, units_of(graph, "block"), PRECISIONS, SPECS, WORKLOAD, (1,))
    per_sequence = table.unit_kv_bytes_per_token[0, 0] * WORKLOAD.total_context
    assert per_sequence == pytest.approx(16 * 2 * 4 * 64 * 2)


def test_unsupported_choices_have_reasons_and_no_costs():
    table = build_cost_table(GRAPH, units_of(GRAPH, "block"), PRECISIONS, SPECS, WORKLOAD, (1,))
    assert table.supported.tolist() == [[True, True, True, True, False], [True, True, True, False, False]]
    assert set(table.reasons) == {
        ("toy", PRECISIONS[4].name),
        ("npu", PRECISIONS[3].name),
        ("npu", PRECISIONS[4].name),
    }
    assert not table.unit_time_s[:, :, 1, :, 3].any()
    assert table.energy_gaps == ((), ("static",))
    assert np.isfinite(table.static_w).all()


def test_a_device_that_runs_none_of_the_choices_costs_nothing():
    """The other device's costs are what they are alone."""
    choice = PRECISIONS[3:4]
    both = build_cost_table(GRAPH, units_of(GRAPH, "block"), choice, SPECS, WORKLOAD, (1,))
    alone = build_cost_table(GRAPH, units_of(GRAPH, "block"), choice, {"toy": SPECS["toy"]}, WORKLOAD, (1,))
    assert both.supported.tolist() == [[True], [False]]
    assert both.unit_time_s[:, :, 0].tolist() == alone.unit_time_s[:, :, 0].tolist()
    assert not both.unit_time_s[:, :, 1].any()


def test_several_templates():
    # Layers 1 and 3 get a window: their decode is cheaper, their linears cost the same.
    even = make_graph()
    block = even.blocks[0]
    ops = tuple(
        replace(op, attention=replace(op.attention, window=4)) if op.attention else op for op in block.ops
    )
    graph = replace(even, blocks=(replace(block, layers=(0, 2)), replace(block, layers=(1, 3), ops=ops)))
    table = build_cost_table(graph, units_of(graph, "sublayer"), PRECISIONS, SPECS, WORKLOAD, (4,))
    time_s = table.unit_time_s[1, 0, 0, :, 0].reshape(4, 2)
    assert time_s[0, 0] == time_s[2, 0] > time_s[1, 0] == time_s[3, 0]
    assert len(set(time_s[:, 1])) == 1


def test_provenance_is_joined():
    calibrated = replace(make_profile("gemm"), provenance="calibrated")
    mixed = {"toy": make_spec(profiles=(calibrated,))}
    units = units_of(GRAPH, "block")
    assert build_cost_table(GRAPH, units, PRECISIONS, SPECS, WORKLOAD, (1,)).provenance == "analytic"
    assert build_cost_table(GRAPH, units, PRECISIONS, mixed, WORKLOAD, (1,)).provenance == "mixed"


@pytest.mark.parametrize("output", [1, 2, 9, 17, 100, 513])
def test_decode_contexts_are_exact_for_linear_costs(output):
    workload = Workload(1, 100, output)
    steps = 100 + np.arange(1, max(2, output))
    assert decode_contexts(workload).mean() == pytest.approx(steps.mean(), rel=1e-12)


def test_decode_contexts_are_close_where_costs_bend():
    # Oracle: the mean over all 512 steps of a clamped and of a logarithmic cost.
    contexts, steps = decode_contexts(Workload(1, 100, 513)), 100 + np.arange(1, 513)
    for cost in (lambda c: np.minimum(c, 300.0), np.log2):
        assert cost(contexts).mean() == pytest.approx(cost(steps).mean(), rel=2e-3)


def test_bad_arguments():
    units = units_of(GRAPH, "block")
    with pytest.raises(ConfigError, match="micro_batches"):
        build_cost_table(GRAPH, units, PRECISIONS, SPECS, WORKLOAD, (0,))
    with pytest.raises(ConfigError, match="precisions"):
        build_cost_table(GRAPH, units, (), SPECS, WORKLOAD, (1,))
    with pytest.raises(ConfigError, match="in no unit"):
        build_cost_table(GRAPH, units[:-1], PRECISIONS, SPECS, WORKLOAD, (1,))
    with pytest.raises(ConfigError, match="more than one unit"):
        build_cost_table(GRAPH, (*units, replace(units[0], name="again")), PRECISIONS, SPECS, WORKLOAD, (1,))
