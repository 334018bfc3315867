"""The document of ``dse trace``. Oracle: the textbook count of a Llama, written out here by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dse.errors import ConfigError
from dse.graph.operator import OperatorGraph
from dse.graph.summary import trace_document

H, F, HEADS, KV_HEADS, D, V, LAYERS = 48, 80, 6, 2, 8, 101, 4
BLOCK_WEIGHTS = 2 * H * HEADS * D + 2 * H * KV_HEADS * D + 3 * H * F


def model_flop(batch: int, query: int, context: int) -> int:
    """2 per weight and token, and two products of (query x width) and (width x context) per head."""
    products = 4 * batch * HEADS * D * query * context
    return 2 * batch * query * (LAYERS * BLOCK_WEIGHTS + H * V) + LAYERS * products


@pytest.mark.parametrize(("batch", "prompt", "context"), [(1, 1, None), (3, 17, None), (2, 8, 100)])
def test_totals(llama_graph: OperatorGraph, batch: int, prompt: int, context: int | None) -> None:
    document = trace_document(llama_graph, batch, prompt, context)
    totals = document["totals"]
    step = prompt + 1 if context is None else context
    assert totals["prefill_flop"] == model_flop(batch, prompt, prompt)
    assert totals["decode_flop"] == model_flop(batch, 1, step)
    assert totals["parameters"] == LAYERS * (BLOCK_WEIGHTS + 2 * H) + 2 * V * H + H
    assert totals["weight_bytes"] == 2 * totals["parameters"]
    assert totals["kv_bytes_per_token"] == 2 * 2 * LAYERS * KV_HEADS * D
    rows = document["operators"]
    assert sum(row["flop"] for row in rows) == totals["prefill_flop"]
    assert sum(row["decode_flop"] for row in rows) == totals["decode_flop"]
    assert sum(row["parameters"] for row in rows) == totals["parameters"]
    assert len({row["name"] for row in rows}) == len(rows) == 2 + LAYERS * 14 + 2


def test_rows(llama_graph: OperatorGraph) -> None:
    rows: dict[str, dict[str, Any]] = {
        row["name"]: row for row in trace_document(llama_graph, 3, 17)["operators"]
    }
    linear = rows["model.layers.2.mlp.up_proj"]
    assert linear["block"] == "model.layers.2"
    assert linear["read_bytes"] == 2 * (3 * 17 * H + H * F)
    assert linear["write_bytes"] == 2 * 3 * 17 * F
    assert linear["decode_read_bytes"] == 2 * (3 * H + H * F)
    attention = rows["model.layers.0.self_attn.attention"]
    assert attention["decode_read_bytes"] == 2 * 3 * (HEADS * D + 2 * KV_HEADS * D * 18)
    assert rows["model.embed_tokens"]["read_bytes"] == 2 * 3 * 17 * H  # rows, not the whole table
    assert (rows["model.embed_tokens"]["block"], rows["lm_head"]["block"]) == ("prologue", "epilogue")


def test_a_tied_head_reads_its_matrix(gemma_graph: OperatorGraph) -> None:
    row = next(r for r in trace_document(gemma_graph, 1, 4)["operators"] if r["name"] == "lm_head")
    assert (row["parameters"], row["tied_to"]) == (0, "model.embed_tokens")
    assert row["decode_read_bytes"] == 2 * (H + V * H)


@pytest.mark.parametrize(("batch", "prompt", "context"), [(-1, 4, None), (1, 0, None), (1, 4, 0)])
def test_sizes_below_one_are_refused(
    llama_graph: OperatorGraph, batch: int, prompt: int, context: int | None
) -> None:
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        trace_document(llama_graph, batch, prompt, context)
