"""Physical work of operators against hand counts; bytes must be bytes, not elements."""

from __future__ import annotations

import numpy as np
import pytest

from dse.errors import ConfigError, UnsupportedOnDevice
from dse.evaluate.footprint import LivePeak, activation_peak_elements
from dse.evaluate.lowering import lower, lower_beside
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.extent import Extent
from dse.graph.operator import Block, Edge, Op
from studies.catalogue import resolve_model
from tests.factories import make_graph, make_spec, tokens

GRAPH = make_graph()
OPS = {op.name: op for op in GRAPH.blocks[0].ops}
SPEC = make_spec()
BF16 = parse_precision("bf16")


def test_unquantized_linear():
    # 3 sequences of 5 tokens: m = 15, k = 1024, n = 512.
    work = lower(OPS["mlp.down_proj"], BF16, SPEC, "prefill", 3, 5, 5)
    assert (work.kernel, work.profile, work.compute) == ("matmul", "gemm", "bf16")
    assert work.flop == 2 * 15 * 1024 * 512
    assert work.read_bytes == 2 * (1024 * 512 + 15 * 1024)
    assert work.write_bytes == 2 * 15 * 512
    assert work.vector_flop == 0
    assert work.rows == 15


def test_weight_only_linear_stores_scales_and_expands():
    # int4_g64: 4 bits and one 16-bit scale per 64, for 1024 x 512 weights.
    work = lower(OPS["mlp.down_proj"], parse_precision("int4_g64"), SPEC, "decode", 3, 1, 9)
    assert (work.profile, work.compute) == ("gemm_weight_only", "bf16")
    assert work.read_bytes == 1024 * 512 * (4 + 16 / 64) / 8 + 2 * 3 * 1024
    assert work.vector_flop == 2 * 1024 * 512


def test_quantized_activations_are_read_small_and_cost_vector_work():
    # int8 rows and tokens: a 16-bit scale for each of 512 outputs and for each of 3 tokens.
    work = lower(OPS["mlp.down_proj"], parse_precision("int8_row/int8_token/bf16"), SPEC, "decode", 3, 1, 9)
    assert (work.profile, work.compute) == ("gemm_int8", "int8")
    assert work.read_bytes == 512 * (1024 + 2) + 3 * (1024 + 2)
    assert work.write_bytes == 2 * 3 * 512
    # W8A8 kernels were measured with quantized inputs: quantizing them is a kernel of its own.
    assert work.vector_flop == 0
    down, block = OPS["mlp.down_proj"], GRAPH.blocks[0]
    ((what, beside),) = lower_beside(
        down, block, parse_precision("int8_row/int8_token/bf16"), SPEC, "decode", 3, 1, 9
    )
    assert what == "quantize"
    assert beside.vector_flop == 3 * 3 * 1024
    assert (beside.read_bytes, beside.write_bytes) == (2 * 3 * 1024, 3 * (1024 + 2))


def test_bias_is_read_with_the_weights():
    plain = OPS["mlp.down_proj"]
    biased = Op("x", "linear", 1, plain.weight_shape, True, plain.flop)
    difference = (
        lower(biased, BF16, SPEC, "decode", 1, 1, 1).read_bytes
        - lower(plain, BF16, SPEC, "decode", 1, 1, 1).read_bytes
    )
    assert difference == 2 * 512


def test_decode_attention():
    # 2 sequences, 10 positions, 4 KV heads of 64: keys and values of 2 * 256 elements a token.
    work = lower(OPS["attn.core"], BF16, SPEC, "decode", 2, 1, 10)
    assert work.kernel == "attention_decode"
    assert work.flop == 4 * 2 * 512 * 10
    assert work.read_bytes == 2 * 2 * 512 + 2 * 10 * 512 * 2
    assert work.write_bytes == 2 * 2 * 512 + 2 * 512 * 2
    assert (work.parallel, work.context) == (8, 10)


def test_quantized_cache_stores_scales_per_token_and_head():
    # int8_head: 4 heads * 2 * (64 + 2 bytes of scale) a token; its elements are expanded.
    work = lower(OPS["attn.core"], parse_precision("bf16/bf16/int8_head"), SPEC, "decode", 2, 1, 10)
    assert work.read_bytes == 2 * 2 * 512 + 2 * 10 * 8 * 66
    assert work.vector_flop == 2 * 8 * 10 + 2 * 2 * 10 * 512


def test_prefill_attention_counts_causal_pairs():
    npu = make_spec(device_class="npu")
    work = lower(OPS["attn.core"], BF16, npu, "prefill", 2, 10, 10)
    assert work.flop == 4 * 2 * 512 * 55
    assert work.vector_flop == 2 * 8 * 55
    assert work.parallel == 2 * 8
    assert lower(OPS["attn.core"], BF16, SPEC, "decode", 2, 1, 10).parallel == 2 * 4


def test_window_bounds_what_decode_reads():
    windowed = {op.name: op for op in make_graph(window=4).blocks[0].ops}["attn.core"]
    work = lower(windowed, BF16, SPEC, "decode", 2, 1, 10)
    assert work.flop == 4 * 2 * 512 * 4
    assert work.read_bytes == 2 * 2 * 512 + 2 * 4 * 512 * 2
    assert work.context == 4


def test_embedding_reads_its_rows_only():
    work = lower(GRAPH.prologue.ops[0], BF16, SPEC, "prefill", 2, 5, 5)
    assert work.read_bytes == work.write_bytes == 2 * 10 * 512


def test_norm_launches_and_addition_does_not():
    norm = lower(OPS["input_norm"], BF16, SPEC, "decode", 2, 1, 9)
    assert (norm.n_launches, norm.read_bytes) == (1, 2 * (2 * 512 + 512))
    assert lower(OPS["add"], BF16, SPEC, "decode", 2, 1, 9).n_launches == 0


def test_sizes_broadcast():
    batch, context = np.array([1, 2, 4])[:, None], np.arange(1, 6)
    for op in GRAPH.blocks[0].ops:
        work = lower(op, BF16, SPEC, "decode", batch, 1, context)
        assert np.broadcast_shapes(np.shape(work.read_bytes), (3, 5)) == (3, 5)


def test_unsupported_precision_raises():
    with pytest.raises(UnsupportedOnDevice, match="no native nvfp4"):
        lower(OPS["mlp.down_proj"], parse_precision("nvfp4/nvfp4/bf16"), SPEC, "decode", 1, 1, 1)
    with pytest.raises(UnsupportedOnDevice, match="fp8 KV"):
        lower(OPS["attn.core"], parse_precision("bf16/bf16/fp8_e4m3_head"), SPEC, "decode", 1, 1, 1)
    with pytest.raises(ConfigError, match="no weight shape"):
        lower(Op("x", "linear"), BF16, SPEC, "decode", 1, 1, 1)


def test_activation_peak_follows_the_data():
    # x (8) -> a (8 wide to 32) -> b (32 to 8) -> + x: at b live are x 8, a's 32 and b's 8.
    ops = tuple(
        Op(name, "elementwise", read_elements=tokens(1), write_elements=tokens(1))
        for name in ("a", "b", "add")
    )
    flow = (("", "a", 8), ("", "add", 8), ("a", "b", 32), ("b", "add", 8), ("add", "", 8))
    edges = tuple(Edge(source, target, tokens(width)) for source, target, width in flow)
    block = Block("layers.{layer}", (0,), ops, edges)
    graph = make_graph(1)
    small = type(graph)("x", "0", Block("", (), ()), (block,), Block("", (), ()), 8, 1, 1)
    assert activation_peak_elements(small, 2, 5, 5) == 10 * (8 + 32 + 8)


def peak_by_hand(graph, batch, query, context):
    """Walk the operators of each block and sum what is live, one number at a time."""
    highest = max(
        (float(op.read_elements(batch, 1, context) + op.write_elements(batch, 1, context)))
        for op in graph.epilogue.ops
    )
    for block in graph.blocks:
        place = {op.name: index for index, op in enumerate(block.ops)}
        for now in range(len(block.ops)):
            live = {}
            for edge in block.edges:
                born = place.get(edge.source, -1)
                used = [place.get(e.target, len(place) - 1) for e in block.edges if e.source == edge.source]
                if born <= now <= max(used):
                    size = float(edge.elements(batch, query, context))
                    live[edge.source] = max(size, live.get(edge.source, 0.0))
            highest = max(highest, sum(live.values()))
    return highest


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gemma-2-2b", "mixtral-8x7b"])
def test_activation_peak_of_models_by_hand(name):
    graph = load_graph(resolve_model(name))
    sizes = [(1.0, 512.0, 512.0), (8.0, 1.0, 640.0), (3.0, 64.0, 4096.0)]
    batch, query, context = np.array(sizes).T
    want = [peak_by_hand(graph, *entry) for entry in sizes]
    np.testing.assert_allclose(LivePeak.of(graph)(batch, query, context), want, rtol=1e-12)


def test_activation_peak_holds_the_logits():
    graph = make_graph(vocab=1_000_000)
    assert activation_peak_elements(graph, 3, 7, 7) == 3 * (1_000_000 + 512)
    assert Extent.constant(0)(1, 1, 1) == 0
