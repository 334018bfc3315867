"""Bytes that depend on no precision choice: live activations, norms and biases, embedding and head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cost_models.work import Floats
from dse.evaluate.lowering import BITS_PER_BYTE, SIXTEEN_BIT_BYTES
from dse.formats.precision import NumberFormat
from dse.formats.storage import kv_bits_per_token
from dse.graph.operator import Attention, Block, OperatorGraph


@dataclass(frozen=True)
class EdgeBytes:
    """Stored bytes before the first and after the last block; ``tied`` are in both, shared on one device."""

    first: float
    last: float
    tied: float


def activation_peak_elements(graph: OperatorGraph, batch: Floats, query: Floats, context: Floats) -> Floats:
    """Return the largest number of live activation elements of one micro-batch on a stage.

    Of one block: operators run in graph order; a tensor lives from its producer to its last consumer, the
    block's input from the start. Blocks of an encoder run in the first pass only. Of the epilogue: each
    operator's inputs and outputs at once, which holds the logits. The larger one counts for every stage, an
    upper bound for one without the head. Attention scores are never whole in memory (fused kernels);
    fragmentation is not modelled.
    """
    last = 1.0  # position of each sequence whose logits are needed
    peaks = [
        _block_peak(block, batch, query, context)
        * (np.equal(query, context) if block.layers[0] < graph.n_encoder_layers else 1.0)
        for block in graph.blocks
    ]
    peaks += [
        op.read_elements(batch, last, context) + op.write_elements(batch, last, context)
        for op in graph.epilogue.ops
    ]
    highest: Floats = np.zeros(np.broadcast_shapes(np.shape(batch), np.shape(query), np.shape(context)))
    for peak in peaks:
        highest = np.maximum(highest, peak)
    return highest


def _block_peak(block: Block, batch: Floats, query: Floats, context: Floats) -> Floats:
    """Return the peak of one block by liveness, or of its operators alone where no data flow is known."""
    if not block.edges:
        each = [
            op.read_elements(batch, query, context) + op.write_elements(batch, query, context)
            for op in block.ops
        ]
        return np.max(np.stack(each), axis=0) if each else np.zeros(())
    place = {op.name: index for index, op in enumerate(block.ops)}
    tensors: dict[str, tuple[int, Floats]] = {}
    for edge in block.edges:
        last_use = place.get(edge.target, len(block.ops) - 1)
        elements = edge.elements(batch, query, context)
        known_use, known_elements = tensors.get(edge.source, (-1, 0.0))
        tensors[edge.source] = (max(last_use, known_use), np.maximum(elements, known_elements))
    live = [
        sum(
            elements
            for source, (last_use, elements) in tensors.items()
            if place.get(source, -1) <= index <= last_use
        )
        for index in range(len(block.ops))
    ]
    return np.max(
        np.stack([np.asarray(entry, dtype=np.float64) for entry in np.broadcast_arrays(*live)]), axis=0
    )


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
    """Return the cached bytes of one position in one layer, scales included.

    A sliding window keeps its own positions only: the mean over ``total_context`` positions, so that times
    the context it is what the cache holds at full length. So is the mean of what cross-attention keeps.
    """
    kept_frac = 1.0 if attention.window is None else min(1.0, attention.window / total_context)
    if not attention.causal:  # an encoder keeps nothing, attention across to it all its positions
        kept_frac = (attention.source_tokens or 0) / total_context if attention.cross else 0.0
    bits = kv_bits_per_token(fmt, attention.cached_heads, int(attention.cached_dim))
    return kept_frac * bits / BITS_PER_BYTE
