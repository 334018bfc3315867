"""Questions to a graph: what a pipeline cut sends, which chain bounds the time, what a kernel may fuse.

Everything is answered on the block templates, so that it costs the same for 8 layers and for 126.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dse.graph.extent import Extent, total
from dse.graph.operator import Block, Op, OperatorGraph

if TYPE_CHECKING:
    import networkx as nx

FusionKind = Literal["shared input", "norm and add"]


@dataclass(frozen=True)
class FusionGroup:
    """Operators of a block, by name, that a runtime may run as one kernel.

    "shared input" are linears that read the same tensor (query, key and value; gate and up), "norm and add" a
    norm with the addition whose sum it reads; "" stands for the addition that ends the block before.
    """

    kind: FusionKind
    ops: tuple[str, ...]


def topological_order(graph: OperatorGraph) -> tuple[str, ...]:
    """Return the full names of all operators, each after those whose results it reads."""
    names = [op.name for op in graph.prologue.ops if op.name not in graph.after_encoder]
    for layer, block in enumerate(graph.block_of_layer):
        if layer == graph.n_encoder_layers:
            names += graph.after_encoder
        names += [block.full_name(op, layer) for op in block.ops]
    return (*names, *(op.name for op in graph.epilogue.ops))


def block_subgraph(graph: OperatorGraph, layer: int) -> nx.DiGraph:
    """Return the part of ``graph.nx()`` that is one layer.

    Raises:
        IndexError: no such layer.
    """
    block = graph.block_of_layer[layer]
    return graph.nx().subgraph([block.full_name(op, layer) for op in block.ops])


def cut_elements(graph: OperatorGraph, layer: int) -> Extent:
    """Return the elements that cross from layer ``layer`` to what follows it: what a pipeline stage sends.

    The residual stream, and what the prologue made for later layers. Rotary tables are among that; a stage
    that has the prologue's rotary operator itself need not receive them. An encoder sends in the first
    pass only; the embedding that its decoder begins with passes too, as the prologue is on the first stage.

    Args:
        graph: the traced model.
        layer: the last one before the cut; -1 cuts between the prologue and the first layer.

    Raises:
        IndexError: no such layer.
    """
    if not -1 <= layer < graph.n_layers:
        raise IndexError(f"layer {layer} of {graph.n_layers}")
    made = {op.name: op.write_elements for op in graph.prologue.ops}
    leaving = [edge.source for edge in graph.prologue.edges if not edge.target]
    if layer < 0:
        return total([made[name] for name in leaving if name not in graph.after_encoder])
    after = (*graph.block_of_layer[layer + 1 :], graph.epilogue)
    read = dict.fromkeys(edge.origin for block in after for edge in block.edges if edge.origin)
    if layer < graph.n_encoder_layers:
        own = {op.name for op in graph.prologue.ops if op.once}
        read |= dict.fromkeys(name for name in leaving if name not in own)
        read = {name: None for name in read if name not in graph.after_encoder}
    return total([*stream_elements(graph.block_of_layer[layer]), *(made[name] for name in read)])


def stream_elements(block: Block) -> list[Extent]:
    """Return the tensors that leave a block."""
    leaving = {edge.source: edge.elements for edge in block.edges if not edge.target}
    return list(leaving.values())


def critical_path(graph: OperatorGraph, cost: Callable[[Op], float]) -> tuple[tuple[str, ...], float]:
    """Return the chain of dependent operators with the largest total cost, and that cost.

    Args:
        graph: the traced model.
        cost: of one operator, at least 0, e.g. its time on a device.
    """
    best: dict[str, tuple[float, str]] = {}
    view = graph.nx()
    ops = {op.name: op for part in (graph.prologue, graph.epilogue) for op in part.ops}
    for layer, block in enumerate(graph.block_of_layer):
        ops |= {block.full_name(op, layer): op for op in block.ops}
    for name in topological_order(graph):
        length, before = max(((best[p][0], p) for p in view.predecessors(name)), default=(0.0, ""))
        best[name] = (length + cost(ops[name]), before)
    end = max(best, key=lambda name: best[name][0])
    chain = [end]
    while best[chain[-1]][1]:
        chain.append(best[chain[-1]][1])
    return tuple(reversed(chain)), best[end][0]


def fusion_groups(block: Block) -> tuple[FusionGroup, ...]:
    """Return what a runtime may fuse in one block, in model order."""
    kinds = {op.name: op.kind for op in block.ops}
    readers: dict[tuple[str, str], list[str]] = {}
    for edge in block.edges:
        if edge.target:
            readers.setdefault((edge.source, edge.origin), []).append(edge.target)
    last = next((edge.source for edge in block.edges if not edge.target), "")
    groups: list[FusionGroup] = []
    for (source, origin), targets in readers.items():
        linears = tuple(name for name in dict.fromkeys(targets) if kinds[name] == "linear")
        if len(linears) > 1:
            groups.append(FusionGroup("shared input", linears))
        norms = [name for name in targets if kinds[name] == "norm"]
        added = source or last
        if norms and added and not origin and kinds[added] == "elementwise":
            groups.append(FusionGroup("norm and add", (source, norms[0])))
    return tuple(groups)
