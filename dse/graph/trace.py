"""Tracing: a Hugging Face configuration becomes an operator graph with sizes as functions of the workload.

The module is built on the meta device, one layer of each kind is kept, and the rest is run at a few sizes.
Every size of every operator is then solved for exactly as a polynomial in (batch, query, context), and the
polynomials are checked at a whole prefill, a chunk of a prefill and a decode step that were not used to
find them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import EncoderDecoderCache

from dse.errors import ConfigError
from dse.graph.assemble import assemble, name_groups
from dse.graph.extent import Extent
from dse.graph.fit import VISION, Probe
from dse.graph.fold import build_skeleton
from dse.graph.lifetimes import Lifetimes, in_float32
from dse.graph.measure import measure
from dse.graph.merge import Group, merge, why_unsupported
from dse.graph.module import one_line
from dse.graph.operator import OperatorGraph
from dse.graph.record import Recorder, Recording
from dse.graph.recording_cache import CacheLayout, RecordingCache
from dse.graph.skeleton import Skeleton
from dse.graph.solve import Point, solve
from dse.graph.source import ModelSource


def trace_model(source: ModelSource) -> OperatorGraph:
    """Trace the model of ``source``.

    Raises:
        ConfigError: the architecture is unknown, has an operator without a cost rule, or sizes that are not
            polynomials in (batch, query, context).
    """
    skeleton = build_skeleton(source)
    skeleton = replace(skeleton, layouts=_cache_layouts(skeleton, source))
    probe = skeleton.probe
    recordings = {point: _run(skeleton, point, source) for point in probe.points}
    first = recordings[probe.grid[0]]
    for point, recording in recordings.items():
        if recording.sequence() != first.sequence():
            raise ConfigError(
                f"its operators at (batch, query, context) = {point} differ from those at {probe.grid[0]}",
                file=source.name,
            )
    groups = merge(first, skeleton.model, source.name)
    measured = {point: measure(recording, groups) for point, recording in recordings.items()}
    names = name_groups(skeleton, groups)
    live = _live_elements(skeleton, groups, source)
    traced = solve(skeleton, first, groups, names, measured, live, probe, source)
    graph = assemble(skeleton, traced, source)
    counted = sum(op.parameters * part.repeats for part in graph.parts for op in part.ops)
    if counted != skeleton.parameters:
        raise ConfigError(
            f"operators hold {counted} parameters but the module has {skeleton.parameters}: some "
            "parameter is never used in a forward pass",
            file=source.name,
        )
    return graph


def _cache_layouts(skeleton: Skeleton, source: ModelSource) -> tuple[CacheLayout, ...]:
    """Return what each layer keeps, from a short prefill."""
    if skeleton.cache_argument is None:
        return (CacheLayout(),) * len(skeleton.parts)
    recorder = Recorder(skeleton.model)
    cache = RecordingCache(recorder, skeleton.cache_kinds)
    _forward(skeleton, recorder, cache, 1, 3, source)
    layouts = cache.layouts()
    if CacheLayout() in layouts:
        raise ConfigError("not every layer uses the cache", file=source.name)
    return layouts


def _run(skeleton: Skeleton, point: Point, source: ModelSource) -> Recording:
    """Record one pass of ``query`` tokens after ``context - query`` cached ones."""
    batch, query, context = point
    recorder = Recorder(skeleton.model)
    cache = RecordingCache(recorder, skeleton.cache_kinds)
    if skeleton.cache_argument is not None:
        cache.fill(skeleton.layouts, batch, context - query)
    return _forward(skeleton, recorder, cache, batch, query, source)


def _live_elements(
    skeleton: Skeleton, groups: list[Group], source: ModelSource
) -> list[tuple[Extent, Extent | None]]:
    """Return how many elements exist while each group runs, and in decode steps where those differ.

    They differ where a recurrent state is updated in place instead of being computed anew.
    """
    model = in_float32(skeleton.model)
    passes = _fit_lifetimes(skeleton, model, groups, skeleton.probe, source)
    if not any(layout.states for layout in skeleton.layouts):
        return [(extent, None) for extent in passes]
    return list(
        zip(passes, _fit_lifetimes(skeleton, model, groups, skeleton.probe.step, source), strict=True)
    )


def _fit_lifetimes(
    skeleton: Skeleton, model: torch.nn.Module, groups: list[Group], probe: Probe, source: ModelSource
) -> list[Extent]:
    """Return the live elements of each group as polynomials that take their values on the probe's grid."""
    live = [_lifetimes(skeleton, model, point, source) for point in probe.grid]
    # The same operation at every point: where most exists at the first one.
    fullest = [max(group.members, key=live[0].__getitem__) for group in groups]
    fitter = probe.fitter()
    return [fitter(tuple(numbers[index] for numbers in live)) for index in fullest]


def _lifetimes(skeleton: Skeleton, model: torch.nn.Module, point: Point, source: ModelSource) -> list[int]:
    """Return how many elements exist at each operation of one pass."""
    batch, query, context = point
    lifetimes = Lifetimes(model, model.get_submodule(skeleton.encoder) if skeleton.encoder else None)
    cache = RecordingCache(lifetimes, skeleton.cache_kinds)
    if skeleton.cache_argument is not None:
        cache.fill(skeleton.layouts, batch, context - query)
    tokens = _input(skeleton, batch, query, torch.float32)
    try:
        return lifetimes.run(_call(skeleton, model, tokens, cache), [tokens])
    except Exception as error:
        raise ConfigError(_explain(error), file=source.name) from error


def _forward(
    skeleton: Skeleton, recorder: Recorder, cache: RecordingCache, batch: int, query: int, source: ModelSource
) -> Recording:
    tokens = _input(skeleton, batch, query, torch.bfloat16)
    try:
        return recorder.run(_call(skeleton, skeleton.model, tokens, cache))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_explain(error), file=source.name) from error


def _call(
    skeleton: Skeleton, model: torch.nn.Module, tokens: torch.Tensor, cache: RecordingCache
) -> Callable[[], list[torch.Tensor]]:
    """Return the forward pass of ``model``, which gives its logits or an encoder's results."""
    arguments: dict[str, Any] = {skeleton.model.main_input_name: tokens}
    if skeleton.source_tokens is not None:
        source = torch.zeros(tokens.shape[0], skeleton.source_tokens, dtype=torch.long, device="meta")
        across = EncoderDecoderCache(cache, cache.beside())
        arguments = {
            "input_ids": source,
            "decoder_input_ids": tokens,
            "use_cache": True,
            str(skeleton.cache_argument): across,
        }
    elif skeleton.cache_argument is not None:
        arguments |= {"use_cache": True, skeleton.cache_argument: cache}

    def forward() -> list[torch.Tensor]:
        output = model(**arguments)
        if skeleton.cache_argument is not None:
            return [output.logits]
        return [value for value in output.values() if isinstance(value, torch.Tensor)]

    return forward


def _input(skeleton: Skeleton, batch: int, query: int, dtype: torch.dtype) -> torch.Tensor:
    """Return token ids (batch, query), or images (batch, channels, height, width)."""
    if skeleton.probe != VISION:
        return torch.zeros(batch, query, dtype=torch.long, device="meta")
    config = skeleton.config
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    return torch.empty(batch, config.num_channels, height, width, dtype=dtype, device="meta")


def _explain(error: Exception) -> str:
    """Say in one line why a forward pass on the meta device stopped."""
    text = one_line(error)
    if "meta tensors" in text or "meta device" in text or "Meta" in text:
        reason = why_unsupported("_local_scalar_dense")
        return f"cannot be traced without its weights: {reason} ({text})"
    return f"its forward pass cannot be traced: {text}"
