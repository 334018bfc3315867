"""Live memory of a pass: which activations exist while each operator runs, from the edges of the graph.

Operators run in graph order, one after the other. A tensor exists from the operator that makes it to the last
one that reads it; what a block passes on exists to its end, and what the prologue makes for later blocks
(rotary tables, a position bias) exists throughout. The cache is not counted, nor what a kernel keeps inside:
attention scores are never whole in memory (FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dse.graph.operator import Block, OperatorGraph

Array = NDArray[np.float64]
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class LiveStep:
    """What exists while one operator runs: ``layers`` are those that repeat it, empty outside the blocks."""

    name: str
    layers: tuple[int, ...]
    elements: Array


def live_profile(
    graph: OperatorGraph, batch: ArrayLike, query: ArrayLike, context: ArrayLike
) -> tuple[LiveStep, ...]:
    """Return the live activation elements at each operator of each part, in order; sizes broadcast."""
    point = (batch, query, context)
    held = _held_throughout(graph, *point)
    steps: list[LiveStep] = []
    for part in graph.parts:
        live = _live(part, *point) if part.ops else np.zeros((0,))
        outside = 0.0 if part is graph.prologue else held
        steps.extend(
            LiveStep(part.full_name(op, part.layers[0] if part.layers else None), part.layers, row + outside)
            for op, row in zip(part.ops, live, strict=True)
        )
    return tuple(steps)


def peak_activation_elements(
    graph: OperatorGraph, batch: ArrayLike, query: ArrayLike, context: ArrayLike
) -> Array:
    """Return the most activation elements that exist at once in the module's own run; sizes broadcast."""
    made = [op for op in graph.prologue.ops if op.name in graph.after_encoder]
    encoded = sum(
        op.at("write_elements", batch, query, context) for op in made
    )  # held through the first pass
    each = [
        op.at("live_elements", batch, query, context) + (0 if op.once else encoded)
        for part in graph.parts
        for op in part.ops
    ]
    peak: Array = np.max(np.stack(each), axis=0)
    return peak


def peak_activation_bytes(
    graph: OperatorGraph,
    batch: ArrayLike,
    query: ArrayLike,
    context: ArrayLike,
    element_bytes: float | None = None,
) -> Array:
    """Return the bytes of the most activations that exist at once; sizes broadcast.

    This is the module run as it is, operator by operator, with fused attention; a runtime that frees each
    tensor after its last use needs no more than the largest step of ``live_profile``.

    Args:
        graph: the traced model.
        batch, query, context: sequences, new tokens of each, and positions attended to.
        element_bytes: of one activation; that of the graph's data type by default.
    """
    size = DTYPE_BYTES[graph.dtype] if element_bytes is None else element_bytes
    return peak_activation_elements(graph, batch, query, context) * size


def _held_throughout(graph: OperatorGraph, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> Array:
    """Return the elements that the prologue makes for blocks, other than the stream that they replace."""
    stream = {edge.source for edge in graph.prologue.edges if not edge.target}
    read = {edge.origin for part in graph.blocks for edge in part.edges if edge.origin}
    streams = {edge.origin for part in graph.blocks if 0 in part.layers for edge in part.edges if edge.origin}
    later = {edge.origin for part in graph.blocks if 0 not in part.layers for edge in part.edges}
    repeated = read & stream if len(graph.block_of_layer) < 2 else read & (later | streams)
    sizes = [op.write_elements(batch, query, context) for op in graph.prologue.ops if op.name in repeated]
    shape = np.broadcast_shapes(np.shape(batch), np.shape(query), np.shape(context))
    return np.asarray(sum(sizes, np.zeros(shape)), dtype=np.float64)


def _live(block: Block, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> Array:
    """Return (operators, ...) live elements while each operator of a block runs.

    What enters from the prologue by name is not counted here, since it exists throughout.
    """
    place = {op.name: index for index, op in enumerate(block.ops)}
    end = len(block.ops) - 1
    spans: dict[str, tuple[int, int, Array]] = {}
    for edge in block.edges:
        if edge.origin:
            continue
        start = place.get(edge.source, 0)
        stop = place.get(edge.target, end)
        elements = edge.elements(batch, query, context)
        if edge.source in spans:
            _, known, largest = spans[edge.source]
            stop, elements = max(stop, known), np.maximum(elements, largest)
        spans[edge.source] = (start, stop, elements)
    shape = np.broadcast_shapes(np.shape(batch), np.shape(query), np.shape(context))
    live = np.zeros((len(block.ops), *shape))
    for start, stop, elements in spans.values():
        live[start : stop + 1] += elements
    return live
