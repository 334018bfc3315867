"""Traces of whole models against the models themselves; small ones of every family have conformance tests.

Oracles: torch.utils.flop_counter around a run of the full module (all layers, eager attention, masks, the
cache that transformers builds), the module's names, and the process's own memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from dse.content import canonical_json
from dse.graph.module import build_module
from dse.graph.operator import OperatorGraph
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.source import ModelSource, load_source
from dse.graph.trace import trace_model
from studies.catalogue import model_names, resolve_model
from tests.demo_model import demo_folder
from tests.small_models import DECODERS
from tests.strategies import small_configurations, workload_points
from tests.unit.graph.test_source import write_gguf

GIANTS = ("bloom-176b", "deepseek-v3", "gpt-oss-120b", "jamba-v0.1", "llama-3.1-405b")


def count_flop(model: Any, batch: int, query: int, context: int) -> int:
    """Return the count for ``query`` tokens after ``context - query`` uncounted ones."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), torch.device("meta"):
        if context > query:
            model(torch.zeros(batch, context - query, dtype=torch.long), cache=cache, use_cache=True)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(batch, query, dtype=torch.long), cache=cache, use_cache=True)
    return counter.get_total_flops()


@settings(max_examples=6, deadline=None)
@given(small_configurations(), workload_points())
def test_any_small_configuration(config: dict[str, Any], point: tuple[int, int, int]) -> None:
    source = ModelSource("any", config)
    graph, model = trace_model(source), build_module(source, attention="eager")
    assert int(graph.at("flop", *point)) == count_flop(model, *point)
    assert graph.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert graph_from_json(json.loads(canonical_json(graph_to_json(graph)))) == graph
    # More work never moves less: sizes grow with each of batch and query.
    batch, query, context = point
    for field in ("flop", "read_elements", "write_elements", "live_elements"):
        here = graph.at(field, *point)
        assert graph.at(field, batch + 1, query, context) >= here
        assert graph.at(field, batch, query + 1, context + 1) >= here


@pytest.mark.parametrize("name", ["llama", "opt-projected", "bloom", "qwen3-moe", "gpt-oss"])
def test_every_parameter_has_one_operator_by_its_module_name(name: str) -> None:
    """Each linear and norm of the module is an operator of the same name, with the module's parameters."""
    source = ModelSource(name, DECODERS[name])
    graph, model = trace_model(source), build_module(source, attention="eager")
    of_module = {
        path: sum(p.numel() for p in module.parameters(recurse=False))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.LayerNorm)
    }
    rows = {
        block.full_name(op, layer): op for layer, block in enumerate(graph.block_of_layer) for op in block.ops
    } | {op.name: op for part in (graph.prologue, graph.epilogue) for op in part.ops}
    assert of_module.keys() <= rows.keys()
    for path, count in of_module.items():
        assert rows[path].parameters == (0 if rows[path].tied_to else count), path


def test_a_full_size_model() -> None:
    """Llama 3.1 8B with all of its 32 layers on the meta device."""
    source = resolve_model("llama-3.1-8b")
    graph, model = trace_model(source), build_module(source, attention="eager")
    for shape in [(2, 128, 128), (7, 1, 1000)]:
        assert int(graph.total("flop")(*shape)) == count_flop(model, *shape)
    assert graph.kv_elements_per_token == 2 * 32 * 8 * 128


def test_a_folder_a_gguf_file_and_a_name_give_the_same_graph(tmp_path: Path) -> None:
    named = resolve_model("smollm2-135m-instruct")
    (tmp_path / "config.json").write_text(json.dumps(named.config))
    assert same(trace_model(load_source(tmp_path)), trace_model(named))
    write_gguf(tmp_path / "small.gguf")
    gguf = load_source(tmp_path / "small.gguf")
    config = {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "tie_word_embeddings": gguf.config.get("tie_word_embeddings", False),
    }
    assert same(trace_model(gguf), trace_model(ModelSource("written out", config)))


@pytest.mark.parametrize(("architecture", "extra"), [("qwen2", {}), ("qwen3", {"head_dim": 16})])
def test_gguf_files_of_other_architectures_give_the_graph_of_their_configuration(
    tmp_path: Path, architecture: str, extra: dict[str, Any]
) -> None:
    """Oracle: the gguf package writes the file from the numbers of a configuration."""
    import gguf

    config = {**DECODERS[architecture], **extra}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = load_source(tmp_path / "m.gguf")
    tied = source.config.get("tie_word_embeddings", False)
    config |= {"max_position_embeddings": 64, "tie_word_embeddings": tied}
    assert same(trace_model(source), trace_model(ModelSource("written out", config)))


@pytest.mark.model
def test_the_demo_checkpoint_is_its_catalogue_entry() -> None:
    """The folder of safetensors, which was written from a GGUF file, and the name."""
    source = load_source(demo_folder())
    assert source.has_weights
    assert same(trace_model(source), trace_model(resolve_model("smollm2-135m-instruct")))


def same(one: OperatorGraph, other: OperatorGraph) -> bool:
    return one.parts == other.parts and one.parameters == other.parameters


@pytest.mark.parametrize("name", GIANTS)
def test_giants_are_folded(name: str) -> None:
    """A block costs what one costs: small files, and numbers of a thousand workloads at once."""
    graph = trace_model(resolve_model(name))
    assert len(graph.blocks) <= 4 < graph.n_layers
    assert len(canonical_json(graph_to_json(graph))) < 2e6
    batch, context = np.arange(1, 1001), np.arange(1, 1001) * 7
    assert graph.at("flop", batch, 1, context).shape == (1000,)
    assert graph.at("flop", batch, 1, context)[9] == graph.at("flop", 10, 1, 70)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_model_of_the_catalogue_in_seconds_and_little_memory(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    code = (
        "import json, resource, time\n"
        "import dse.graph.trace\n"
        "from studies.catalogue import resolve_model\n"
        "start = time.process_time()  # that of others on the machine does not count\n"
        f"graph = dse.graph.trace.trace_model(resolve_model({name!r}))\n"
        "time_s = time.process_time() - start\n"
        "peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps([graph.n_layers, time_s, peak_bytes]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n_layers, time_s, peak_bytes = json.loads(done.stdout)
    record_property("trace_s", time_s)  # with -o junit_family=xunit1 --junitxml=FILE
    record_property("peak_bytes", peak_bytes)
    assert n_layers > 1
    assert time_s < (10 if name == "deepseek-v3" else 3)
    assert peak_bytes < 1e9
