"""Device orders to consider: one of each kind of equivalent ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hardware_specs.spec import Cluster

MAX_ORDERS = 5040
MAX_PERMUTED_DEVICES = 8


def candidate_orders(cluster: Cluster) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """Return device orders, one of each kind of equivalent ones, and whether they are all.

    Two orders are equivalent if they put equal devices in the same places and change nodes at the same ones.
    Beyond 8 devices, or ``MAX_ORDERS`` kinds, only orders that keep the devices of a node together are made,
    and where those are more than ``MAX_ORDERS``, only orders that keep like nodes together.
    """
    node_of = {node.name: node for node in cluster.nodes}
    names = [name for name, _ in cluster.devices]
    nodes = [name.partition("/")[0] for name in names]
    kinds = [
        (
            node_of[node].device,
            node_of[node].n_devices,
            node_of[node].intra_link,
            cluster.capacity_bytes(name),
        )
        for node, name in zip(nodes, names, strict=True)
    ]

    def signature(order: tuple[int, ...]) -> object:
        numbering: dict[str, int] = {}
        return tuple((kinds[i], numbering.setdefault(nodes[i], len(numbering))) for i in order)

    if len(names) <= MAX_PERMUTED_DEVICES:
        found: dict[object, tuple[int, ...]] = {}
        for order in itertools.permutations(range(len(names))):
            found.setdefault(signature(order), order)
            if len(found) > MAX_ORDERS:
                break
        else:
            return tuple(found.values()), True
    blocks: dict[object, list[list[int]]] = {}
    for node in dict.fromkeys(nodes):
        members = [i for i, name in enumerate(nodes) if name == node]
        blocks.setdefault(kinds[members[0]], []).append(members)
    alike = list(blocks.values())
    counts = [len(block) for block in alike]
    n_orders = math.factorial(sum(counts)) // math.prod(math.factorial(n) for n in counts)
    if n_orders > MAX_ORDERS:
        counts = [1] * len(alike)  # like nodes stay together
        alike = [[[i for members in block for i in members]] for block in alike]
    orders = []
    for arranged in itertools.islice(_arrangements(counts), MAX_ORDERS):
        left = [iter(block) for block in alike]
        orders.append(tuple(i for kind in arranged for i in next(left[kind])))
    return tuple(orders), n_orders <= MAX_ORDERS and len(set(nodes)) == len(names)


def _arrangements(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the distinct sequences in which every kind k occurs ``counts[k]`` times."""
    if not any(counts):
        yield ()
    for kind, n in enumerate(counts):
        if n:
            for rest in _arrangements([m - (k == kind) for k, m in enumerate(counts)]):
                yield (kind, *rest)
