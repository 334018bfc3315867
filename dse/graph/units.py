"""Units: the parts of a model that get one precision each, at a chosen granularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dse.errors import ConfigError
from dse.graph.operator import Block, OperatorGraph

Granularity = Literal["block", "sublayer", "expert", "linear"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


@dataclass(frozen=True)
class Unit:
    """One decision of the search.

    Attributes:
        name: ``layers.3``, ``layers.3.attention`` or ``layers.3.self_attn.q_proj``; tied linears join their
            roles with "+": ``layers.3.self_attn.q_proj+k_proj+v_proj``.
        layer: index of its transformer block.
        ops: names (within the block) of the linears whose weights it quantizes.
        attention_ops: names of the attention operators whose KV cache it quantizes.
    """

    name: str
    layer: int
    ops: tuple[str, ...]
    attention_ops: tuple[str, ...] = ()


def units_of(
    graph: OperatorGraph, granularity: str, ties: tuple[tuple[str, ...], ...] = ()
) -> tuple[Unit, ...]:
    """Return the units of all layers in model order.

    Args:
        graph: the traced model.
        granularity: "block", "sublayer" (attention and feed-forward), "expert" (single linears, but all
            matrices of a layer's experts together, for runtimes whose grouped kernel has one format) or
            "linear".
        ties: groups of linear roles that must share a precision (from a runtime profile); they matter at
            granularities "linear" and "expert" only, since the coarser units hold whole groups.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(
            f"unknown granularity '{granularity}'",
            path="granularity",
            value=granularity,
            allowed=GRANULARITIES,
        )
    units: list[Unit] = []
    for layer, block in enumerate(graph.block_of_layer):
        groups = _groups(block, granularity, ties)
        owners = _attention_owners(block, groups)
        units.extend(
            Unit(f"layers.{layer}{suffix}", layer, ops, owners.get(suffix, ()))
            for suffix, ops in groups.items()
        )
    return tuple(units)


def _groups(block: Block, granularity: str, ties: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    """Return {suffix of the unit's name: names of its linears} for one block, in model order."""
    linears = [op.name for op in block.ops if op.kind == "linear"]
    if granularity == "block":
        return {"": tuple(linears)}
    if granularity == "sublayer":
        cut = _end_of_attention(block)
        groups = {".attention": tuple(linears[:cut]), ".ffn": tuple(linears[cut:])}
        return {suffix: ops for suffix, ops in groups.items() if ops}
    experts = tuple(op.name for op in block.ops if op.kind == "linear" and op.experts is not None)
    if granularity == "expert" and experts:
        groups = _linear_groups([name for name in linears if name not in experts], ties)
        groups[f".{experts[0].rpartition('.')[0]}"] = experts
        return dict(sorted(groups.items(), key=lambda group: linears.index(group[1][0])))
    return _linear_groups(linears, ties)


def _linear_groups(linears: list[str], ties: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    """Group linears of one parent module whose roles are tied."""
    tie_of = {role: index for index, tie in enumerate(ties) for role in tie}
    members: dict[tuple[str, str], list[str]] = {}
    for name in linears:
        parent, _, role = name.rpartition(".")
        key = (parent, f"#{tie_of[role]}") if role in tie_of else (parent, role)
        members.setdefault(key, []).append(name)
    groups: dict[str, tuple[str, ...]] = {}
    for (parent, _), names in members.items():
        roles = "+".join(name.rpartition(".")[2] for name in names)
        groups[f".{parent}.{roles}" if parent else f".{roles}"] = tuple(names)
    return groups


def _end_of_attention(block: Block) -> int:
    """Return how many linears belong to attention: those up to and including the first after the products.

    Cross-attention belongs to it too, so its products are the last ones.
    """
    n_attentions = sum(op.kind == "attention" for op in block.ops)
    n_linears, left = 0, n_attentions
    for op in block.ops:
        left -= op.kind == "attention"
        if op.kind == "linear":
            n_linears += 1
            if n_attentions and not left:
                return n_linears
    return n_linears


def _attention_owners(block: Block, groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Give each attention operator to the group of the last linear before it, which makes the values."""
    group_of = {name: suffix for suffix, names in groups.items() for name in names}
    owners: dict[str, tuple[str, ...]] = {}
    last_linear: str | None = None
    for op in block.ops:
        if op.kind == "linear":
            last_linear = op.name
        elif op.kind == "attention" and last_linear is not None:
            suffix = group_of[last_linear]
            owners[suffix] = (*owners.get(suffix, ()), op.name)
    return owners
