"""Encoder-decoders: the graph of T5 against real runs of small models on the CPU, in float32.

Oracles: the module's own parameters, torch.utils.flop_counter around the run, and the tensors in the
EncoderDecoderCache that transformers builds; the costs of a once-only encoder against the plain sums.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_document import cost_document
from dse.evaluate.footprint import kv_bytes_per_token
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_precision
from dse.graph.analysis import cut_elements, topological_order
from dse.graph.liveness import peak_activation_bytes
from dse.graph.module import build_config
from dse.graph.operator import OperatorGraph
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.graph.weight_sites import weight_sites
from dse.graph.workload import Workload
from hardware_specs.loader import load_device
from tests.conformance.test_architectures import Allocations

DEVICE = "nvidia_a100_sxm_80gb"
SOURCE = 19
# (batch, query, context) of the decoder: first passes, then decode steps and chunks after cached tokens.
POINTS = [(1, 1, 1), (2, 6, 6), (3, 13, 13), (3, 1, 20), (4, 1, 47), (2, 5, 31)]
T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 48,
    "d_kv": 8,
    "num_heads": 6,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 4,
    "vocab_size": 101,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "n_positions": SOURCE,
}
CONFIGS = {
    "t5": T5,
    "t5-gated": {**T5, "feed_forward_proj": "gated-gelu", "d_kv": 10, "num_decoder_layers": 1},
}


@cache
def graph_of(name: str) -> OperatorGraph:
    return trace_model(ModelSource(name, CONFIGS[name]))


@cache
def real_model(name: str, attention: str = "eager") -> Any:
    torch.manual_seed(0)
    config = build_config(ModelSource(name, CONFIGS[name]))
    builder = AutoModelForSeq2SeqLM
    return builder.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


def run(name: str, point: tuple[int, int, int], counter: Any, model: Any = None) -> Any:
    """Run ``query`` tokens under ``counter``: with the encoder, or after a first pass of the rest."""
    model, (batch, query, context) = model or real_model(name), point
    held = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.ones(batch, SOURCE, dtype=torch.long)
    tokens = {"decoder_input_ids": torch.ones(batch, query, dtype=torch.long), "cache": held}
    with torch.no_grad():
        if context == query:
            with counter:
                model(input_ids=ids, use_cache=True, **tokens)
            return held
        before = torch.ones(batch, context - query, dtype=torch.long)
        first = model(input_ids=ids, decoder_input_ids=before, cache=held, use_cache=True)
        encoded = BaseModelOutput(last_hidden_state=first.encoder_last_hidden_state)
        with counter:
            model(encoder_outputs=encoded, use_cache=True, **tokens)
    return held


@pytest.mark.parametrize("name", CONFIGS)
def test_flop_equals_the_counters(name: str) -> None:
    for point in POINTS:
        counter = FlopCounterMode(display=False)
        run(name, point, counter)
        assert int(graph_of(name).at("flop", *point)) == counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_one_operator(name: str) -> None:
    graph = graph_of(name)
    own = sum(parameter.numel() for parameter in real_model(name).parameters())
    assert graph.parameters == own
    assert sum(op.parameters * part.repeats for part in graph.parts for op in part.ops) == own


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("point", [(3, 4, 4), (2, 3, 40)])
def test_the_cache_holds_what_transformers_builds(name: str, point: tuple[int, int, int]) -> None:
    held = run(name, point, torch.no_grad())
    both = (held.self_attention_cache, held.cross_attention_cache)
    expected = sum(t.numel() for part in both for layer in part.layers for t in (layer.keys, layer.values))
    graph = graph_of(name)
    assert graph.cache_elements(point[0], point[2]) == expected
    bf16 = parse_precision("bf16/bf16/bf16")
    per_token = sum(
        kv_bytes_per_token(op.attention, bf16.kv, point[2])
        for block in graph.block_of_layer
        for op in block.ops
        if op.attention is not None
    )
    assert per_token * point[0] * point[2] == pytest.approx(2 * expected)


def test_equal_layers_are_folded_and_the_source_length_is_a_setting() -> None:
    graph = graph_of("t5")
    assert [block.layers for block in graph.blocks] == [(0,), (1, 2), (3,), (4, 5, 6)]
    assert (graph.source_tokens, graph.n_encoder_layers) == (SOURCE, 3)
    assert graph.blocks[1].path(2) == "encoder.block.2"
    assert graph.blocks[3].path(6) == "decoder.block.3"
    longer = ModelSource("t5", T5, source_tokens=2 * SOURCE)
    assert longer.config_hash != ModelSource("t5", T5).config_hash
    double = trace_model(longer)
    assert double.cache_elements(2, 9) - graph.cache_elements(2, 9) == 2 * 2 * SOURCE * 4 * 48


def test_a_graph_file_keeps_what_runs_once() -> None:
    graph = graph_of("t5")
    assert graph_from_json(graph_to_json(graph)) == graph
    assert any(op.once for block in graph.blocks for op in block.ops)


def test_an_untied_head_has_its_own_matrix() -> None:
    untied = trace_model(ModelSource("t5", {**T5, "tie_word_embeddings": False}))
    assert untied.parameters == graph_of("t5").parameters + 101 * 48


def test_decode_steps_pay_for_no_encoder() -> None:
    """Lowered multiply-adds are the traced ones, with the decoder's own causal pairs instead of all."""
    graph, spec = graph_of("t5"), load_device(DEVICE)
    precision = parse_precision("bf16/bf16/bf16")
    for phase, point in (("prefill", (2.0, 1.0, 1.0)), ("decode", (2.0, 1.0, 20.0))):
        flop = sum(
            float(np.sum(lower(op, precision, spec, phase, *point).flop)) * part.repeats  # type: ignore[arg-type]
            for part in graph.parts
            for op in part.ops
        )
        assert flop == float(graph.at("flop", *point))


def test_layers_priced_together_cost_what_their_operators_do() -> None:
    """The cost table, whose layers are priced together, against the operators priced one by one."""
    spec, precision = load_device(DEVICE), parse_precision("bf16/bf16/bf16")
    workload = Workload(batch=4, prompt_tokens=4, output_tokens=16)
    graph = graph_of("t5")
    table = build_cost_table(graph, units_of(graph, "block"), [precision], {spec.name: spec}, workload, [4])
    rows = cost_document(graph, spec, precision, workload)["operators"]
    for phase, name in enumerate(("prefill", "decode")):
        summed = table.unit_time_s[phase].sum() + table.layer_time_s[phase].sum()
        inside = [
            row["time_s"]
            for row in rows
            if row["phase"] == name and ".block." in row["name"] and "bias" not in row["name"]
        ]
        assert summed == pytest.approx(sum(inside), rel=1e-9)
    idle = [r for r in rows if r["phase"] == "decode" and r["name"].startswith("encoder.")]
    assert idle
    assert all(row["time_s"] == row["energy_j"] == 0 for row in idle)
    assert (table.unit_time_s[1, ..., :3, :] == 0).all()
    assert (table.unit_time_s[1, ..., 3:, :] > 0).all()


def test_encoder_linears_have_units_and_transformations_like_others() -> None:
    graph = graph_of("t5")
    units = units_of(graph, "sublayer")
    assert [unit.name for unit in units if unit.layer == 0] == ["layers.0.attention", "layers.0.ffn"]
    held = sum(len(unit.ops) for unit in units)
    assert held == sum(op.kind == "linear" for block in graph.block_of_layer for op in block.ops)
    sites = {site.op: site for site in weight_sites(graph.blocks[0])}
    assert sites["layer.0.SelfAttention.q"].scale_folds_into == "layer.0.layer_norm"
    assert sites["layer.0.SelfAttention.q"].row_heads == 6
    crossing = {site.op: site for site in weight_sites(graph.blocks[2])}
    assert crossing["layer.1.EncDecAttention.k"].shares_input_with == ("layer.1.EncDecAttention.v",)
    assert not crossing["layer.1.EncDecAttention.k"].reads_stream


def test_fewer_bits_in_the_encoder_shorten_the_first_pass_alone() -> None:
    """A plan can give the encoder a precision of its own: weights shrink, decode steps stay as they are."""
    graph, spec = graph_of("t5"), load_device(DEVICE)
    wide, narrow = parse_precision("bf16"), parse_precision("int4_g16")
    units, workload = units_of(graph, "block"), Workload(2, 4, 8)
    mixed = {unit.name: narrow if unit.layer < 3 else wide for unit in units}
    plain = cost_document(graph, spec, wide, workload)
    less = cost_document(graph, spec, mixed, workload, units)
    assert less["decode"]["time_s"] == pytest.approx(plain["decode"]["time_s"])
    encoder = sum(
        op.parameters for block in graph.block_of_layer[:3] for op in block.ops if op.kind == "linear"
    )
    saved = plain["memory_bytes"]["weights"] - less["memory_bytes"]["weights"]
    assert saved == pytest.approx(encoder * (16 - 5) / 8)


def test_the_view_joins_the_encoder_to_the_decoder() -> None:
    graph = graph_of("t5")
    view = graph.nx()
    assert nx.is_directed_acyclic_graph(view)
    place = {name: index for index, name in enumerate(topological_order(graph))}
    assert place.keys() == set(view)
    assert all(place[source] < place[target] for source, target in view.edges)
    norm = "encoder.final_layer_norm"
    assert list(view.predecessors(norm)) == ["encoder.block.2.layer.1.add"]
    assert list(view.predecessors("encoder.block.0.layer.0.layer_norm")) == ["encoder.embed_tokens"]
    assert list(view.predecessors("decoder.block.0.layer.0.layer_norm")) == ["decoder.embed_tokens"]
    assert nx.has_path(view, "encoder.embed_tokens", "lm_head")


def test_what_a_cut_sends() -> None:
    """In the encoder its stream and what the decoder begins with; in the decoder the encoder's result too."""
    graph, batch, query = graph_of("t5"), 2, 5
    bias, own_bias = 6 * SOURCE * SOURCE, 6 * query * query
    assert cut_elements(graph, 0)(batch, query, query) == batch * 48 * (SOURCE + query) + bias + own_bias
    assert cut_elements(graph, 2)(batch, query, query) == batch * 48 * (SOURCE + query) + own_bias
    assert cut_elements(graph, 4)(batch, query, query) == batch * 48 * (SOURCE + query) + own_bias


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("point", [(2, 6, 6), (3, 1, 9)])
def test_the_activation_peak_is_that_of_a_real_run(name: str, point: tuple[int, int, int]) -> None:
    model = real_model(name, "sdpa")
    allocations = Allocations([*model.parameters(), *model.buffers()])
    held = run(name, point, allocations, model)
    both = (held.self_attention_cache, held.cross_attention_cache)
    kept = [t for part in both for layer in part.layers for t in (layer.keys, layer.values)]
    measured = allocations.peak(kept)
    assert float(peak_activation_bytes(graph_of(name), *point, 4)) == pytest.approx(measured, rel=0.1)
