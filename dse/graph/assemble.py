"""Operators and their edges put together: prologue, block templates, epilogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dse.errors import ConfigError
from dse.graph.extent import Extent
from dse.graph.merge import Group
from dse.graph.operator import Block, Edge, OperatorGraph
from dse.graph.skeleton import Skeleton
from dse.graph.solve import Traced
from dse.graph.source import ModelSource


def name_groups(skeleton: Skeleton, groups: list[Group]) -> list[tuple[int | None, str]]:
    """Return (layer of the reduced model or None, unique name within that part) of each group."""
    prefixes = [skeleton.prefix(part) for part in range(len(skeleton.parts))]
    used: set[tuple[int | None, str]] = set()
    names = []
    for group in groups:
        inside = f"{group.path}."
        part = next((i for i, prefix in enumerate(prefixes) if inside.startswith(f"{prefix}.")), None)
        path = group.path if part is None else group.path[len(prefixes[part]) + 1 :]
        base = path if group.leaf else ".".join(filter(None, (path, group.label)))
        name, count = base, 1
        while (part, name) in used:
            count += 1
            name = f"{base}_{count}"
        used.add((part, name))
        names.append((part, name))
    return names


def assemble(skeleton: Skeleton, traced: list[Traced], source: ModelSource) -> OperatorGraph:
    """Put the operators into prologue, block templates and epilogue, and join their edges."""
    _check_copies(skeleton, traced, source)
    last_block = max(i for i, entry in enumerate(traced) if entry.part is not None)
    place: list[int | str] = []
    for index, entry in enumerate(traced):
        if entry.part is not None:
            place.append(entry.part)
        elif index > last_block:
            place.append("epilogue")
        elif _depends_on_decoder(index, traced, skeleton):
            raise ConfigError(
                f"operator '{entry.op.name}' lies between transformer blocks, which is not supported",
                file=source.name,
            )
        else:
            place.append("prologue")
    config = skeleton.config
    return OperatorGraph(
        model=source.name,
        config_hash=source.config_hash,
        prologue=_block("", (), "prologue", place, traced),
        blocks=_blocks(skeleton, place, traced),
        epilogue=_block("", (), "epilogue", place, traced),
        hidden_size=int(config.hidden_size),
        vocab_size=int(getattr(config, "vocab_size", 0)),
        parameters=skeleton.parameters,
        max_context=_max_context(config),
        source_tokens=skeleton.source_tokens,
        n_encoder_layers=sum(stack.n_layers for stack in skeleton.stacks[:-1]),
    )


def _blocks(skeleton: Skeleton, place: list[int | str], traced: list[Traced]) -> tuple[Block, ...]:
    """Return the templates of all stacks; layers count on from one stack to the next."""
    blocks, first = [], 0
    for number, stack in enumerate(skeleton.stacks):
        for kind, layers in enumerate(stack.kinds):
            block = _block(stack.prefix, layers, skeleton.template(number, kind), place, traced)
            shifted = tuple(layer + first for layer in layers)
            blocks.append(replace(block, layers=shifted, first_layer=first))
        first += stack.n_layers
    return tuple(blocks)


def _check_copies(skeleton: Skeleton, traced: list[Traced], source: ModelSource) -> None:
    """Check that the two layers of a stack's first kind compute the same, as layers that are folded must."""
    for number, stack in enumerate(skeleton.stacks):
        copies = [i for i, part in enumerate(skeleton.parts) if (part.stack, part.kind) == (number, 0)]
        first, again = (
            [
                replace(entry.op, live_elements=Extent(), step_live_elements=None)
                for entry in traced
                if entry.part == part
            ]
            for part in (copies[0], copies[-1])
        )
        if first != again:
            raise ConfigError(
                f"layers {list(stack.kinds[0])} of '{stack.prefix}' have equal modules but compute "
                "differently",
                file=source.name,
            )


def _max_context(config: Any) -> int | None:
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value else None


def _depends_on_decoder(index: int, traced: list[Traced], skeleton: Skeleton) -> bool:
    """Whether an operator reads, at whatever remove, what a block of the last stack made."""
    last = len(skeleton.stacks) - 1
    pending, seen = [index], set()
    while pending:
        current = pending.pop()
        part = traced[current].part
        if part is not None and skeleton.parts[part].stack == last:
            return True
        for source in traced[current].edges:
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    return False


def _block(
    prefix: str, layers: tuple[int, ...], here: int | str, place: list[int | str], traced: list[Traced]
) -> Block:
    """Collect the operators at one place, with the edges inside it and across its border."""
    edges: dict[tuple[str, str, str], Extent] = {}

    def add(source: str, target: str, elements: Extent, origin: str = "") -> None:
        key = (source, target, origin)
        edges[key] = edges.get(key, Extent()) + elements

    read_elsewhere = {
        source
        for index, entry in enumerate(traced)
        for source in entry.edges
        if source is not None and place[source] == here and place[index] != here
    }
    for index, entry in enumerate(traced):
        if place[index] != here:
            continue
        for source, elements in entry.edges.items():
            if source is None:
                add("", entry.op.name, elements)
            elif place[source] == here:
                add(traced[source].op.name, entry.op.name, elements)
            else:
                origin = traced[source].op.name if place[source] == "prologue" else ""
                add("", entry.op.name, elements, origin)
        if entry.is_result or index in read_elsewhere:
            add(entry.op.name, "", entry.op.write_elements)
    return Block(
        prefix,
        layers,
        tuple(entry.op for index, entry in enumerate(traced) if place[index] == here),
        tuple(Edge(source, target, elements, origin) for (source, target, origin), elements in edges.items()),
    )
