"""Encoder-decoders: the graph of T5 against real runs of small models on the CPU, in float32.

Oracles: the module's own parameters, torch.utils.flop_counter around the run, and the tensors in the
EncoderDecoderCache that transformers builds; the costs of a once-only encoder against the plain sums.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from dse.evaluate.breakdown import cost_document
from dse.evaluate.build import build_cost_table
from dse.evaluate.footprint import kv_bytes_per_token
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_precision
from dse.graph.operator import OperatorGraph
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.skeleton import build_config
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.graph.workload import Workload
from hardware_specs.loader import load_device

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
def real_model(name: str) -> Any:
    torch.manual_seed(0)
    config = build_config(ModelSource(name, CONFIGS[name]))
    builder = AutoModelForSeq2SeqLM
    return builder.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def run(name: str, point: tuple[int, int, int], counter: Any) -> Any:
    """Run ``query`` tokens under ``counter``: with the encoder, or after a first pass of the rest."""
    model, (batch, query, context) = real_model(name), point
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
    assert [block.layers for block in graph.blocks] == [(0,), (1, 2, 3)]
    assert graph.source_tokens == SOURCE
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


def test_decode_times_grow_with_the_source_by_its_cross_attention_alone() -> None:
    """The cost table, whose layers are priced together, against the operators priced one by one."""
    spec, precision = load_device(DEVICE), parse_precision("bf16/bf16/bf16")
    workload = Workload(batch=4, prompt_tokens=4, output_tokens=16)
    graph = graph_of("t5")
    table = build_cost_table(graph, units_of(graph, "block"), [precision], {spec.name: spec}, workload, [4])
    rows = cost_document(graph, spec, precision, workload)["operators"]
    for phase, name in enumerate(("prefill", "decode")):
        summed = table.unit_time_s[phase].sum() + table.layer_time_s[phase].sum()
        each = [row["time_s"] for row in rows if row["phase"] == name and ".block." in row["name"]]
        inside = [
            row["time_s"]
            for row in rows
            if row["phase"] == name and row["name"].startswith("decoder.block.") and "bias" not in row["name"]
        ]
        assert len(each) > len(inside)
        assert summed == pytest.approx(sum(inside), rel=1e-9)
    idle = [r for r in rows if r["phase"] == "decode" and r["name"].startswith("encoder.")]
    assert idle
    assert all(row["time_s"] == row["energy_j"] == 0 for row in idle)
