"""What a runtime runs as one kernel, from the fusion groups of the graph: launches and traffic that it saves.

Linears that read the same tensor and that the runtime ties (q/k/v, gate/up) are one product: one launch, and
their input is read and quantized once. A norm in one kernel with the addition before it finds the sum in
registers instead of memory; the addition still writes it, because the residual stream goes on.
"""

from __future__ import annotations

from dataclasses import replace

from dse.graph.analysis import fusion_groups
from dse.graph.operator import Block, OperatorGraph
from hardware_specs.spec import RuntimeProfile


def launch_shares(block: Block, runtime: RuntimeProfile | None) -> dict[str, float]:
    """Return the part of a kernel launch that falls on each linear of a block: 1 / n for n that run as one.

    Where the data flow is not known, tied linears of one module count as readers of the same tensor.
    """
    linears = [op.name for op in block.ops if op.kind == "linear"]
    shares = dict.fromkeys(linears, 1.0)
    if runtime is None or not runtime.fuses_ties:
        return shares
    together = [group.ops for group in fusion_groups(block) if group.kind == "shared input"]
    for names in together if block.edges else [tuple(linears)]:
        for tie in runtime.ties:
            modules: dict[str, list[str]] = {}
            for name in names:
                module, _, role = name.rpartition(".")
                if role in tie:
                    modules.setdefault(module, []).append(name)
            for members in modules.values():
                shares |= dict.fromkeys(members, 1.0 / len(members))
    return shares


def with_fused_norms(graph: OperatorGraph, runtime: RuntimeProfile | None) -> OperatorGraph:
    """Return the graph whose norms do not read the sums again that the runtime adds in the same kernel.

    The first norm of every block counts as fused with the last addition of the block before; in the first
    block there is none, which the final norm, counted as unfused, makes up for.
    """
    if runtime is None or not runtime.fuses_norm_and_add:
        return graph
    return replace(graph, blocks=tuple(_without_second_read(block) for block in graph.blocks))


def _without_second_read(block: Block) -> Block:
    norm_of = {group.ops[1]: group.ops[0] for group in fusion_groups(block) if group.kind == "norm and add"}
    held = {
        edge.target: edge.elements
        for edge in block.edges
        if not edge.origin and norm_of.get(edge.target) == edge.source
    }
    ops = tuple(
        replace(op, read_elements=op.read_elements + (-1) * held[op.name]) if op.name in held else op
        for op in block.ops
    )
    return replace(block, ops=ops)
