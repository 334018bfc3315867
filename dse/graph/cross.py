"""Encoder-decoders: which operators run once for a request, and what cross-attention keeps of the encoder.

A pass is recorded with the encoder in it, whatever the decoder has cached. What depends on the encoder's
input alone runs in the first pass only; later ones read the keys and values that cross-attention made then
(T5, arXiv 1910.10683, section 2.1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dse.graph.extent import Extent
from dse.graph.operator import Op
from dse.graph.skeleton import Skeleton

if TYPE_CHECKING:
    from dse.graph.solve import Traced


def with_source(skeleton: Skeleton, traced: list[Traced]) -> list[Traced]:
    """Mark what runs once, give cross-attention its cache, and take position biases out of block 0."""
    once = _once(skeleton, traced)
    marked = []
    for index, entry in enumerate(traced):
        op = replace(entry.op, once=index in once)
        made_once = [elements for source, elements in entry.edges.items() if source in once]
        if op.attention is not None and (made_once or index in once):
            op = _attend_to_source(op, skeleton.source_tokens, made_once)
        marked.append(replace(entry, op=op))
    return [_outside_the_block(skeleton, index, marked) for index in range(len(marked))]


def _once(skeleton: Skeleton, traced: list[Traced]) -> set[int]:
    """Return the operators of the encoder, and those that read or serve nothing but such operators."""
    inside = f"{skeleton.encoder}."
    once: set[int] = set()
    for index, entry in enumerate(traced):
        name = entry.op.name if entry.part is None else f"{skeleton.prefix(entry.part)}."
        if name.startswith(inside) or (entry.edges and all(source in once for source in entry.edges)):
            once.add(index)
    for index, entry in enumerate(
        traced
    ):  # an embedding that encoder and decoder share is no module of either
        readers = [other for other, reader in enumerate(traced) if index in reader.edges]
        if not entry.edges and readers and all(reader in once for reader in readers):
            once.add(index)
    return once


def _attend_to_source(op: Op, source_tokens: int | None, made_once: list[Extent]) -> Op:
    """Return attention over the encoder's positions: in the encoder itself, or across from a decoder."""
    assert op.attention is not None
    geometry = replace(op.attention, source_tokens=source_tokens, causal=False)
    if op.once:
        return replace(op, attention=geometry)
    kept = sum(made_once, Extent())
    return replace(
        op,
        attention=replace(geometry, cross=True),
        read_elements=op.read_elements + (-1) * kept,
        kv_read_elements=kept,
        kv_write_elements=Extent(),
        state_elements=kept,
    )


def _outside_the_block(skeleton: Skeleton, index: int, traced: list[Traced]) -> Traced:
    """Return an operator that depends on no block but serves several, as one that comes before all blocks."""
    entry = traced[index]
    readers = {other.part for other in traced if index in other.edges}
    if entry.part is None or entry.edges or readers <= {entry.part}:
        return entry
    name = f"{skeleton.original_prefix(entry.part)}.{entry.op.name}"
    return replace(entry, part=None, op=replace(entry.op, name=name))
