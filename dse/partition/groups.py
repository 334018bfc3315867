"""Groups of equal devices of one node that work as one: tensor parallelism as a decision of the planner."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dse.evaluate.tensor_parallel import TensorGroup, group_name
from hardware_specs.spec import Cluster, Link


@dataclass(frozen=True)
class DeviceGroup:
    """``degree`` devices of a node, the ``index``-th such group; which ones is settled in ``placed``."""

    node: str
    device: str
    degree: int
    index: int

    @property
    def kind(self) -> str:
        """Name on the device axis of a cost table."""
        return group_name(self.device, self.degree)

    @property
    def name(self) -> str:
        """Name among the devices of a problem; a single device keeps its own."""
        if self.degree == 1:
            return f"{self.node}/{self.index}"
        return f"{self.node} x{self.degree}/{self.index}"

    @property
    def first_device(self) -> str:
        """A device of the node, for links and capacities that are the same for all of them."""
        return f"{self.node}/0"


def single_devices(cluster: Cluster) -> tuple[DeviceGroup, ...]:
    """Return every device as a group of one, in the order of the cluster's file."""
    return tuple(
        DeviceGroup(node.name, node.device, 1, index)
        for node in cluster.nodes
        for index in range(node.n_devices)
    )


def device_groups(cluster: Cluster, degrees: Sequence[int]) -> tuple[DeviceGroup, ...]:
    """Return every group that a node could make, of every degree."""
    return tuple(
        DeviceGroup(node.name, node.device, degree, index)
        for node in cluster.nodes
        for degree in sorted(degrees)
        for index in range(node.n_devices // degree)
        if degree == 1 or node.intra_link is not None
    )


def tensor_groups(cluster: Cluster, degrees: Sequence[int]) -> tuple[TensorGroup, ...]:
    """Return what a cost table must price for ``device_groups``, beside the single devices.

    Nodes of one device type with different links share an entry, with the slower link.
    """
    links: dict[tuple[str, int], Link] = {}
    for node in cluster.nodes:
        for degree in degrees:
            if degree == 1 or degree > node.n_devices or node.intra_link is None:
                continue
            known = links.get((node.device, degree))
            if known is None or node.intra_link.bandwidth_bytes_per_s < known.bandwidth_bytes_per_s:
                links[node.device, degree] = node.intra_link
    return tuple(
        TensorGroup(cluster.specs[device], degree, link) for (device, degree), link in sorted(links.items())
    )


def link_of(cluster: Cluster, first: DeviceGroup, second: DeviceGroup) -> Link:
    """Return the link between two groups."""
    if first.node == second.node:
        return cluster.link_between(f"{first.node}/0", f"{first.node}/1")
    return cluster.link_between(first.first_device, second.first_device)


def group_sequences(
    cluster: Cluster,
    groups: Sequence[DeviceGroup],
    max_stages: int,
    *,
    max_devices: int | None = None,
    limit: int | None = None,
) -> tuple[tuple[int, ...], ...] | None:
    """Return every sequence of disjoint groups as indices, one of each kind of equivalent ones.

    Two sequences are equivalent if they put groups of equal devices in the same places and change nodes at
    the same ones: every other property of a pipeline is then the same. None if there are more than ``limit``.
    """
    at = {(group.node, group.degree, group.index): i for i, group in enumerate(groups)}
    degrees: dict[str, list[int]] = {}
    for group in groups:
        if group.degree not in degrees.setdefault(group.node, []):
            degrees[group.node].append(group.degree)
    alike = node_kinds(cluster)
    seen: dict[object, tuple[int, ...]] = {}
    for steps in _steps(
        {node.name: node.n_devices for node in cluster.nodes if node.name in degrees},
        degrees,
        alike,
        max_stages,
        max_devices,
    ):
        signature = tuple(
            (alike[node], degree, i > 0 and steps[i - 1][0] == node) for i, (node, degree) in enumerate(steps)
        )
        if signature in seen:
            continue
        used: dict[tuple[str, int], int] = {}
        sequence = []
        for step in steps:
            sequence.append(at[(*step, used.get(step, 0))])
            used[step] = used.get(step, 0) + 1
        seen[signature] = tuple(sequence)
        if limit is not None and len(seen) > limit:
            return None
    return tuple(seen.values())


def node_kinds(cluster: Cluster) -> dict[str, int]:
    """Return a number for each node's kind: nodes of one kind are interchangeable."""
    kinds: dict[object, int] = {}
    return {
        node.name: kinds.setdefault(
            (node.device, node.n_devices, node.intra_link, node.memory_limit_bytes, node.host_memory),
            len(kinds),
        )
        for node in cluster.nodes
    }


def _steps(
    free: dict[str, int],
    degrees: Mapping[str, Sequence[int]],
    alike: Mapping[str, int],
    max_stages: int,
    max_devices: int | None,
) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield sequences of (node, degree) that the free devices allow; of untouched equal nodes the first."""
    whole = dict(free)
    room = sum(free.values()) if max_devices is None else max_devices

    def extend(steps: tuple[tuple[str, int], ...], room: int) -> Iterator[tuple[tuple[str, int], ...]]:
        if steps:
            yield steps
        if len(steps) == max_stages:
            return
        fresh: set[int] = set()
        for node, left in list(free.items()):
            if left == whole[node] and all(step[0] != node for step in steps):
                if alike[node] in fresh:
                    continue
                fresh.add(alike[node])
            for degree in degrees[node]:
                if degree <= min(left, room):
                    free[node] -= degree
                    yield from extend((*steps, (node, degree)), room - degree)
                    free[node] += degree

    yield from extend((), room)


def placed(groups: Sequence[DeviceGroup], taken: Collection[str] = ()) -> tuple[tuple[str, ...], ...]:
    """Return the device names of disjoint groups, in their order, without those that are taken.

    Large groups get theirs first, so that groups of powers of two start at multiples of their size, as the
    switches and sockets of machines are laid out.
    """
    used = set(taken)
    names: dict[int, tuple[str, ...]] = {}
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].degree):
        group = groups[i]
        free = (name for index in itertools.count() if (name := f"{group.node}/{index}") not in used)
        names[i] = tuple(itertools.islice(free, group.degree))
        used.update(names[i])
    return tuple(names[i] for i in range(len(groups)))
