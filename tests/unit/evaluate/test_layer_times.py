"""LLM-PQ's regression against known coefficients; measured layer times against the published table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cost_models.regression import LinearLatency, features
from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.layer_times import LayerTime, LayerTimes, read_layer_times, with_layer_times
from dse.evaluate.plan_cost import predict
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from tests.factories import make_cluster, make_graph, make_spec

BF16, INT4 = parse_precision("bf16"), parse_precision("int4_g64")


def test_features_by_hand():
    assert features("prefill", 2, 10).tolist() == [2, 10, 20, 200, 1]
    assert features("decode", 2, 10).tolist() == [22, 2, 10, 1]


@pytest.mark.parametrize(
    ("phase", "truth"), [("prefill", (1e-4, 2e-6, 3e-7, 4e-10, 5e-4)), ("decode", (1e-7, 2e-5, 3e-8, 4e-4))]
)
def test_regression_recovers_its_coefficients(phase, truth):
    """Oracle: data made from the coefficients, on the published profiling grid."""
    batch, tokens = (grid.ravel() for grid in np.meshgrid([1, 2, 4, 8, 16, 32], [128, 256, 512]))
    seconds = features(phase, batch, tokens) @ np.array(truth)
    found = LinearLatency.fit(phase, batch, tokens, seconds)
    np.testing.assert_allclose(found.coefficients, truth, rtol=1e-6)
    np.testing.assert_allclose(found(3, 300), features(phase, 3, 300) @ np.array(truth), rtol=1e-9)


def rows_of(device="toy", precision="bf16"):
    times = {"prefill": 0.01, "decode": 0.001}
    return [
        LayerTime(device, parse_precision(precision).name, phase, batch, tokens, scale * batch)
        for phase, scale in times.items()
        for batch in (1.0, 2.0, 4.0, 8.0)
        for tokens in (64.0, 72.0)
    ]


def test_tables_interpolate_and_do_not_extrapolate():
    source = LayerTimes(rows_of(), "table")
    assert source.seconds("toy", BF16.name, "prefill", 3, 64) == pytest.approx(0.03)
    for batch, tokens in ((16, 64), (2, 100)):
        with pytest.raises(ConfigError, match="no measurements around"):
            source.seconds("toy", BF16.name, "prefill", batch, tokens)


def test_tables_say_which_micro_batches_they_cover():
    assert LayerTimes(rows_of(), "table").covered_sizes((2, 8, 16)) == (2, 8)
    with pytest.raises(ConfigError, match="cover none"):
        LayerTimes(rows_of(), "table").covered_sizes((16,))


def test_published_tables_are_read_as_they_are(tmp_path):
    file = tmp_path / "times.json"
    tables = {"T4": {"prefill": {"8": [1.0, 3.0], "16": [2.0, 4.0]}, "decode": {"8": [5.0, 6.0]}}}
    document = {"layer_time_ms": tables, "batch_sizes": [2, 4], "prompt_tokens": 512, "past_tokens": 500}
    file.write_text(json.dumps(document))
    rows = read_layer_times(file)
    eight, wide = (parse_precision(f"{name}/fp16/fp16").name for name in ("int8_row", "fp16"))
    assert LayerTime("T4", eight, "decode", 4, 500, 0.006) in rows
    assert LayerTime("T4", wide, "prefill", 2, 512, 0.002) in rows
    source = LayerTimes(rows, "table")
    assert source.covers("nvidia_t4", eight)
    assert not source.covers("nvidia_t4", wide)
    assert not source.covers("nvidia_t40", eight)
    assert source.seconds("nvidia_t4", eight, "prefill", 3, 512) == pytest.approx(0.002)
    for broken, message in (({"batch_sizes": [2]}, "do not fit"), ({"layer_time_ms": 3}, "do not fit")):
        file.write_text(json.dumps(document | broken))
        with pytest.raises(ConfigError, match=message):
            read_layer_times(file)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="list of measurements"):
        read_layer_times(file)


def test_negative_regressions_are_refused():
    # Falling times: far out the line crosses zero.
    rows = [replace(row, seconds=1.0 / row.batch) for row in rows_of()]
    with pytest.raises(ConfigError, match="the regression gives"):
        LayerTimes(rows, "regression").seconds("toy", BF16.name, "prefill", 100, 64)
    with pytest.raises(ConfigError, match="needs 5 different workloads"):
        LayerTimes(rows[:3], "regression")


def test_a_plan_takes_the_measured_times(tmp_path):
    graph = make_graph(n_layers=3)
    units = units_of(graph, "block")
    spec = make_spec()
    workload = Workload(4, 64, 16)
    table = build_cost_table(graph, units, (BF16, INT4), {"toy": spec}, workload, (4,))
    file = tmp_path / "times.json"
    file.write_text(json.dumps([{**vars(row)} for row in rows_of()]))
    measured = with_layer_times(table, LayerTimes(read_layer_times(file), "table"), workload)
    assert measured.provenance == "measured"
    assert measured.supported.tolist() == [[True, False]]
    assert measured.reasons["toy", INT4.name] == "no measured layer times"
    assignment = Assignment.uniform(tuple(unit.name for unit in units), BF16)
    plan = Plan("toy", "toys", assignment, (Stage(("n_toy/0",), (0, 3)),), 4, 4)
    cost = predict(plan, measured, make_cluster({"toy": spec}), workload)
    edges = table.first_time_s[:, 0, 0] + table.last_time_s[:, 0, 0]
    assert cost.stage_prefill_s[0] == pytest.approx(3 * 0.04 + edges[0])
    assert cost.stage_decode_s[0] == pytest.approx(3 * 0.004 + edges[1])
    fine = build_cost_table(graph, units_of(graph, "linear"), (BF16,), {"toy": spec}, workload, (4,))
    with pytest.raises(ConfigError, match="one unit per layer"):
        with_layer_times(fine, LayerTimes(rows_of(), "table"), workload)


def test_published_layer_times(shared_data):
    """Oracle: 4-bit OPT-30B on cluster 3, 12 layers on a T4: 4 micro-batches of 8 take 1.142 s a round."""
    content = json.loads((shared_data / "planning" / "opt30b_layer_times.json").read_text())
    rows = [
        LayerTime(gpu, f"int{bits}_row" if bits != "16" else "bf16", phase, batch, 512.0, time_ms * 1e-3)
        for gpu, phases in content["layer_time_ms"].items()
        for phase, widths in phases.items()
        for bits, times in widths.items()
        for batch, time_ms in zip(content["batch_sizes"], times, strict=True)
    ]
    source = LayerTimes(rows, "table")
    layer_s = source.seconds("T4", "int4_row", "decode", 8, 512)
    assert 4 * 12 * layer_s == pytest.approx(1.142, abs=2e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,precision\nx,bf16\n", "has no 'phase'"),
        ("device,precision,phase,batch,tokens,seconds\nx,bf16,both,1,1,1\n", "unknown phase 'both'"),
        ("device,precision,phase,batch,tokens,seconds\nx,bf16,decode,1,1,0\n", "must be positive"),
    ],
)
def test_errors_say_where(tmp_path, text, message):
    file = tmp_path / "times.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_layer_times(file)
