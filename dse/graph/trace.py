"""Tracing: a Hugging Face configuration becomes an operator graph with sizes as functions of the workload.

The module is built on the meta device, one layer of each kind is kept, and the rest is run at a few sizes.
Every size of every operator is then solved for exactly as a polynomial in (batch, query, context), and the
polynomials are checked at a whole prefill, a chunk of a prefill and a decode step that were not used to
find them.
"""

from __future__ import annotations

from typing import Any

import torch

from dse.errors import ConfigError
from dse.graph.assemble import assemble, name_groups
from dse.graph.fit import GRID
from dse.graph.measure import measure
from dse.graph.merge import merge, why_unsupported
from dse.graph.operator import OperatorGraph
from dse.graph.record import Recorder, Recording, RecordingCache
from dse.graph.skeleton import Skeleton, build_skeleton, one_line
from dse.graph.solve import CHECKS, Point, solve
from dse.graph.source import ModelSource


def trace_model(source: ModelSource) -> OperatorGraph:
    """Trace the model of ``source``.

    Raises:
        ConfigError: the architecture is unknown, has an operator without a cost rule, or sizes that are not
            polynomials in (batch, query, context).
    """
    skeleton = build_skeleton(source)
    layouts = _cache_layouts(skeleton, source)
    recordings = {point: _run(skeleton, layouts, point, source) for point in (*GRID, *CHECKS)}
    first = recordings[GRID[0]]
    for point, recording in recordings.items():
        if recording.sequence() != first.sequence():
            raise ConfigError(
                f"its operators at (batch, query, context) = {point} differ from those at {GRID[0]}",
                file=source.name,
            )
    groups = merge(first, skeleton.model, source.name)
    measured = {point: measure(recording, groups) for point, recording in recordings.items()}
    names = name_groups(skeleton, groups)
    traced = solve(skeleton, first, groups, names, measured, source)
    graph = assemble(skeleton, traced, source)
    counted = sum(op.parameters * part.repeats for part in graph.parts for op in part.ops)
    if counted != skeleton.parameters:
        raise ConfigError(
            f"operators hold {counted} parameters but the module has {skeleton.parameters}: some "
            "parameter is never used in a forward pass",
            file=source.name,
        )
    return graph


def _cache_layouts(skeleton: Skeleton, source: ModelSource) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return per layer (heads, width) of the keys and of the values, from a short prefill."""
    recorder = Recorder(skeleton.model)
    cache = RecordingCache(recorder)
    _forward(skeleton, recorder, cache, 1, 3, source)
    layers = cache.layers
    if len(layers) != len(skeleton.kind_of) or any(layer.keys is None for layer in layers):
        raise ConfigError("not every layer uses the key-value cache", file=source.name)
    return [
        (
            (layer.keys.shape[1], layer.keys.shape[3]),
            (layer.values.shape[1], layer.values.shape[3]),
        )
        for layer in layers
    ]


def _run(
    skeleton: Skeleton,
    layouts: list[tuple[tuple[int, int], tuple[int, int]]],
    point: Point,
    source: ModelSource,
) -> Recording:
    """Record one pass of ``query`` tokens after ``context - query`` cached ones."""
    batch, query, context = point
    recorder = Recorder(skeleton.model)
    cache = RecordingCache(recorder)
    cache.fill(layouts, batch, context - query)
    return _forward(skeleton, recorder, cache, batch, query, source)


def _forward(
    skeleton: Skeleton, recorder: Recorder, cache: RecordingCache, batch: int, query: int, source: ModelSource
) -> Recording:
    tokens = torch.zeros(batch, query, dtype=torch.long, device="meta")
    arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": True, skeleton.cache_argument: cache}

    def forward() -> torch.Tensor:
        logits: torch.Tensor = skeleton.model(**arguments).logits
        return logits

    try:
        return recorder.run(forward)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_explain(error), file=source.name) from error


def _explain(error: Exception) -> str:
    """Say in one line why a forward pass on the meta device stopped."""
    text = one_line(error)
    if "meta tensors" in text or "meta device" in text or "Meta" in text:
        reason = why_unsupported("_local_scalar_dense")
        return f"cannot be traced without its weights: {reason} ({text})"
    return f"its forward pass cannot be traced: {text}"
