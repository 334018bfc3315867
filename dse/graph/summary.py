"""What a traced model costs at one shape, as the document that ``dse trace --json`` prints."""

from __future__ import annotations

from typing import Any

from dse.errors import ConfigError
from dse.graph.liveness import DTYPE_BYTES, peak_activation_bytes
from dse.graph.operator import Block, Op, OperatorGraph


def trace_document(
    graph: OperatorGraph, batch: int, prompt: int, context: int | None = None
) -> dict[str, Any]:
    """Return the totals and every operator of every layer at one shape.

    Args:
        graph: the traced model.
        batch: sequences.
        prompt: tokens of the prefill, per sequence.
        context: positions that the decode step attends to, itself included; by default the step after the
            prompt, prompt + 1.

    Returns:
        ``model``, ``shape``, ``totals`` and ``operators``. ``flop`` is 2 per multiply-add over all positions,
        as the module computes them (attention products are not halved for causality, and the output head
        runs on all prompt positions). Plain keys belong to the prefill, ``decode_*`` keys to one decode step.
        Bytes are of the unquantized model: weights, activations and cache in the traced data type.

    Raises:
        ConfigError: a size below 1.
    """
    for name, value in (("batch", batch), ("prompt", prompt), ("context", context)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(
                f"must be a whole number of at least 1, but got {value!r}", path=name, value=value
            )
    step = prompt + 1 if context is None else context
    prefill, decode = (batch, prompt, prompt), (batch, 1, step)
    operators = [
        _row(graph, block, op, layer, prefill, decode) for block, layer in _places(graph) for op in block.ops
    ]
    item = DTYPE_BYTES[graph.dtype]
    return {
        "model": graph.model,
        "shape": {"batch": batch, "prompt": prompt, "context": step},
        "totals": {
            "parameters": graph.parameters,
            "prefill_flop": int(graph.at("flop", *prefill)),
            "decode_flop": int(graph.at("flop", *decode)),
            "kv_bytes_per_token": graph.kv_elements_per_token * item,
            "weight_bytes": graph.parameters * item,
            "n_layers": graph.n_layers,
            "state_bytes_per_sequence": int(graph.at("state_elements", 1, 1, 1)) * item,
            "peak_activation_bytes": int(peak_activation_bytes(graph, *prefill)),
        },
        "operators": operators,
    }


def _places(graph: OperatorGraph) -> list[tuple[Block, int | None]]:
    """Return every part with the index of its layer, in model order."""
    layers: list[tuple[Block, int | None]] = [
        (block, index) for index, block in enumerate(graph.block_of_layer)
    ]
    return [(graph.prologue, None), *layers, (graph.epilogue, None)]


def _row(
    graph: OperatorGraph,
    block: Block,
    op: Op,
    layer: int | None,
    prefill: tuple[int, int, int],
    decode: tuple[int, int, int],
) -> dict[str, Any]:
    label = block.path(layer) if layer is not None else ""
    part = label or ("prologue" if block is graph.prologue else "epilogue")
    row: dict[str, Any] = {
        "name": block.full_name(op, layer),
        "kind": op.kind,
        "block": part,
        "layer": layer,
        "parameters": op.parameters,
    }
    if op.weight_shape is not None:
        row["weight_shape"] = list(op.weight_shape)
    if op.tied_to is not None:
        row["tied_to"] = op.tied_to
    if op.experts is not None:
        row["experts"] = {"total": op.experts.n_experts, "per_token": op.experts.top_k}
    for prefix, point in (("", prefill), ("decode_", decode)):
        read_bytes, write_bytes = _bytes(op, point, DTYPE_BYTES[graph.dtype])
        row[f"{prefix}flop"] = int(op.at("flop", *point))
        row[f"{prefix}vector_flop"] = int(op.at("vector_flop", *point))
        row[f"{prefix}read_bytes"] = read_bytes
        row[f"{prefix}write_bytes"] = write_bytes
    return row


def _bytes(op: Op, point: tuple[int, int, int], item: int) -> tuple[int, int]:
    """Return what a fused kernel reads and writes: activations, cache and weights.

    An embedding reads the rows that it looks up; a matrix is read whole, also where it is tied. Of a mixture
    of experts the matrices are read that the tokens are expected to use.
    """
    read, kv_read, write, kv_write = (
        int(op.at(name, *point))
        for name in ("read_elements", "kv_read_elements", "write_elements", "kv_write_elements")
    )
    if op.once and point[1] != point[2]:
        weights = 0
    elif op.kind == "embedding":
        weights = write
    elif op.tied_to is not None and op.weight_shape is not None:
        weights = op.parameters + op.weight_shape[0] * op.weight_shape[1]
    elif op.experts is not None:
        used = op.experts.expected_active(point[0] * point[1]) / op.experts.n_experts
        weights = int(op.parameters * used)
    else:
        weights = op.parameters
    return (read + kv_read + weights) * item, (write + kv_write) * item
