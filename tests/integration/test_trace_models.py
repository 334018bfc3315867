"""Traces of whole models against the models themselves.

Oracles: the module's own parameters, torch.utils.flop_counter around a run of the full module (all layers,
eager attention, masks, the cache that transformers builds), and the tensors in that cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from dse.graph.operator import OperatorGraph
from dse.graph.skeleton import build_module
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from studies.catalogue import resolve_model

GROUPED = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
}
OPT = {"hidden_size": 48, "num_attention_heads": 6, "ffn_dim": 96, "vocab_size": 101, "num_hidden_layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "model_type": "llama"},
    "qwen2": {**GROUPED, "model_type": "qwen2"},
    "qwen2-half-sliding": {
        **GROUPED,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 3,
    },
    "qwen3": {**GROUPED, "model_type": "qwen3", "head_dim": 16},
    "mistral": {**GROUPED, "model_type": "mistral", "sliding_window": None},
    "mistral-sliding": {**GROUPED, "model_type": "mistral", "sliding_window": 12},
    "gemma2": {**GROUPED, "model_type": "gemma2", "head_dim": 12, "sliding_window": 16},
    "opt": {**OPT, "model_type": "opt", "word_embed_proj_dim": 48},
    "opt-projected": {
        **OPT,
        "model_type": "opt",
        "word_embed_proj_dim": 24,
        "do_layer_norm_before": False,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 4, "n_head": 6, "vocab_size": 101},
    "bloom": {"model_type": "bloom", "hidden_size": 48, "n_layer": 4, "n_head": 6, "vocab_size": 101},
    "bloom-odd-heads": {
        "model_type": "bloom",
        "hidden_size": 40,
        "n_layer": 3,
        "n_head": 5,
        "vocab_size": 11,
    },
}
# (batch, query, context): whole prefills, decode steps, and a chunk of a prefill.
SHAPES = [(1, 6, 6), (2, 33, 33), (5, 48, 48), (1, 1, 7), (3, 1, 20), (4, 1, 47), (2, 5, 31)]


@pytest.fixture(scope="module", params=CONFIGS)
def traced(request: pytest.FixtureRequest) -> tuple[OperatorGraph, torch.nn.Module]:
    source = ModelSource(request.param, CONFIGS[request.param])
    return trace_model(source), build_module(source, attention="eager")


def count_flop(model: Any, batch: int, query: int, context: int) -> tuple[int, DynamicCache]:
    """Return the count for ``query`` tokens after ``context - query`` uncounted ones, and the cache."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), torch.device("meta"):
        if context > query:
            model(torch.zeros(batch, context - query, dtype=torch.long), cache=cache, use_cache=True)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(batch, query, dtype=torch.long), cache=cache, use_cache=True)
    return counter.get_total_flops(), cache


def test_parameters_equal_the_modules_own_count(traced: tuple[OperatorGraph, torch.nn.Module]) -> None:
    graph, model = traced
    own = sum(parameter.numel() for parameter in model.parameters())
    assert graph.parameters == own
    assert sum(op.parameters * part.repeats for part in graph.parts for op in part.ops) == own


def test_flop_equals_torchs_flop_counter(traced: tuple[OperatorGraph, torch.nn.Module]) -> None:
    graph, model = traced
    counted = {shape: count_flop(model, *shape)[0] for shape in SHAPES}
    assert {shape: int(graph.at("flop", *shape)) for shape in SHAPES} == counted
    if all(op.attention is None or op.attention.window is None for b in graph.blocks for op in b.ops):
        assert {shape: int(graph.total("flop")(*shape)) for shape in SHAPES} == counted


def test_cache_elements_equal_those_of_the_models_cache(
    traced: tuple[OperatorGraph, torch.nn.Module],
) -> None:
    graph, model = traced
    _, cache = count_flop(model, 3, 4, 4)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert graph.kv_elements_per_token * 3 * 4 == held
    assert graph.n_layers == len(cache.layers)


def test_every_parameter_has_one_operator_by_its_module_name(
    traced: tuple[OperatorGraph, torch.nn.Module],
) -> None:
    """Each linear and norm of the module is an operator of the same name, with the module's parameters."""
    graph, model = traced
    of_module = {
        name: sum(p.numel() for p in module.parameters(recurse=False))
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
    }
    rows = {
        block.full_name(op, layer): op for layer, block in enumerate(graph.block_of_layer) for op in block.ops
    } | {op.name: op for part in (graph.prologue, graph.epilogue) for op in part.ops}
    assert of_module.keys() <= rows.keys()
    for name, count in of_module.items():
        assert rows[name].parameters == (0 if rows[name].tied_to else count), name


def test_a_full_size_model() -> None:
    """Llama 3.1 8B with all of its 32 layers on the meta device."""
    source = resolve_model("llama-3.1-8b")
    graph, model = trace_model(source), build_module(source, attention="eager")
    for shape in [(2, 128, 128), (7, 1, 1000)]:
        assert int(graph.total("flop")(*shape)) == count_flop(model, *shape)[0]
    assert graph.kv_elements_per_token == 2 * 32 * 8 * 128


@pytest.mark.slow
def test_a_70b_model_is_traced_in_seconds_and_little_memory() -> None:
    code = (
        "import json, resource, time\n"
        "import dse.graph.trace\n"
        "from studies.catalogue import resolve_model\n"
        "start = time.perf_counter()\n"
        "graph = dse.graph.trace.trace_model(resolve_model('llama-3.1-70b'))\n"
        "time_s = time.perf_counter() - start\n"
        "peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps([graph.n_layers, time_s, peak_bytes]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n_layers, time_s, peak_bytes = json.loads(done.stdout)
    assert n_layers == 80
    assert time_s < 5
    assert peak_bytes < 1.5e9
