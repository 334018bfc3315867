"""Groups, offload, unknown energies and what would fit, against the cost table and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models.offload import streamed_layers_s
from dse.errors import ConfigError
from dse.evaluate.beside import Extras, parse_outliers
from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_document import Setting, cost_document
from dse.evaluate.offload import parse_offload
from dse.evaluate.tensor_parallel import TensorGroup
from dse.formats.grammar import parse_precision
from dse.graph.operator import Experts
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.graph.workload import Workload
from hardware_specs.loader import load_runtime
from hardware_specs.spec import Link, Power
from tests.factories import make_graph, make_spec
from tests.small_models import DECODERS

GRAPH = make_graph(n_layers=4)
INT4, BF16 = parse_precision("int4_g64"), parse_precision("bf16")
WORKLOAD = Workload(4, 32, 9)
LINK = Link("intra", "scale_up", 100e9, 2e-6, 5e-12)
PCIE = Link("pcie", "host", 10e9, 1e-6, 6e-12)
SPEC = replace(make_spec(), links=(LINK, PCIE))


def small(capacity: float):
    """A device whose main memory is as large as asked, without a reserve."""
    memory = replace(SPEC.memory[0], capacity_bytes=capacity)
    return replace(SPEC, memory=(memory,), reserve_bytes=0.0)


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("extras", [Extras(), Extras("none", parse_outliers("csr:1%"))])
def test_a_group_costs_what_the_cost_table_says(degree, extras):
    """Oracle: the dense table, which shares out arrays instead of operators."""
    group = TensorGroup(SPEC, degree, LINK)
    document = cost_document(GRAPH, SPEC, INT4, WORKLOAD, setting=Setting(group=group, extras=extras))
    units = units_of(GRAPH, "block")
    table = build_cost_table(GRAPH, units, (INT4,), {"toy": SPEC}, WORKLOAD, (4,), [group], extras=extras)
    for p, phase in enumerate(("prefill", "decode")):
        blocks = table.unit_time_s[p, 0, 1].sum() + table.layer_time_s[p, 0, 1].sum()
        edges = table.first_time_s[p, 0, 1] + table.last_time_s[p, 0, 1]
        assert document[phase]["time_s"] == pytest.approx(blocks + edges, rel=1e-9)
    assert document["tensor_parallel"] == degree
    # Each device holds a part of the weights; the cache is shared out by KV heads.
    whole = cost_document(GRAPH, SPEC, INT4, WORKLOAD, setting=Setting(extras=extras))["memory_bytes"]
    part = document["memory_bytes"]
    assert part["kv"] == pytest.approx(whole["kv"] / degree)
    assert 1 / degree < part["weights"] / whole["weights"] < 1.05 / degree


def test_offload_streams_what_does_not_fit():
    """Oracle: the share that leaves room for two buffers, and the form of streams bound by the link."""
    whole = cost_document(GRAPH, small(1e12), BF16, WORKLOAD)
    layers = [row for row in whole["operators"] if row["name"].startswith("layers.")]
    linears = 2 * sum(
        op.weight_shape[0] * op.weight_shape[1] for op in GRAPH.blocks[0].ops if op.weight_shape
    )
    total = 4 * linears
    spec = small(whole["memory_bytes"]["total"] - 0.25 * total)
    document = cost_document(
        GRAPH, spec, BF16, WORKLOAD, setting=Setting(offload=parse_offload(spec, ["host"]))
    )
    share = 0.25 * total / (total - 2 * linears)
    assert document["offload"]["share_frac"] == pytest.approx(share)
    assert document["fits"]
    assert document["memory_bytes"]["total"] == pytest.approx(spec.main_memory.capacity_bytes)
    moved_s = share * (linears / 10e9 + 7 * 1e-6)
    assert document["offload"]["decode_transfer_s"] == pytest.approx(4 * moved_s)
    layer_s = sum(row["time_s"] for row in layers if row["phase"] == "decode") / 4
    outside_s = whole["decode"]["time_s"] - 4 * layer_s
    assert document["tpot_s"] == pytest.approx(outside_s + streamed_layers_s([layer_s] * 4, [moved_s] * 4))
    assert document["decode"]["bound_by"] == "offload"
    # All bits that are fetched cross the link, and the device idles for longer.
    added_j = share * total * 8 * 6e-12 + 50.0 * (document["tpot_s"] - whole["tpot_s"])
    assert document["decode"]["energy_j"] - whole["decode"]["energy_j"] == pytest.approx(added_j)


def test_offload_without_need_changes_nothing():
    plain = cost_document(GRAPH, SPEC, BF16, WORKLOAD)
    ways = parse_offload(SPEC, ["ssd:2GB/s"])
    document = cost_document(GRAPH, SPEC, BF16, WORKLOAD, setting=Setting(offload=ways))
    assert document["offload"]["share_frac"] == 0
    assert document["tpot_s"] == plain["tpot_s"]


def test_caches_answer_a_share_of_the_requests():
    """Oracle: of 100 bytes asked, 80 are on the device, 19 come at 10 and 1 at 2 GB/s, none overlapped."""
    whole = cost_document(GRAPH, small(1e12), BF16, WORKLOAD)
    spec = small(whole["memory_bytes"]["total"] * 0.9)
    bare = replace(spec, links=(replace(PCIE, latency_s=0.0),))
    ways = parse_offload(bare, ["host", "ssd:2GB/s"], "80%,0.95", 0.0)
    document = cost_document(GRAPH, bare, BF16, WORKLOAD, setting=Setting(offload=ways))
    linears = 2 * sum(
        op.weight_shape[0] * op.weight_shape[1] for op in GRAPH.blocks[0].ops if op.weight_shape
    )
    moved_s = 4 * linears * (0.2 * 0.95 / 10e9 + 0.2 * 0.05 / 2e9)
    assert document["offload"]["decode_transfer_s"] == pytest.approx(moved_s)
    assert document["tpot_s"] - whole["tpot_s"] == pytest.approx(moved_s)


def test_only_experts_in_use_are_fetched():
    """Oracle: 1 token of top 2 of 8 experts asks for a fourth of the expert matrices."""
    ops = tuple(
        replace(
            op,
            experts=Experts(8, 2),
            weight_shape=(8 * op.weight_shape[0], op.weight_shape[1]),
            parameters=8 * op.parameters,
            flop=op.flop * 2,
        )
        if op.name.startswith("mlp.") and op.weight_shape
        else op
        for op in GRAPH.blocks[0].ops
    )
    graph = replace(GRAPH, blocks=(replace(GRAPH.blocks[0], ops=ops),))
    one = Workload(1, 32, 9)
    whole = cost_document(graph, small(1e12), BF16, one)
    spec = replace(small(whole["memory_bytes"]["total"] * 0.9), links=(replace(PCIE, latency_s=0.0),))
    ways = Setting(offload=parse_offload(spec, ["host"]))
    document = cost_document(graph, spec, BF16, one, setting=ways)
    asked = sum(
        2 * op.weight_shape[0] * op.weight_shape[1] * (0.25 if op.experts else 1.0)
        for op in ops
        if op.weight_shape
    )
    share = document["offload"]["share_frac"]
    assert document["offload"]["decode_transfer_s"] == pytest.approx(4 * share * asked / 10e9)


@pytest.mark.parametrize(
    ("texts", "hits", "message"),
    [
        (["disk"], "", "host or ssd"),
        (["host:fast"], "", "host or ssd"),
        (["host:3GB"], "", "host or ssd"),
        (["host", "ssd"], "", "need 2 hit rates"),
        (["host"], "0.5,0.5", "need 1 hit rates"),
        (["host"], "120%", "lies in 0 to 1"),
        (["host", "host:1GB/s"], "1,1", "given twice"),
        ([], "0.5", "need --offload"),
    ],
)
def test_wrong_offloads(texts, hits, message):
    with pytest.raises(ConfigError, match=message):
        parse_offload(SPEC, texts, hits)
    with pytest.raises(ConfigError, match="no host link"):
        parse_offload(make_spec(), ["host"])
    assert parse_offload(SPEC, []) is None


def test_what_would_fit_does():
    """Oracle: the same document with the change that it names; one step less does not fit."""
    workload = Workload(64, 256, 64)
    total = cost_document(GRAPH, small(1e12), BF16, workload)["memory_bytes"]["total"]
    spec = small(total * 0.6)
    document = cost_document(GRAPH, spec, BF16, workload)
    assert document["missing_bytes"] == pytest.approx(0.4 * total)
    would = document["would_fit"]
    for batch, fits in ((would["batch"], True), (would["batch"] + 1, False)):
        assert cost_document(GRAPH, spec, BF16, replace(workload, batch=batch))["fits"] is fits
    group = TensorGroup(spec, would["tensor_parallel"], LINK)
    assert cost_document(GRAPH, spec, BF16, workload, setting=Setting(group=group))["fits"]
    assert cost_document(GRAPH, small(1e12), BF16, workload)["would_fit"] is None
    hopeless = cost_document(GRAPH, small(1e3), BF16, workload)["would_fit"]
    assert hopeless["batch"] is None
    assert hopeless["offload_bytes"] is None


def test_unknown_energy_is_not_zero():
    """A device of which no part is known has no joules, and the reason; one known in part has."""
    blind = replace(SPEC, power=Power(None, None, {}, None, "the vendor says nothing"))
    document = cost_document(GRAPH, blind, BF16, WORKLOAD, setting=Setting(grid_g_per_kwh=100.0))
    assert document["energy_j_per_token"] is None
    assert document["prefill"]["energy_j"] is None
    assert document["co2e_g_per_request"] is None
    assert document["energy_excludes"] == ["static", "memory", "compute"]
    assert "the vendor says nothing" in document["energy_reason"]
    partly = replace(SPEC, power=replace(SPEC.power, static_w=None))
    known = cost_document(GRAPH, partly, BF16, WORKLOAD)
    assert known["energy_j_per_token"] > 0
    assert known["energy_excludes"] == ["static"]


def test_money_of_a_group():
    # 1 USD/h each: two devices cost 2 / 3600 USD a second.
    group = TensorGroup(SPEC, 2, LINK)
    document = cost_document(GRAPH, SPEC, BF16, WORKLOAD, setting=Setting(group=group))
    expected = 2 / 3600 * document["total_s"] / (4 * 9) * 1e6
    assert document["cost_usd_per_mtok"] == pytest.approx(expected)
    assert np.isfinite(document["energy_j_per_request"])


@pytest.mark.parametrize("precision", [INT4, BF16])
@pytest.mark.parametrize("runtime", ["vllm", "generic", None])
def test_a_runtime_costs_what_the_cost_table_says(precision, runtime):
    """Oracle: the dense table; its fused launches, saved reads and host time are those of the rows."""
    graph = trace_model(ModelSource("small", DECODERS["llama"]))
    serving = None if runtime is None else load_runtime(runtime)
    document = cost_document(graph, SPEC, precision, WORKLOAD, setting=Setting(runtime=serving))
    units = units_of(graph, "block")
    table = build_cost_table(graph, units, (precision,), {"toy": SPEC}, WORKLOAD, (4,), runtime=serving)
    for p, phase in enumerate(("prefill", "decode")):
        parts = (table.unit_time_s[p].sum(), table.layer_time_s[p].sum())
        edges = (table.first_time_s[p].sum(), table.last_time_s[p].sum())
        assert document[phase]["time_s"] == pytest.approx(sum((*parts, *edges)), rel=1e-9)
    plain = cost_document(graph, SPEC, precision, WORKLOAD)
    assert (document["decode"]["time_s"] == plain["decode"]["time_s"]) == (runtime != "vllm")
