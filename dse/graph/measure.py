"""The numbers of every operator in one recorded pass: arithmetic, traffic, shapes and data flow."""

from __future__ import annotations

from dataclasses import dataclass, field

from dse.graph.merge import Group
from dse.graph.record import Node, Recording, Value

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class Measured:
    """Numbers of one group in one pass; ``edges`` are {producing group or None for outside: elements}."""

    flop: int = 0
    vector_flop: int = 0
    read_elements: int = 0
    write_elements: int = 0
    kv_read_elements: int = 0
    kv_write_elements: int = 0
    state_elements: int = 0
    input_shapes: Shapes = ()
    output_shapes: Shapes = ()
    edges: dict[int | None, int] = field(default_factory=dict)
    is_result: bool = False


def measure(recording: Recording, groups: list[Group]) -> list[Measured]:
    """Return the numbers of each group.

    Traffic is that of a fused kernel: distinct tensors that come from outside the group are read once, and
    of what the group computes only that is written which something outside it reads. Casts and layout changes
    are free. Keys and values that a step appends are read as activations; only what was in the cache before
    counts as a cache read.
    """
    owner = {index: position for position, group in enumerate(groups) for index in group.members}
    measured = [_arithmetic(recording, group) for group in groups]
    consumed = _consumed_outside(recording, groups, owner)
    for position, group in enumerate(groups):
        _traffic_in(recording, group, position, owner, measured[position])
        _traffic_out(recording, group, consumed[position], measured[position])
    for index in recording.results:
        producer = recording.values[index].producer
        if producer in owner:
            measured[owner[producer]].is_result = True
    return measured


def _arithmetic(recording: Recording, group: Group) -> Measured:
    nodes = [recording.nodes[index] for index in group.members]
    state = sum(node.state_elements for node in nodes)
    return Measured(
        flop=sum(node.flop for node in nodes),
        vector_flop=sum(node.vector_flop for node in nodes),
        read_elements=state,
        write_elements=state,
        state_elements=state,
    )


def _external(recording: Recording, group: Group, position: int, owner: dict[int, int]) -> list[int]:
    """Return the indices of distinct real-valued activations that a group reads from outside, in order."""
    found: dict[int, None] = {}
    for index in group.members:
        for value_index in recording.nodes[index].inputs:
            value = recording.values[value_index]
            inside = value.producer is not None and owner.get(value.producer) == position
            if value.parameter is None and value.floating and not inside:
                found[value_index] = None
    return list(found)


def _traffic_in(
    recording: Recording, group: Group, position: int, owner: dict[int, int], out: Measured
) -> None:
    """Fill in reads, cache traffic, input shapes and incoming edges."""
    values = recording.values
    reads = _external(recording, group, position, owner)
    chosen = [v for v in reads if not set(values[v].ancestors) & set(reads)]
    per_base: dict[int, int] = {}
    for index in chosen:
        per_base[values[index].base] = per_base.get(values[index].base, 0) + values[index].numel
    for base_index, elements in per_base.items():
        base = values[base_index]
        count = min(elements, base.numel)
        if base.fresh is not None:
            fresh = values[base.fresh]
            out.kv_read_elements += base.numel - fresh.numel
            out.kv_write_elements += fresh.numel
            base, count = fresh, fresh.numel
        producer = None if base.producer is None else owner.get(base.producer)
        if producer is None and base.producer is None:
            continue  # a constant, such as a frequency table
        if producer == position:
            continue  # it passed through the cache only
        out.read_elements += count
        out.edges[producer] = out.edges.get(producer, 0) + count
    out.input_shapes = tuple(_seen_from(values, index, group).shape for index in chosen)


def _seen_from(values: list[Value], index: int, group: Group) -> Value:
    """Return a read value as the module received it, before the reshaping that it did itself."""
    value = values[index]
    for ancestor in value.ancestors:
        if (value.path, value.call) != (group.path, group.call) or values[ancestor].numel != value.numel:
            break
        value = values[ancestor]
    return value


def _consumed_outside(
    recording: Recording, groups: list[Group], owner: dict[int, int]
) -> list[dict[int, None]]:
    """Return, per group, the base values that it computes and something outside it reads."""
    consumed: list[dict[int, None]] = [{} for _ in groups]

    def note(value: Value, reader: int | None) -> None:
        if value.fresh is not None:
            value = recording.values[value.fresh]
        producer = None if value.producer is None else owner.get(value.producer)
        if producer is not None and producer != reader:
            consumed[producer][value.base] = None

    for index, reader in owner.items():
        for value_index in recording.nodes[index].inputs:
            note(recording.values[value_index], reader)
    for index in recording.results:
        note(recording.values[index], None)
    return consumed


def _traffic_out(recording: Recording, group: Group, consumed: dict[int, None], out: Measured) -> None:
    """Fill in writes and output shapes; a shape is the last that the module itself gave the tensor."""
    shapes = []
    for base_index in consumed:
        base = recording.values[base_index]
        out.write_elements += base.numel
        shape = base.shape
        for value in recording.values[base_index + 1 :]:
            same_place = (value.path, value.call) == (base.path, base.call)
            if value.base == base_index and same_place and value.numel == base.numel:
                shape = value.shape
        shapes.append(shape)
    out.output_shapes = tuple(shapes)
    if group.kind == "linear":
        out.output_shapes = tuple(shapes[-1:])


def product_node(recording: Recording, group: Group) -> Node:
    """Return the first matrix product of a group."""
    nodes = [recording.nodes[index] for index in group.members]
    return next(node for node in nodes if node.category in ("product", "attention"))
