"""Operator graphs as networkx graphs and GraphML files: views, so changing one changes no operator graph."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.content import write_atomic
from dse.graph.extent import Extent
from dse.graph.operator import Block, Op, OperatorGraph

if TYPE_CHECKING:
    import networkx as nx

SIZES = ("flop", "vector_flop", "read_elements", "write_elements", "kv_read_elements", "state_elements")
LETTERS = ("batch", "query", "context")


def extent_text(extent: Extent) -> str:
    """Return a polynomial as text, e.g. ``4096*batch*query + 2*batch*query*context``; "0" for zero."""
    parts = []
    for powers, factor in extent.terms:
        number = f"{factor:.0f}" if factor.is_integer() else repr(factor)
        letters = [
            name if power == 1 else f"{name}^{power}"
            for name, power in zip(LETTERS, powers, strict=True)
            if power
        ]
        parts.append("*".join([number, *letters]))
    return " + ".join(parts).replace("+ -", "- ") or "0"


def to_networkx(graph: OperatorGraph) -> nx.DiGraph:
    """Return one node per operator and layer, named by its full module path, with edges that carry elements.

    Node attributes: ``kind``, ``parameters``, ``block`` ("prologue", the block's prefix, or "epilogue"), the
    sizes of an ``Op`` as text, inside the blocks ``layer``, and where they apply ``rows``, ``columns``,
    ``n_experts``, ``top_k``, ``n_heads``, ``n_kv_heads``, ``window`` and ``tied_to``. Edge attribute:
    ``elements`` as text. What leaves a block enters the next one.
    """
    import networkx as nx

    view = nx.DiGraph(model=graph.model, parameters=graph.parameters)
    parts: list[tuple[str, Block, int | None]] = [("prologue", graph.prologue, None)]
    parts += [(block.prefix, block, layer) for layer, block in enumerate(graph.block_of_layer)]
    parts += [("epilogue", graph.epilogue, None)]
    everywhere = {edge.origin for part in graph.parts for edge in part.edges if edge.origin}
    embedded = [edge.source for edge in graph.prologue.edges if not edge.target]
    once = {op.name for op in graph.prologue.ops if op.once}
    stream: list[str] = []  # operators of the part before whose results the next part reads
    for label, block, layer in parts:
        if layer == graph.n_encoder_layers and layer:  # the decoder begins with an embedding of its own
            reads = [edge for edge in graph.prologue.edges if edge.target and not edge.source]
            for source, edge in itertools.product(stream, reads):
                view.add_edge(source, edge.target, elements=extent_text(edge.elements))
            stream = [name for name in embedded if name not in everywhere | once]
        names = {op.name: block.full_name(op, layer) for op in block.ops}
        for op in block.ops:
            view.add_node(names[op.name], **_attributes(op, label, layer))
        for edge in block.edges:
            if edge.target:
                sources = [names[edge.source]] if edge.source else [edge.origin] if edge.origin else stream
                for source in sources:
                    view.add_edge(source, names[edge.target], elements=extent_text(edge.elements))
        leaving = [names[edge.source] for edge in block.edges if not edge.target]
        stream = [name for name in leaving if name not in everywhere]
        if block is graph.prologue and graph.n_encoder_layers:
            stream = [name for name in stream if name in once]
    return view


def _attributes(op: Op, label: str, layer: int | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kind": op.kind,
        "parameters": op.parameters,
        "block": label,
        **{name: extent_text(getattr(op, name)) for name in SIZES},
    }
    known: dict[str, Any] = {"layer": layer, "tied_to": op.tied_to}
    if op.weight_shape is not None:
        known |= {"rows": op.weight_shape[0], "columns": op.weight_shape[1]}
    if op.experts is not None:
        known |= {"n_experts": op.experts.n_experts, "top_k": op.experts.top_k}
    if op.attention is not None:
        geometry = op.attention
        known |= {"n_heads": geometry.n_heads, "n_kv_heads": geometry.n_kv_heads, "window": geometry.window}
    return attributes | {name: value for name, value in known.items() if value is not None}


def write_graphml(graph: OperatorGraph, path: Path) -> None:
    """Write the networkx view as GraphML; a crash leaves the old file or the new one."""
    import networkx as nx

    descriptor, temporary = tempfile.mkstemp(suffix=".graphml")
    os.close(descriptor)
    try:
        nx.write_graphml(to_networkx(graph), temporary)
        write_atomic(path, Path(temporary).read_bytes())
    finally:
        Path(temporary).unlink(missing_ok=True)
