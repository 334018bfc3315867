"""A small traced model for the tests of what is built on graphs."""

from __future__ import annotations

import pytest

from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "tie_word_embeddings": False,
}


@pytest.fixture
def llama_source() -> ModelSource:
    return ModelSource("small-llama", dict(LLAMA))


@pytest.fixture(scope="session")
def llama_graph() -> OperatorGraph:
    from dse.graph.trace import trace_model

    return trace_model(ModelSource("small-llama", dict(LLAMA)))


@pytest.fixture(scope="session")
def gemma_graph() -> OperatorGraph:
    from dse.graph.trace import trace_model

    config = {**LLAMA, "model_type": "gemma2", "sliding_window": 16, "tie_word_embeddings": True}
    return trace_model(ModelSource("small-gemma", {**config, "num_hidden_layers": 5}))
