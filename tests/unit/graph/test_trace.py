"""The parts of a trace. Oracles: closed forms for a Llama block, torch's own attention, by-hand counts."""

from __future__ import annotations

from typing import Any

import pytest

from dse.errors import ConfigError
from dse.graph.fold import build_skeleton
from dse.graph.module import build_module
from dse.graph.operator import Attention, OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from tests.unit.graph.conftest import LLAMA

B, Q, C = 3, 4, 10  # an arbitrary shape for closed forms
H, F, HEADS, KV_HEADS, D, V = 48, 80, 6, 2, 8, 101


def op_named(graph: OperatorGraph, name: str) -> Any:
    return next(op for part in graph.parts for op in part.ops if op.name == name)


def test_names_and_kinds_of_a_llama_block(llama_graph: OperatorGraph) -> None:
    assert [(op.name, op.kind) for op in llama_graph.blocks[0].ops] == [
        ("input_layernorm", "norm"),
        ("self_attn.q_proj", "linear"),
        ("self_attn.k_proj", "linear"),
        ("self_attn.v_proj", "linear"),
        ("self_attn.rope", "rope"),
        ("self_attn.attention", "attention"),
        ("self_attn.o_proj", "linear"),
        ("add", "elementwise"),
        ("post_attention_layernorm", "norm"),
        ("mlp.gate_proj", "linear"),
        ("mlp.up_proj", "linear"),
        ("mlp.act_fn", "activation"),
        ("mlp.down_proj", "linear"),
        ("add_2", "elementwise"),
    ]
    assert [op.name for op in llama_graph.prologue.ops] == ["model.embed_tokens", "model.rotary_emb"]
    assert [op.name for op in llama_graph.epilogue.ops] == ["model.norm", "lm_head"]
    assert llama_graph.blocks[0].layers == (0, 1, 2, 3)
    assert llama_graph.blocks[0].prefix == "model.layers.{layer}"


@pytest.mark.parametrize(
    ("name", "rows", "inputs"),
    [
        ("self_attn.q_proj", HEADS * D, H),
        ("self_attn.k_proj", KV_HEADS * D, H),
        ("mlp.down_proj", H, F),
        ("lm_head", V, H),
    ],
)
def test_a_linear_is_two_flop_per_weight_and_token(
    llama_graph: OperatorGraph, name: str, rows: int, inputs: int
) -> None:
    op = op_named(llama_graph, name)
    assert op.weight_shape == (rows, inputs)
    assert op.parameters == rows * inputs
    assert op.flop(B, Q, C) == 2 * rows * inputs * B * Q
    assert op.read_elements(B, Q, C) == B * Q * inputs
    assert op.write_elements(B, Q, C) == B * Q * rows
    assert [[float(size(B, Q, C)) for size in shape] for shape in op.output_shapes] == [[B, Q, rows]]
    assert [[float(size(B, Q, C)) for size in shape] for shape in op.input_shapes] == [[B, Q, inputs]]


def test_attention_has_both_products_and_its_cache(llama_graph: OperatorGraph) -> None:
    op = op_named(llama_graph, "self_attn.attention")
    assert op.attention == Attention(HEADS, KV_HEADS, D)
    assert op.flop(B, Q, C) == 2 * 2 * B * HEADS * Q * C * D
    assert op.kv_write_elements(B, Q, C) == 2 * B * Q * KV_HEADS * D
    assert op.kv_read_elements(B, Q, C) == 2 * B * (C - Q) * KV_HEADS * D
    assert op.read_elements(B, Q, C) == B * Q * (HEADS + 2 * KV_HEADS) * D
    assert op.vector_flop(B, Q, C) == 6 * B * HEADS * Q * C  # scaling 1, softmax 5


def test_elementwise_operators_move_each_tensor_once(llama_graph: OperatorGraph) -> None:
    tokens = B * Q
    rope, add, act = (op_named(llama_graph, n) for n in ("self_attn.rope", "add", "mlp.act_fn"))
    assert rope.write_elements(B, Q, C) == tokens * (HEADS + KV_HEADS) * D
    assert rope.read_elements(B, Q, C) == tokens * (HEADS + KV_HEADS) * D + 2 * Q * D  # cosines and sines
    assert (add.read_elements(B, Q, C), add.write_elements(B, Q, C)) == (2 * tokens * H, tokens * H)
    assert (act.read_elements(B, Q, C), act.write_elements(B, Q, C)) == (2 * tokens * F, tokens * F)
    assert act.vector_flop(B, Q, C) == tokens * F * (4 + 1)  # SiLU 4, gate 1


def test_data_flow_of_a_block(llama_graph: OperatorGraph) -> None:
    edges = {(edge.source, edge.target, edge.origin) for edge in llama_graph.blocks[0].edges}
    assert {
        ("", "input_layernorm", ""),
        ("", "add", ""),
        ("", "self_attn.rope", "model.rotary_emb"),
        ("self_attn.v_proj", "self_attn.attention", ""),
        ("mlp.up_proj", "mlp.act_fn", ""),
        ("add", "add_2", ""),
        ("add_2", "", ""),
    } <= edges
    assert ("self_attn.k_proj", "self_attn.attention", "") not in edges
    leaving = next(edge for edge in llama_graph.blocks[0].edges if edge.target == "")
    assert leaving.elements(B, Q, C) == B * Q * H


def test_alternating_windows_are_separate_templates(gemma_graph: OperatorGraph) -> None:
    assert [block.layers for block in gemma_graph.blocks] == [(0, 2, 4), (1, 3)]
    windows = [
        op.attention.window for block in gemma_graph.blocks for op in block.ops if op.attention is not None
    ]
    assert windows == [16, None]


def test_a_tied_head_owns_nothing(gemma_graph: OperatorGraph) -> None:
    head = op_named(gemma_graph, "lm_head")
    assert (head.parameters, head.tied_to, head.weight_shape) == (0, "model.embed_tokens", (V, H))


def test_a_sliding_window_bounds_the_context_in_decode(gemma_graph: OperatorGraph) -> None:
    op = next(op for op in gemma_graph.blocks[0].ops if op.kind == "attention")
    assert op.at("flop", 1, 1, 100) == op.flop(1, 1, 16)
    assert op.at("kv_read_elements", 1, 1, 100) == op.kv_read_elements(1, 1, 16)
    assert op.at("flop", 2, 100, 100) == op.flop(2, 100, 100)


def test_transposed_weights_have_outputs_first() -> None:
    config = {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 6, "vocab_size": 101}
    graph = trace_model(ModelSource("gpt2", config))
    op = op_named(graph, "attn.c_attn")
    assert (op.kind, op.weight_shape, op.has_bias) == ("linear", (144, 48), True)
    assert op.parameters == 144 * 48 + 144


def test_equal_layers_are_kept_once_and_counted_in_full() -> None:
    source = ModelSource("llama", {**LLAMA, "num_hidden_layers": 7})
    skeleton = build_skeleton(source)
    assert [stack.kinds for stack in skeleton.stacks] == [(tuple(range(7)),)]
    assert skeleton.parameters == sum(p.numel() for p in build_module(source).parameters())
    assert skeleton.config.num_hidden_layers == 2


def test_layers_that_differ_in_a_switch_are_not_folded() -> None:
    config = {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}
    (stack,) = build_skeleton(ModelSource("qwen2", {**config, "max_window_layers": 3})).stacks
    assert (stack.kinds, stack.windows) == (((0, 1, 2), (3,)), (None, 8))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "whisper"}, "'whisper' does not build"),
        ({"model_type": "lama"}, "architecture 'lama' is not known.*did you mean 'llama'"),
        ({"num_attention_heads": "six"}, "num_attention_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a multiple of the number of attention"),
        ({"num_key_value_heads": 4}, "num_key_value_heads: must divide the 6 attention heads, but got 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be at least 1, but got 0"),
        ({"num_hidden_layers": 2.5}, "expected int, got float"),
        ({"hidden_size": "48"}, "'hidden_size' expected int, got str"),
        ({"vocab_size": None}, "'vocab_size' expected int, got NoneType"),
        ({"hidden_act": "sillu"}, "hidden_act: unknown activation 'sillu'.*did you mean 'silu'"),
        (
            {"rope_parameters": {"rope_type": "none", "rope_theta": 1e4}},
            "rope_type: unknown rope type 'none'",
        ),
        ({"model_type": "rwkv"}, "takes no cache, so its decode cannot be traced"),
        (
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8},
            "num_experts_per_tok: a token cannot go to 8 of 4 experts",
        ),
    ],
)
def test_what_cannot_be_traced_says_why_in_one_line(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        trace_model(ModelSource("my-model", {**LLAMA, **change}))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("my-model: ")
