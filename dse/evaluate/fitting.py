"""What a device holds of a model, and what would fit where it is too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cost_models.memory import MemoryUse, kv_cache_bytes
from dse.evaluate.breakdown import Breakdown
from dse.evaluate.footprint import (
    activation_peak_elements,
    block_fixed_bytes,
    block_state_bytes,
    edge_bytes,
    kv_bytes_per_token,
)
from dse.evaluate.lowering import BITS_PER_BYTE, SIXTEEN_BIT_BYTES, weight_bytes
from dse.evaluate.tensor_parallel import degrees_for, graph_part
from dse.graph.operator import OperatorGraph

MOST_DEVICES = 64


def held_bytes(breakdown: Breakdown) -> MemoryUse:
    """Return what the device holds when all sequences have their full length."""
    graph, workload = breakdown.graph, breakdown.workload
    edges = edge_bytes(graph)
    weights = edges.first + edges.last - edges.tied + sum(layer_weight_bytes(breakdown))
    kv_per_token = state = 0.0
    for layer, block in enumerate(graph.block_of_layer):
        weights += block_fixed_bytes(block)
        state += block_state_bytes(block)
        for op in block.ops:
            if op.attention is not None:
                kv = breakdown.of_op(op, layer).kv
                kv_per_token += kv_bytes_per_token(op.attention, kv, workload.total_context)
    batch = float(workload.batch)
    prompt, total = float(workload.prompt_tokens), float(workload.total_context)
    live = max(
        float(activation_peak_elements(graph, batch, prompt, prompt)),
        float(activation_peak_elements(graph, batch, 1.0, total)),
    )
    return MemoryUse(
        weights=weights,
        kv=kv_cache_bytes(workload.batch, workload.total_context, kv_per_token) + batch * state,
        activations=SIXTEEN_BIT_BYTES * live,
        reserve=breakdown.spec.reserve_bytes,
    )


def layer_weight_bytes(breakdown: Breakdown) -> list[float]:
    """Return (L,) stored bytes of each layer's linears, with what is kept beside them."""
    return [
        sum(
            weight_bytes(op, breakdown.of_op(op, layer).weights, breakdown.extras)
            for op in block.ops
            if op.kind == "linear"
        )
        for layer, block in enumerate(breakdown.graph.block_of_layer)
    ]


def what_would_fit(graph: OperatorGraph, breakdown: Breakdown, degree: int) -> dict[str, Any]:
    """Return the single changes that each make the model fit; None where a change alone does not.

    - ``tensor_parallel``: the fewest devices (a power of two, up to 64);
    - ``batch``: the most sequences;
    - ``weight_bits_per_parameter``: stored bits of the blocks' linears, metadata included;
    - ``offload_bytes``: what would have to lie outside the device.
    """
    capacity = breakdown.spec.main_memory.capacity_bytes
    memory = held_bytes(breakdown)
    layers = sum(layer_weight_bytes(breakdown))
    n_weights = sum(
        op.weight_shape[0] * op.weight_shape[1]
        for block in breakdown.graph.block_of_layer
        for op in block.ops
        if op.kind == "linear" and op.weight_shape is not None
    )
    room = capacity - (memory.total - layers)
    return {
        "tensor_parallel": _fewest_devices(graph, breakdown, degree, capacity),
        "batch": _most_sequences(breakdown, capacity),
        "weight_bits_per_parameter": room * BITS_PER_BYTE / n_weights if room > 0 and n_weights else None,
        "offload_bytes": layers - room if room > 0 else None,
    }


def _fewest_devices(graph: OperatorGraph, breakdown: Breakdown, degree: int, capacity: float) -> int | None:
    for more in degrees_for(graph, MOST_DEVICES):
        if more > degree and held_bytes(replace(breakdown, graph=graph_part(graph, more))).total <= capacity:
            return more
    return None


def _most_sequences(breakdown: Breakdown, capacity: float) -> int | None:
    """Return the largest batch that fits, None where not even one sequence does; memory grows with it."""

    def fits(batch: int) -> bool:
        workload = replace(breakdown.workload, batch=batch)
        return held_bytes(replace(breakdown, workload=workload)).total <= capacity

    low, high = 0, breakdown.workload.batch  # ``high`` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None
