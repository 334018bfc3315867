"""JSON, the cache, networkx and GraphML. Oracles: equality after a round trip, networkx's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse.graph.trace
from dse.errors import ConfigError
from dse.graph.cache import graph_path, load_graph
from dse.graph.extent import Extent
from dse.graph.operator import Attention, Block, Edge, Experts, Op, OperatorGraph
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.source import ModelSource
from dse.graph.view import extent_text, to_networkx, write_graphml

powers = st.tuples(*[st.integers(0, 2)] * 3)
extents = st.dictionaries(powers, st.floats(-1e12, 1e12).filter(bool), max_size=4).map(Extent.of)
sizes = st.integers(1, 10**6)
ops = st.builds(
    Op,
    name=st.text(min_size=1, max_size=8),
    kind=st.sampled_from(["linear", "attention", "norm"]),
    parameters=st.integers(0, 10**12),
    weight_shape=st.none() | st.tuples(sizes, sizes),
    has_bias=st.booleans(),
    flop=extents,
    kv_read_elements=extents,
    input_shapes=st.lists(st.lists(extents, max_size=3).map(tuple), max_size=2).map(tuple),
    attention=st.none() | st.builds(Attention, sizes, sizes, sizes, st.none() | sizes),
    tied_to=st.none() | st.text(max_size=5),
    experts=st.none() | st.builds(Experts, sizes, sizes),
    state_elements=extents,
)


def block_of(members: list[Op], layers: tuple[int, ...] = ()) -> Block:
    edges = (Edge("", "a", Extent.constant(2), "x"), Edge("a", "", Extent()))
    return Block("model.layers.{layer}", layers, tuple(members), edges)


@given(st.lists(ops, max_size=3), st.lists(ops, max_size=3))
def test_every_graph_survives_a_round_trip_through_json(first: list[Op], second: list[Op]) -> None:
    blocks = (block_of(first, (0, 2)), block_of(second, (1,)))
    graph = OperatorGraph("m", "h", block_of(second), blocks, block_of(first), 8, 9, 10)
    assert graph_from_json(json.loads(json.dumps(graph_to_json(graph)))) == graph


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 99}, "schema_version: must be 2, but got 99"),
        ({"blocks": None}, "is not an operator graph"),
        ({"prologue": {"ops": 3}}, "is not an operator graph"),
    ],
)
def test_a_document_that_is_no_graph_is_refused(
    llama_graph: OperatorGraph, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        graph_from_json({**graph_to_json(llama_graph), **change}, file="graph.json")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_a_second_load_reads_the_file(llama_source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_graph(llama_source)
    monkeypatch.setattr(dse.graph.trace, "trace_model", lambda source: pytest.fail("traced again"))
    assert load_graph(llama_source) == first
    renamed = load_graph(ModelSource("other-name", llama_source.config))
    assert (renamed.model, renamed.blocks) == ("other-name", first.blocks)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema_version": 2}', "\x00\x01"])
def test_a_damaged_file_is_traced_again(
    llama_source: ModelSource, llama_graph: OperatorGraph, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dse.graph.trace, "trace_model", lambda source: llama_graph)
    path = graph_path(llama_source)
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    assert load_graph(llama_source) == llama_graph
    assert graph_from_json(json.loads(path.read_text())).blocks == llama_graph.blocks


def test_a_cached_graph_needs_no_torch(cache: Path, llama_source: ModelSource) -> None:
    load_graph(llama_source)
    code = (
        "import sys, json\n"
        "from dse.graph.source import ModelSource\n"
        "from dse.graph.cache import load_graph\n"
        "from dse.graph.summary import trace_document\n"
        "from dse.graph.view import to_networkx\n"
        f"graph = load_graph(ModelSource('m', json.loads({json.dumps(json.dumps(llama_source.config))})))\n"
        "trace_document(graph, 1, 4)\n"
        "to_networkx(graph)\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    environment = {"DSE_CACHE": str(cache), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"


def test_another_architecture_has_another_file(llama_source: ModelSource) -> None:
    deeper = ModelSource("m", {**llama_source.config, "num_hidden_layers": 9})
    same = ModelSource("m", {**llama_source.config, "transformers_version": "1.0"})
    assert graph_path(deeper) != graph_path(llama_source) == graph_path(same)


def test_the_view_has_every_operator_of_every_layer(llama_graph: OperatorGraph) -> None:
    view = to_networkx(llama_graph)
    assert view.number_of_nodes() == 2 + 4 * 14 + 2
    assert nx.is_directed_acyclic_graph(view)
    assert nx.is_weakly_connected(view)
    assert [node for node in view if view.out_degree(node) == 0] == ["lm_head"]
    assert sum(parameters for _, parameters in view.nodes(data="parameters")) == llama_graph.parameters
    assert set(view.predecessors("model.layers.2.self_attn.rope")) == {
        "model.rotary_emb",
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.k_proj",
    }
    assert set(view.predecessors("model.layers.0.add")) == {
        "model.embed_tokens",
        "model.layers.0.self_attn.o_proj",
    }
    assert view.nodes["model.layers.1.self_attn.q_proj"] == {
        "kind": "linear",
        "parameters": 2304,
        "block": "model.layers.{layer}",
        "layer": 1,
        "flop": "4608*batch*query",
        "vector_flop": "0",
        "read_elements": "48*batch*query",
        "write_elements": "48*batch*query",
        "kv_read_elements": "0",
        "state_elements": "0",
        "rows": 48,
        "columns": 48,
    }


def test_graphml_reads_back(llama_graph: OperatorGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.graphml"
    write_graphml(llama_graph, path)
    again, view = nx.read_graphml(path), to_networkx(llama_graph)
    assert dict(again.nodes(data=True)) == dict(view.nodes(data=True))
    assert set(again.edges) == set(view.edges)


def test_text_of_a_polynomial() -> None:
    assert extent_text(Extent.of({(1, 0, 1): 32, (1, 1, 0): -32, (0, 2, 0): 0.5})) == (
        "0.5*query^2 + 32*batch*context - 32*batch*query"
    )
    assert extent_text(Extent()) == "0"
