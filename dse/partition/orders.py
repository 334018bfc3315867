"""Device orders to consider: one of each kind of equivalent ones."""

from __future__ import annotations

import itertools

from hardware_specs.spec import Cluster

MAX_ORDERS = 5040
MAX_PERMUTED_DEVICES = 8


def candidate_orders(cluster: Cluster) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """Return device orders, one of each kind of equivalent ones, and whether they are all.

    Two orders are equivalent if they put equal devices in the same places and change nodes at the same ones.
    Beyond 8 devices, or ``MAX_ORDERS`` kinds, only orders that keep the devices of a node together are made.
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
    groups = [[i for i, node in enumerate(nodes) if node == name] for name in dict.fromkeys(nodes)]
    blocks: dict[object, tuple[int, ...]] = {}
    for arranged in itertools.permutations(groups):
        order = tuple(i for group in arranged for i in group)
        blocks.setdefault(signature(order), order)
        if len(blocks) >= MAX_ORDERS:
            break
    return tuple(blocks.values()), False
