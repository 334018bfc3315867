"""Plans against hand-made sums, one number at a time, and against the simulation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cost_models.pipeline import pipeline_times
from dse.errors import ConfigError, UnsupportedOnDevice
from dse.evaluate.breakdown import roofline_points
from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_document import Setting, cost_document
from dse.evaluate.effective_bits import effective_bits
from dse.evaluate.plan_cost import plan_timeline, predict
from dse.formats.grammar import parse_precision
from dse.formats.storage import stored_bits
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from hardware_specs.kernels import Interval
from tests.factories import make_cluster, make_graph, make_spec

GRAPH = make_graph()
UNITS = units_of(GRAPH, "block")
BF16, INT4, W8A8 = (parse_precision(name) for name in ("bf16", "int4_g64", "int8_row/int8_token/int8_head"))
WORKLOAD = Workload(batch=8, prompt_tokens=40, output_tokens=9)
SPECS = {
    "toy": make_spec(),
    "npu": make_spec(
        "npu", device_class="npu", bandwidth=30e9, static_w=None, native={"bf16": 2e12}, capacity=2e9
    ),
}
CLUSTER = make_cluster(SPECS)
TABLE = build_cost_table(GRAPH, UNITS, (BF16, INT4, W8A8), SPECS, WORKLOAD, (2, 4, 8))
NAMES = tuple(unit.name for unit in UNITS)


def make_plan(precisions=(BF16, INT4, INT4, BF16), cut=3, micro=(4, 2)) -> Plan:
    stages = (Stage(("n_toy/0",), (0, cut)), Stage(("n_npu/0",), (cut, 4)))
    assignment = Assignment(tuple(zip(NAMES, precisions, strict=True)))
    return Plan("toy", "toys", assignment, stages, *micro)


def test_stage_times_are_sums_of_table_entries():
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    for p, m, stage_s in ((0, 1, cost.stage_prefill_s), (1, 0, cost.stage_decode_s)):
        first = sum(TABLE.unit_time_s[p, m, 0, u, q] for u, q in ((0, 0), (1, 1), (2, 1)))
        first += TABLE.layer_time_s[p, m, 0, :3].sum() + TABLE.first_time_s[p, m, 0]
        second = (
            TABLE.unit_time_s[p, m, 1, 3, 0] + TABLE.layer_time_s[p, m, 1, 3] + TABLE.last_time_s[p, m, 1]
        )
        assert stage_s == pytest.approx((first, second))
    # The network: 50 us + bytes / 1 GB/s.
    assert cost.hop_prefill_s == pytest.approx((50e-6 + 4 * 40 * 512 * 2 / 1e9,))
    assert cost.hop_decode_s == pytest.approx((50e-6 + 2 * 512 * 2 / 1e9,))


def test_times_money_and_rate():
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    times = pipeline_times(
        cost.stage_prefill_s, cost.stage_decode_s, cost.hop_prefill_s, cost.hop_decode_s, 2, 4, 9
    )
    assert (cost.ttft_s, cost.tpot_s, cost.total_s) == (times.ttft_s, times.tpot_s, times.total_s)
    assert cost.throughput_tokens_per_s == pytest.approx(72 / cost.total_s)
    # Two devices at 1 $/h each.
    assert cost.cost_usd_per_mtok == pytest.approx(2 / 3600 * cost.total_s / 72 * 1e6)


def test_energy_is_dynamic_plus_links_plus_known_static():
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    dynamic = 0.0
    for p, m, runs in ((0, 1, 2), (1, 0, 4 * 8)):
        for u, (d, q) in enumerate(((0, 0), (0, 1), (0, 1), (1, 0))):
            dynamic += runs * (TABLE.unit_energy_j[p, m, d, u, q] + TABLE.layer_energy_j[p, m, d, u])
        dynamic += runs * (TABLE.first_energy_j[p, m, 0] + TABLE.last_energy_j[p, m, 1])
        dynamic += runs * TABLE.hop_bytes[p, m] * 8 * 20e-12
    assert cost.energy_j_per_token == pytest.approx((dynamic + 50.0 * cost.total_s) / 72)
    assert cost.energy_excludes_static == ("n_npu/0",)


def test_memory_of_each_device():
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    shapes = [op.weight_shape for op in GRAPH.blocks[0].ops if op.kind == "linear"]
    bf16, int4 = (sum(stored_bits(p.weights, *s) for s in shapes) / 8 for p in (BF16, INT4))
    first, second = cost.memory_bytes["n_toy/0"], cost.memory_bytes["n_npu/0"]
    assert first.weights == bf16 + 2 * int4 + 3 * 2048 + TABLE.first_bytes
    assert second.weights == bf16 + 2048 + TABLE.last_bytes
    assert first.kv == 3 * second.kv == 3 * 8 * 49 * (2 * 4 * 64 * 2)
    assert first.reserve == 1e9
    assert cost.fits
    assert cost.memory_total_bytes == first.total + second.total


def test_too_small_a_device_says_by_how_much():
    small = {**SPECS, "npu": make_spec("npu", capacity=1e9)}
    cost = predict(make_plan(), TABLE, make_cluster(small), WORKLOAD)
    assert not cost.fits
    assert cost.missing_bytes["n_npu/0"] == cost.memory_bytes["n_npu/0"].total - 1e9
    assert cost.missing_bytes["n_toy/0"] == 0


def test_tied_matrix_is_held_once_on_one_device():
    graph = make_graph(tied=True)
    table = build_cost_table(graph, UNITS, (BF16,), SPECS, WORKLOAD, (8,))
    plan = Plan("toy", "toys", Assignment.uniform(NAMES, BF16), (Stage(("n_toy/0",), (0, 4)),), 8, 8)
    assert predict(plan, table, CLUSTER, WORKLOAD).memory_bytes["n_toy/0"].weights == 2 * graph.parameters


def test_timeline_has_every_station():
    rows = plan_timeline(make_plan(), TABLE, CLUSTER, WORKLOAD)
    assert {row["device"] for row in rows} == {"n_toy/0", "n_toy/0 -> n_npu/0", "n_npu/0"}
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    assert max(row["end_s"] for row in rows if row["phase"] == "prefill") == pytest.approx(cost.ttft_s)
    assert {row["micro_batch"] for row in rows if row["phase"] == "decode"} == {0, 1, 2, 3}


def test_one_device_equals_the_cost_document():
    # Two independent sums of the same model: the table's, and operator by operator.
    plan = Plan("toy", "toys", Assignment.uniform(NAMES, INT4), (Stage(("n_toy/0",), (0, 4)),), 8, 8)
    cost = predict(plan, TABLE, CLUSTER, WORKLOAD)
    document = cost_document(GRAPH, SPECS["toy"], INT4, WORKLOAD)
    mixed = cost_document(GRAPH, SPECS["toy"], dict.fromkeys(NAMES, INT4), WORKLOAD, UNITS)
    for other in (document, mixed):
        assert other["ttft_s"] == pytest.approx(cost.ttft_s)
        assert other["tpot_s"] == pytest.approx(cost.tpot_s)
        assert other["energy_j_per_token"] == pytest.approx(cost.energy_j_per_token)
        assert other["memory_bytes"] == pytest.approx(cost.memory_bytes["n_toy/0"].to_json())
        assert other["fits"]


def test_cost_document_has_the_agreed_keys():
    document = cost_document(GRAPH, SPECS["npu"], BF16, WORKLOAD)
    for phase in ("prefill", "decode"):
        assert set(document[phase]) == {"time_s", "interval_s", "energy_j", "bound_by"}
        rows = [row for row in document["operators"] if row["phase"] == phase]
        assert sum(row["time_s"] for row in rows) == pytest.approx(document[phase]["time_s"])
        assert sum(row["energy_j"] for row in rows) == pytest.approx(document[phase]["energy_j"])
    assert set(document["memory_bytes"]) == {"weights", "kv", "activations", "reserve", "total"}
    assert document["energy_excludes"] == ["static"]
    assert document["provenance"] == "analytic"
    names = {row["name"] for row in document["operators"]}
    assert {"embed_tokens", "layers.3.attn.core", "lm_head"} <= names


def test_roofline_points_lie_under_the_roofs():
    spec = SPECS["toy"]
    points = roofline_points(GRAPH, spec, BF16, WORKLOAD)
    assert {point["phase"] for point in points} == {"prefill", "decode"}
    for point in points:
        roof = min(100e12, point["intensity_flop_per_byte"] * 1e12)
        assert 0 < point["achieved_flop_per_s"] <= roof


def test_intervals_and_carbon():
    # Every kernel may take 0.9 to 1.2 times its estimate: so may their sum.
    profiles = tuple(replace(entry, interval=Interval(0.9, 1.2)) for entry in SPECS["toy"].kernels)
    spec = replace(SPECS["toy"], kernels=profiles)
    document = cost_document(GRAPH, spec, BF16, WORKLOAD, setting=Setting(400.0))
    for phase in ("prefill", "decode"):
        total = document[phase]["time_s"]
        assert document[phase]["interval_s"] == pytest.approx([0.9 * total, 1.2 * total])
    request = document["energy_j_per_token"] * WORKLOAD.output_tokens
    assert document["energy_j_per_request"] == pytest.approx(request)
    # 3.6 MJ are a kWh.
    assert document["co2e_g_per_request"] == pytest.approx(request / 3.6e6 * 400)
    assert cost_document(GRAPH, spec, BF16, WORKLOAD)["co2e_g_per_request"] is None


def test_effective_bits():
    # int4_g64 stores 4 + 16/64 = 4.25 bits; embedding, head and norms have 16.
    whole, linear = effective_bits(GRAPH, Assignment.uniform(NAMES, INT4), UNITS)
    n_linear = 4 * (512 * 512 * 2 + 256 * 512 * 2 + 3 * 512 * 1024)
    assert linear == pytest.approx(4.25)
    assert whole == pytest.approx((4.25 * n_linear + 16 * (GRAPH.parameters - n_linear)) / GRAPH.parameters)
    assert effective_bits(GRAPH, Assignment.uniform(NAMES, BF16), UNITS) == (16.0, 16.0)


def test_errors_name_what_is_wrong():
    parallel = replace(make_plan(), stages=(Stage(("n_toy/0", "n_npu/0"), (0, 4), 2),))
    with pytest.raises(ConfigError, match="must be of one type"):
        predict(parallel, TABLE, CLUSTER, WORKLOAD)
    with pytest.raises(ConfigError, match="micro-batch 3 is not priced"):
        predict(make_plan(micro=(3, 2)), TABLE, CLUSTER, WORKLOAD)
    with pytest.raises(ConfigError, match="not priced"):
        predict(make_plan((BF16, BF16, BF16, parse_precision("int3_g64"))), TABLE, CLUSTER, WORKLOAD)
    with pytest.raises(UnsupportedOnDevice, match="no native int8"):
        predict(make_plan((BF16, BF16, BF16, W8A8)), TABLE, CLUSTER, WORKLOAD)
    short = replace(make_plan(), stages=(Stage(("n_toy/0",), (0, 2)),))
    with pytest.raises(ConfigError, match="stages hold 2 layers"):
        predict(short, TABLE, CLUSTER, WORKLOAD)
    twice = replace(make_plan(), stages=(Stage(("n_toy/0",), (0, 2)), Stage(("n_toy/0",), (2, 4))))
    with pytest.raises(ConfigError, match="in two stages"):
        predict(twice, TABLE, CLUSTER, WORKLOAD)
    nowhere = replace(make_plan(), stages=(Stage(("n_toi/0",), (0, 4)),))
    with pytest.raises(ConfigError, match="n_toy/0"):
        predict(nowhere, TABLE, CLUSTER, WORKLOAD)


def test_intervals_are_those_of_all_stages_at_one_end():
    """Oracle: a device whose every kernel has the interval (0.5, 2) gives half and twice the time."""
    wide = replace(
        SPECS["toy"],
        kernels=tuple(replace(entry, interval=Interval(0.5, 2.0)) for entry in SPECS["toy"].kernels),
    )
    table = build_cost_table(GRAPH, UNITS, (BF16,), {"toy": wide}, WORKLOAD, (2, 4))
    plan = Plan("toy", "toys", Assignment.uniform(NAMES, BF16), (Stage(("n_toy/0",), (0, 4)),), 4, 2)
    cost = predict(plan, table, make_cluster({"toy": wide}), WORKLOAD)
    for value, interval in (
        (cost.ttft_s, cost.ttft_interval_s),
        (cost.tpot_s, cost.tpot_interval_s),
        (cost.total_s, cost.total_interval_s),
    ):
        assert interval == pytest.approx((value / 2, 2 * value))
    # Hops have no interval: they are the same at both ends.
    two = predict(make_plan(), TABLE, CLUSTER, WORKLOAD)
    assert two.ttft_interval_s == pytest.approx((two.ttft_s, two.ttft_s))


def test_joules_and_grams_per_request():
    """Oracle: 3.6e6 J are a kWh; 72 tokens are 8 requests."""
    cost = predict(make_plan(), TABLE, CLUSTER, WORKLOAD, grid_g_per_kwh=400.0)
    assert cost.energy_j_per_request == pytest.approx(9 * cost.energy_j_per_token)
    assert cost.co2e_g_per_request == pytest.approx(cost.energy_j_per_request / 3.6e6 * 400)
    assert predict(make_plan(), TABLE, CLUSTER, WORKLOAD).co2e_g_per_request is None
    green = replace(CLUSTER, grid_g_per_kwh=50.0)
    own = predict(make_plan(), TABLE, green, WORKLOAD).co2e_g_per_request
    assert own == pytest.approx(cost.co2e_g_per_request / 8)
