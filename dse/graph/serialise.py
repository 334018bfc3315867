"""Operator graphs as JSON and back, without loss."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dse.errors import ConfigError
from dse.graph.extent import Extent
from dse.graph.operator import OP_KINDS, Attention, Block, Edge, Experts, Op, OperatorGraph

SCHEMA_VERSION = 2
SIZE_FIELDS = (
    "flop",
    "vector_flop",
    "read_elements",
    "write_elements",
    "kv_read_elements",
    "kv_write_elements",
    "state_elements",
    "live_elements",
)


def graph_to_json(graph: OperatorGraph) -> dict[str, Any]:
    """Return a JSON-ready document; an extent is a list of [batch, query, context power, factor]."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": graph.model,
        "config_hash": graph.config_hash,
        "hidden_size": graph.hidden_size,
        "vocab_size": graph.vocab_size,
        "parameters": graph.parameters,
        "dtype": graph.dtype,
        "max_context": graph.max_context,
        **({} if graph.source_tokens is None else {"source_tokens": graph.source_tokens}),
        **({} if not graph.n_encoder_layers else {"n_encoder_layers": graph.n_encoder_layers}),
        "prologue": _block_to_json(graph.prologue),
        "blocks": [_block_to_json(block) for block in graph.blocks],
        "epilogue": _block_to_json(graph.epilogue),
    }


def graph_from_json(document: dict[str, Any], *, file: str | None = None) -> OperatorGraph:
    """Read what ``graph_to_json`` wrote.

    Raises:
        ConfigError: another schema version, or parts that are missing or malformed.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"must be {SCHEMA_VERSION}, but got {version!r}", file=file, path="schema_version")
    try:
        return OperatorGraph(
            model=document["model"],
            config_hash=document["config_hash"],
            prologue=_block_from_json(document["prologue"]),
            blocks=tuple(_block_from_json(block) for block in document["blocks"]),
            epilogue=_block_from_json(document["epilogue"]),
            hidden_size=document["hidden_size"],
            vocab_size=document["vocab_size"],
            parameters=document["parameters"],
            dtype=document["dtype"],
            max_context=document["max_context"],
            source_tokens=document.get("source_tokens"),
            n_encoder_layers=document.get("n_encoder_layers", 0),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(f"is not an operator graph ({type(error).__name__}: {error})", file=file) from error


def _extent_to_json(extent: Extent) -> list[list[float]]:
    return [[*powers, int(factor) if factor.is_integer() else factor] for powers, factor in extent.terms]


def _extent_from_json(terms: list[list[float]]) -> Extent:
    return Extent.of({(int(i), int(j), int(m)): float(factor) for i, j, m, factor in terms})


def _shapes_to_json(shapes: tuple[tuple[Extent, ...], ...]) -> list[list[list[list[float]]]]:
    return [[_extent_to_json(size) for size in shape] for shape in shapes]


def _shapes_from_json(shapes: list[list[list[list[float]]]]) -> tuple[tuple[Extent, ...], ...]:
    return tuple(tuple(_extent_from_json(size) for size in shape) for shape in shapes)


def _block_to_json(block: Block) -> dict[str, Any]:
    return {
        "prefix": block.prefix,
        "layers": list(block.layers),
        **({} if not block.first_layer else {"first_layer": block.first_layer}),
        "ops": [_op_to_json(op) for op in block.ops],
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "elements": _extent_to_json(edge.elements),
                "origin": edge.origin,
            }
            for edge in block.edges
        ],
    }


def _block_from_json(document: dict[str, Any]) -> Block:
    return Block(
        prefix=document["prefix"],
        layers=tuple(document["layers"]),
        ops=tuple(_op_from_json(op) for op in document["ops"]),
        edges=tuple(
            Edge(edge["source"], edge["target"], _extent_from_json(edge["elements"]), edge["origin"])
            for edge in document["edges"]
        ),
        first_layer=document.get("first_layer", 0),
    )


def _op_to_json(op: Op) -> dict[str, Any]:
    geometry = op.attention
    return {
        "name": op.name,
        "kind": op.kind,
        "parameters": op.parameters,
        "weight_shape": None if op.weight_shape is None else list(op.weight_shape),
        "has_bias": op.has_bias,
        **{name: _extent_to_json(getattr(op, name)) for name in SIZE_FIELDS},
        "input_shapes": _shapes_to_json(op.input_shapes),
        "output_shapes": _shapes_to_json(op.output_shapes),
        "attention": None if geometry is None else asdict(geometry),
        "experts": None if op.experts is None else asdict(op.experts),
        "tied_to": op.tied_to,
        **({"once": True} if op.once else {}),
        **({} if op.step_live_elements is None else {"step_live": _extent_to_json(op.step_live_elements)}),
    }


def _op_from_json(document: dict[str, Any]) -> Op:
    if document["kind"] not in OP_KINDS:
        raise ValueError(f"unknown operator kind {document['kind']!r}")
    shape, geometry, experts = document["weight_shape"], document["attention"], document["experts"]
    return Op(
        name=document["name"],
        kind=document["kind"],
        parameters=document["parameters"],
        weight_shape=None if shape is None else (shape[0], shape[1]),
        has_bias=document["has_bias"],
        **{name: _extent_from_json(document[name]) for name in SIZE_FIELDS},
        input_shapes=_shapes_from_json(document["input_shapes"]),
        output_shapes=_shapes_from_json(document["output_shapes"]),
        attention=None if geometry is None else Attention(**geometry),
        tied_to=document["tied_to"],
        experts=None if experts is None else Experts(**experts),
        once=document.get("once", False),
        step_live_elements=_extent_from_json(document["step_live"]) if "step_live" in document else None,
    )
