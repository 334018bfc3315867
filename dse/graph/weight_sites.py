"""Where precision can change inside a weight, and which transformations leave the function as it is.

Finer than the units of a search: a matrix can have one precision for each expert, group of heads, row or
group of columns. A scale for each input channel can move into what makes that channel (SmoothQuant, arXiv
2211.10438, equation 3; AWQ, arXiv 2306.00978, section 3.2), a rotation only where all readers and writers of
a tensor take part (QuaRot, arXiv 2404.00456, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from dse.graph.operator import Block, Op


@dataclass(frozen=True)
class WeightSite:
    """One linear of a block as a quantizer sees it.

    Attributes:
        op: its name in the block; ``rows`` and ``columns`` of one matrix.
        n_experts: matrices that each can have a precision of their own; 1 for a plain linear.
        row_heads, column_heads: heads that its outputs make up (query, key, value), or that its inputs come
            from (the output projection); None where it has nothing to do with heads.
        shares_input_with: other linears that read the same tensor, so that an input scale or rotation is
            common to all.
        scale_folds_into: the norm or linear that can absorb the inverse of a scale of the input channels,
            None where something between is not linear in them.
        reads_stream: whether a rotation of the residual stream turns its inputs (through a norm without
            mean); ``writes_stream``: its outputs.
    """

    op: str
    rows: int
    columns: int
    n_experts: int = 1
    row_heads: int | None = None
    column_heads: int | None = None
    shares_input_with: tuple[str, ...] = ()
    scale_folds_into: str | None = None
    reads_stream: bool = False
    writes_stream: bool = False


def weight_sites(block: Block) -> tuple[WeightSite, ...]:
    """Return the sites of all linears of a block, in model order."""
    return tuple(_site(block, op) for op in block.ops if op.kind == "linear")


def _site(block: Block, op: Op) -> WeightSite:
    ops = {other.name: other for other in block.ops}
    sources = _sources(block, op.name)
    others = [
        other.name
        for other in block.ops
        if other.kind == "linear"
        and other.name != op.name
        and set(_sources(block, other.name)) == set(sources)
    ]
    n_experts = 1 if op.experts is None else op.experts.n_experts
    outputs, columns = op.weight_shape or (0, 0)
    source = ops.get(sources[0]) if len(sources) == 1 else None
    return WeightSite(
        op=op.name,
        rows=outputs // n_experts,
        columns=columns,
        n_experts=n_experts,
        row_heads=_row_heads(block, ops, op),
        column_heads=None if source is None or source.attention is None else source.attention.n_heads,
        shares_input_with=tuple(others),
        scale_folds_into=None if source is None else _absorber(block, ops, source, columns),
        reads_stream=source is not None
        and source.kind == "norm"
        and "" in _sources_of_sum(block, ops, source),
        writes_stream=any(ops[target].kind == "elementwise" for target in _targets(block, op.name)),
    )


def _sources(block: Block, name: str) -> tuple[str, ...]:
    return tuple(edge.source for edge in block.edges if edge.target == name and not edge.origin)


def _targets(block: Block, name: str) -> tuple[str, ...]:
    return tuple(edge.target for edge in block.edges if edge.source == name and edge.target)


def _sources_of_sum(block: Block, ops: dict[str, Op], op: Op) -> tuple[str, ...]:
    """Return what reaches an operator through additions, "" for the residual stream."""
    found: list[str] = []
    pending = list(_sources(block, op.name))
    while pending:
        name = pending.pop()
        if name and ops[name].kind == "elementwise":
            pending += _sources(block, name)
        else:
            found.append(name)
    return tuple(found)


def _row_heads(block: Block, ops: dict[str, Op], op: Op) -> int | None:
    """Return the heads of a linear whose outputs reach attention through nothing but rotation and norms."""
    pending, seen = list(_targets(block, op.name)), set()
    while pending:
        name = pending.pop()
        target = ops[name]
        if target.attention is not None:
            outputs = (op.weight_shape or (0, 0))[0]
            geometry = target.attention
            widths = {geometry.head_dim, geometry.value_dim or geometry.head_dim}
            heads = [
                n for n in (geometry.n_heads, geometry.n_kv_heads) if any(n * w == outputs for w in widths)
            ]
            return heads[0] if heads else None
        if target.kind in ("rope", "norm") and name not in seen:
            seen.add(name)
            pending += _targets(block, name)
    return None


def _absorber(block: Block, ops: dict[str, Op], source: Op, columns: int) -> str | None:
    """Return what can absorb a scale of the channels that ``source`` makes."""
    if source.kind == "norm":
        return source.name if source.parameters else None
    if source.kind == "linear":
        return source.name
    if source.kind == "activation":  # a product with an activation is linear in its other factor
        made = [n for n in _sources(block, source.name) if n and ops[n].kind == "linear"]
        if len(made) == 2:
            return made[-1]
        return None
    if source.attention is not None:
        width = source.attention.n_kv_heads * (source.attention.value_dim or source.attention.head_dim)
        values = [n for n in _sources(block, source.name) if n and ops[n].kind == "linear"]
        same = width == columns and len(values) == 1 and (ops[values[0]].weight_shape or (0,))[0] == width
        return values[0] if same else None
    return None
