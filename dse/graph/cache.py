"""Traced graphs on disk, so that only the first use of an architecture needs torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from dse.content import cache_dir, canonical_json, content_hash, write_atomic
from dse.errors import ConfigError
from dse.graph.operator import OperatorGraph
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.source import ModelSource

# Raised whenever tracing would give another graph for the same configuration.
TRACER_VERSION = 6


def load_graph(source: ModelSource) -> OperatorGraph:
    """Return the operator graph of ``source`` from the cache, or trace it and keep it there.

    A cached file that cannot be read is traced again and replaced.

    Raises:
        ConfigError: the architecture cannot be traced.
    """
    path = graph_path(source)
    cached = _read(path, source)
    if cached is not None:
        return cached
    from dse.graph.trace import trace_model

    graph = trace_model(source)
    write_atomic(path, canonical_json(graph_to_json(graph)))
    return graph


def graph_path(source: ModelSource) -> Path:
    """Return where the graph of ``source`` is kept; the versions of the libraries that build it count."""
    from importlib.metadata import version

    key = content_hash(
        {
            "config": source.config_hash,
            "tracer": TRACER_VERSION,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }
    )
    return cache_dir() / "graphs" / f"{key}.json"


def _read(path: Path, source: ModelSource) -> OperatorGraph | None:
    try:
        graph = graph_from_json(json.loads(path.read_text()), file=str(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ConfigError):
        return None
    if graph.config_hash != source.config_hash:
        return None
    return replace(graph, model=source.name)
