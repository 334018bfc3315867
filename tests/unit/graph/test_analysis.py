"""Questions to a graph. Oracles: networkx's algorithms on the whole view, closed forms, by-hand lists."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.graph.analysis import (
    block_subgraph,
    critical_path,
    cut_elements,
    fusion_groups,
    topological_order,
)
from dse.graph.operator import Experts, Op, OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.weight_sites import weight_sites
from tests.small_models import ARCHITECTURES


@pytest.fixture(scope="module")
def routed() -> OperatorGraph:
    return trace_model(ModelSource("m", ARCHITECTURES["deepseek-v3"]))


@pytest.mark.parametrize("which", ["llama_graph", "gemma_graph", "routed"])
def test_the_order_respects_every_edge(which: str, request: pytest.FixtureRequest) -> None:
    graph = request.getfixturevalue(which)
    place = {name: index for index, name in enumerate(topological_order(graph))}
    view = graph.nx()
    assert place.keys() == set(view)
    assert all(place[a] < place[b] for a, b in view.edges)


def test_the_critical_path_is_networkxs(routed: OperatorGraph) -> None:
    def cost(op: Op) -> float:
        return float(op.at("flop", 2, 8, 8)) + 1

    view = routed.nx()
    weights = {
        (part.full_name(op, layer)): cost(op)
        for layer, part in enumerate(routed.block_of_layer)
        for op in part.ops
    } | {op.name: cost(op) for part in (routed.prologue, routed.epilogue) for op in part.ops}
    start = nx.DiGraph()
    start.add_weighted_edges_from((a, b, weights[b]) for a, b in view.edges)
    start.add_weighted_edges_from(("start", n, weights[n]) for n in view if not view.in_degree(n))
    chain, length = critical_path(routed, cost)
    assert length == pytest.approx(nx.dag_longest_path_length(start))
    assert nx.is_path(view, list(chain))


def test_a_cut_sends_the_residual_stream(llama_graph: OperatorGraph) -> None:
    rotary = 2 * 5 * 8  # cosines and sines of 5 tokens
    assert cut_elements(llama_graph, 1)(3, 5, 9) == 3 * 5 * 48 + rotary
    assert cut_elements(llama_graph, 3)(3, 5, 9) == 3 * 5 * 48
    assert cut_elements(llama_graph, -1)(3, 5, 9) == 3 * 5 * 48 + rotary
    with pytest.raises(IndexError):
        cut_elements(llama_graph, 4)


def test_one_layer_of_the_view(llama_graph: OperatorGraph) -> None:
    part = block_subgraph(llama_graph, 2)
    assert len(part) == 14
    assert all(layer == 2 for _, layer in part.nodes(data="layer"))


def test_what_a_runtime_fuses(llama_graph: OperatorGraph) -> None:
    assert {(group.kind, group.ops) for group in fusion_groups(llama_graph.blocks[0])} == {
        ("shared input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("shared input", ("mlp.gate_proj", "mlp.up_proj")),
        ("norm and add", ("", "input_layernorm")),
        ("norm and add", ("add", "post_attention_layernorm")),
    }


def test_sites_of_a_llama_block(llama_graph: OperatorGraph) -> None:
    sites = {site.op: site for site in weight_sites(llama_graph.blocks[0])}
    assert [(name, s.row_heads, s.column_heads) for name, s in sites.items() if "self_attn" in name] == [
        ("self_attn.q_proj", 6, None),
        ("self_attn.k_proj", 2, None),
        ("self_attn.v_proj", 2, None),
        ("self_attn.o_proj", None, 6),
    ]
    folds = {name.rpartition(".")[2]: site.scale_folds_into for name, site in sites.items()}
    assert folds["q_proj"] == "input_layernorm"
    assert folds["up_proj"] == "post_attention_layernorm"
    assert folds["down_proj"] == "mlp.up_proj"
    assert folds["o_proj"] is None  # two query heads and more read one value head
    assert sites["mlp.up_proj"].shares_input_with == ("mlp.gate_proj",)
    assert {name for name, site in sites.items() if site.writes_stream} == {
        "self_attn.o_proj",
        "mlp.down_proj",
    }
    assert {name for name, site in sites.items() if site.reads_stream} == sites.keys() - {
        "self_attn.o_proj",
        "mlp.down_proj",
    }


def test_the_experts_of_a_layer_are_one_counted_operator(routed: OperatorGraph) -> None:
    op = next(op for op in routed.blocks[1].ops if op.name == "mlp.experts.down_proj")
    assert (op.experts, op.parameters, op.weight_shape) == (Experts(8, 2), 8 * 48 * 16, (8 * 48, 16))
    site = next(site for site in weight_sites(routed.blocks[1]) if site.op == op.name)
    assert (site.n_experts, site.rows, site.columns) == (8, 48, 16)
    assert routed.kv_elements_per_token == 4 * (24 + 4)  # latent and shared rotary key, arXiv 2405.04434


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_experts_in_use(n_experts: int, top_k: int, tokens: int) -> None:
    """Expected at most worst; all at once for many tokens. Broadcasts."""
    routing = Experts(n_experts, min(top_k, n_experts))
    expected, worst = routing.expected_active(tokens), routing.worst_active(tokens)
    assert routing.top_k - 1e-9 <= expected <= worst + 1e-9 <= n_experts + 1e-9
    assert routing.expected_active(np.arange(3)).shape == (3,)


def test_experts_in_use_by_simulation() -> None:
    """Oracle: random routing of 7 tokens to 2 of 8 experts, 20,000 times."""
    random = np.random.default_rng(0)
    ranks = np.argsort(random.random((20_000, 7, 8)), axis=-1)[..., :2].reshape(20_000, -1)
    used = [len(set(row)) for row in ranks.tolist()]
    assert float(Experts(8, 2).expected_active(7)) == pytest.approx(np.mean(used), rel=0.01)
    assert max(used) <= float(Experts(8, 2).worst_active(7)) == 8
