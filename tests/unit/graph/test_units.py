"""Units of traced models. Oracle: each linear of each layer is in exactly one unit, and so is each cache."""

from __future__ import annotations

import pytest

from dse.errors import ConfigError
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import GRANULARITIES, units_of
from tests.small_models import DECODERS

TIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
OPT = {
    "model_type": "opt",
    "hidden_size": 48,
    "num_attention_heads": 6,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "word_embed_proj_dim": 48,
    "vocab_size": 101,
}


@pytest.fixture(scope="module")
def opt_graph() -> OperatorGraph:
    return trace_model(ModelSource("opt", OPT))


def check_cover(graph: OperatorGraph, granularity: str, ties: tuple[tuple[str, ...], ...]) -> None:
    units = units_of(graph, granularity, ties)
    assert len({unit.name for unit in units}) == len(units)
    for layer, block in enumerate(graph.block_of_layer):
        here = [unit for unit in units if unit.layer == layer]
        linears = [op.name for op in block.ops if op.kind == "linear"]
        caches = [op.name for op in block.ops if op.kind == "attention"]
        assert sorted(name for unit in here for name in unit.ops) == sorted(linears)
        assert sorted(name for unit in here for name in unit.attention_ops) == caches


@pytest.mark.parametrize("ties", [(), TIES])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_linear_and_cache_is_in_one_unit(
    llama_graph: OperatorGraph,
    gemma_graph: OperatorGraph,
    opt_graph: OperatorGraph,
    granularity: str,
    ties: tuple[tuple[str, ...], ...],
) -> None:
    for graph in (llama_graph, gemma_graph, opt_graph):
        check_cover(graph, granularity, ties)


def test_names_of_units(llama_graph: OperatorGraph, opt_graph: OperatorGraph) -> None:
    tied = [unit.name for unit in units_of(llama_graph, "linear", TIES)[:4]]
    assert tied == [
        "layers.0.self_attn.q_proj+k_proj+v_proj",
        "layers.0.self_attn.o_proj",
        "layers.0.mlp.gate_proj+up_proj",
        "layers.0.mlp.down_proj",
    ]
    assert [unit.name for unit in units_of(llama_graph, "sublayer")[:2]] == [
        "layers.0.attention",
        "layers.0.ffn",
    ]
    names = [unit.name for unit in units_of(opt_graph, "linear")]
    assert names[4:6] == ["layers.0.fc1", "layers.0.fc2"]  # linears of the block itself


def test_the_cache_belongs_to_the_unit_that_makes_the_values(llama_graph: OperatorGraph) -> None:
    owners = [unit.name for unit in units_of(llama_graph, "linear") if unit.attention_ops]
    assert owners == [f"layers.{layer}.self_attn.v_proj" for layer in range(4)]


def test_an_unknown_granularity(llama_graph: OperatorGraph) -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        units_of(llama_graph, "linears")


def test_the_experts_of_a_layer_are_one_unit() -> None:
    graph = trace_model(ModelSource("mixtral", DECODERS["mixtral"]))
    names = [unit.name for unit in units_of(graph, "expert") if unit.layer == 0]
    single = [unit.name for unit in units_of(graph, "linear") if unit.layer == 0]
    (experts,) = set(names) - set(single)
    ops = next(unit.ops for unit in units_of(graph, "expert") if unit.name == experts)
    block = graph.block_of_layer[0]
    assert list(ops) == [op.name for op in block.ops if op.kind == "linear" and op.experts is not None]
    assert len(ops) == 2
    assert len(names) == len(single) - 1


def test_cross_attention_belongs_to_attention() -> None:
    config = {
        "model_type": "t5",
        "d_model": 48,
        "num_layers": 2,
        "num_heads": 8,
        "vocab_size": 128,
        "n_positions": 8,
        "decoder_start_token_id": 0,
    }
    attention, feed_forward = units_of(trace_model(ModelSource("t5", config)), "sublayer")[4:6]
    assert attention.name == "layers.2.attention"  # the decoder's first, after two of the encoder
    assert len(attention.ops) == 8
    assert len(attention.attention_ops) == 2
    assert [name.rpartition(".")[2] for name in feed_forward.ops] == ["wi", "wo"]
