"""Bytes that depend on no precision choice: live activations, norms and biases, embedding and head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.work import Floats
from dse.evaluate.lowering import BITS_PER_BYTE, SIXTEEN_BIT_BYTES
from dse.evaluate.sizes import LAST_POSITION
from dse.formats.precision import NumberFormat
from dse.formats.storage import kv_bits_per_token
from dse.graph.extent import Extent, ExtentStack
from dse.graph.operator import Attention, Block, OperatorGraph


@dataclass(frozen=True)
class EdgeBytes:
    """Stored bytes before the first and after the last block; ``tied`` are in both, shared on one device."""

    first: float
    last: float
    tied: float


def activation_peak_elements(graph: OperatorGraph, batch: Floats, query: Floats, context: Floats) -> Floats:
    """Return the largest number of live activation elements of one micro-batch on a stage (``LivePeak``)."""
    return LivePeak.of(graph)(batch, query, context)


@dataclass(frozen=True)
class LivePeak:
    """The largest number of live activation elements of one micro-batch on a stage.

    Of one block: operators run in graph order; a tensor lives from its producer to its last consumer, the
    block's input from the start. Blocks of an encoder run in the first pass only. Of the epilogue: each
    operator's inputs and outputs at once, which holds the logits. The larger one counts for every stage, an
    upper bound for one without the head. Attention scores are never whole in memory (fused kernels);
    fragmentation is not modelled.

    Attributes:
        elements: of every edge, those of one tensor in a row; ``starts``: where each tensor's begin.
        live: (moments, tensors), 1 where a tensor is live while an operator runs.
        encoding: (moments,) whether the operator is of an encoder.
    """

    elements: ExtentStack
    starts: NDArray[np.intp]
    live: NDArray[np.float64]
    encoding: NDArray[np.bool_]

    @classmethod
    def of(cls, graph: OperatorGraph) -> LivePeak:
        """Look up the lives of a graph's tensors, which no size changes."""
        tensors: list[list[Extent]] = []
        moments: list[tuple[list[int], bool]] = []
        for block in graph.blocks:
            found, lives = _lives(block)
            of_encoder = block.layers[0] < graph.n_encoder_layers
            moments += [([len(tensors) + index for index in live], of_encoder) for live in lives]
            tensors += found
        for op in graph.epilogue.ops:
            moments.append(([len(tensors)], False))
            tensors.append([(op.read_elements + op.write_elements).at_query(LAST_POSITION)])
        live = np.zeros((len(moments), len(tensors)))
        for row, (indices, _) in enumerate(moments):
            live[row, indices] = 1.0
        return cls(
            ExtentStack.of([extent for extents in tensors for extent in extents]),
            np.cumsum([0, *(len(extents) for extents in tensors)])[:-1],
            live,
            np.array([of_encoder for _, of_encoder in moments], dtype=bool),
        )

    def __call__(self, batch: Floats, query: Floats, context: Floats) -> Floats:
        """Return the peak; the sizes broadcast."""
        if not len(self.starts):
            return np.zeros(np.broadcast_shapes(np.shape(batch), np.shape(query), np.shape(context)))
        sizes = np.maximum.reduceat(self.elements(batch, query, context), self.starts, axis=-1)
        held = sizes @ self.live.T
        if self.encoding.any():
            held = np.where(self.encoding & np.not_equal(query, context)[..., None], 0.0, held)
        peak: Floats = held.max(axis=-1)
        return peak


def _lives(block: Block) -> tuple[list[list[Extent]], list[list[int]]]:
    """Return the edges of each tensor of a block, and the tensors that live while each operator runs.

    Where no data flow is known, each operator's inputs and outputs are one tensor that lives with it.
    """
    if not block.edges:
        return [[op.read_elements + op.write_elements] for op in block.ops], [
            [i] for i in range(len(block.ops))
        ]
    place = {op.name: index for index, op in enumerate(block.ops)}
    extents: dict[str, list[Extent]] = {}
    last_use: dict[str, int] = {}
    for edge in block.edges:
        known = extents.setdefault(edge.source, [])
        if edge.elements not in known:
            known.append(edge.elements)
        use = place.get(edge.target, len(block.ops) - 1)
        last_use[edge.source] = max(use, last_use.get(edge.source, -1))
    lives = [
        [
            tensor
            for tensor, source in enumerate(extents)
            if place.get(source, -1) <= index <= last_use[source]
        ]
        for index in range(len(block.ops))
    ]
    return list(extents.values()), lives


def block_fixed_bytes(block: Block) -> float:
    """Return the 16-bit bytes of a block's parameters that no unit quantizes: norms and the like.

    Biases of linears are counted with their weights.
    """
    return SIXTEEN_BIT_BYTES * sum(op.parameters for op in block.ops if op.kind != "linear")


def block_state_bytes(block: Block) -> float:
    """Return the 16-bit bytes of recurrent state (scans, convolutions) that a sequence keeps in one layer.

    It does not grow with the context (Mamba, arXiv 2312.00752, section 3). What cross-attention keeps is in
    ``kv_bytes_per_token``.
    """
    states = [op.state_elements(1, 1, 1) for op in block.ops if op.attention is None]
    return SIXTEEN_BIT_BYTES * float(sum(states))


def edge_bytes(graph: OperatorGraph) -> EdgeBytes:
    """Return the 16-bit bytes of embedding, final norm and head; a tied head is counted on both sides."""
    first = SIXTEEN_BIT_BYTES * sum(op.parameters for op in graph.prologue.ops)
    own = SIXTEEN_BIT_BYTES * sum(op.parameters for op in graph.epilogue.ops)
    tied = sum(
        SIXTEEN_BIT_BYTES * op.weight_shape[0] * op.weight_shape[1]
        for op in graph.epilogue.ops
        if op.tied_to is not None and op.weight_shape is not None
    )
    return EdgeBytes(first, own + tied, tied)


def kv_bytes_per_token(attention: Attention, fmt: NumberFormat, total_context: int) -> float:
    """Return the cached bytes of one position in one layer, scales included (see ``kept_frac``)."""
    return kept_frac(attention, total_context) * kv_position_bytes(attention, fmt)


def kv_position_bytes(attention: Attention, fmt: NumberFormat) -> float:
    """Return the bytes of a position that the cache of one layer keeps."""
    return kv_bits_per_token(fmt, attention.cached_heads, int(attention.cached_dim)) / BITS_PER_BYTE


def kept_frac(attention: Attention, total_context: int) -> float:
    """Return the share of the positions that a layer's cache keeps.

    A sliding window keeps its own positions only: the mean over ``total_context`` positions, so that times
    the context it is what the cache holds at full length. So is the mean of what cross-attention keeps.
    """
    if not attention.causal:  # an encoder keeps nothing, attention across to it all its positions
        return (attention.source_tokens or 0) / total_context if attention.cross else 0.0
    return 1.0 if attention.window is None else min(1.0, attention.window / total_context)
