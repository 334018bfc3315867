"""From recorded operations to the operators of the graph: what one kernel of a serving runtime computes.

Rules, none of which names a family: everything in a module without submodules is one operator (linear, norm,
embedding, activation); everything between the product with the cached keys and the product with the cached
values is attention; what multiplies by sines and cosines is the rotary embedding; a product with the output
of an activation gates it; remaining element-wise neighbours in one module are one operator. Operations are
joined only where that leaves the data flow between operators free of cycles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from dse.errors import ConfigError
from dse.graph.flow import Flow
from dse.graph.operator import Experts, OpKind
from dse.graph.record import Node, Recording

TRIGONOMETRY = frozenset({"cos", "sin", "polar"})
ACTIVATIONS = frozenset(
    {"silu", "gelu", "relu", "relu6", "sigmoid", "hardswish", "mish", "leaky_relu", "elu"}
)
ALONE = frozenset({"product", "attention", "scan"})
REASONS = {
    "_grouped_mm": "it multiplies by experts outside the interface that transformers has for them",
    "_local_scalar_dense": "what is computed depends on the values of a tensor",
    "nonzero": "its size depends on the values of a tensor",
}


@dataclass
class Group:
    """Operations that make one operator.

    ``members`` are node indices in order; ``leaf`` says that it is a module of its own; ``label`` names it
    below the module path otherwise.
    """

    kind: OpKind
    path: str
    call: int
    leaf: bool
    members: list[int] = field(default_factory=list)
    trigonometry: bool = False
    label: str = ""


def why_unsupported(name: str) -> str:
    """Return the reason why an operation cannot be priced."""
    return REASONS.get(name, "there is no cost rule for it")


def merge(recording: Recording, model: nn.Module, source: str) -> list[Group]:
    """Return the operators of a recording in an order that respects the data flow.

    Raises:
        ConfigError: an operation cannot be priced; the text names it and its module.
    """
    merger = _Merger(recording, model, source)
    merger.place_all()
    merger.join_rotary()
    return merger.ordered()


class _Merger:
    """The state of one merge: which group each operation is in, and which groups feed which."""

    def __init__(self, recording: Recording, model: nn.Module, source: str) -> None:
        self.recording = recording
        self.source = source
        routed = {node.path for node in recording.nodes if isinstance(node.detail, Experts)}
        self.leaves = {n for n, module in model.named_modules() if not list(module.children())} - routed
        self.flow = Flow(recording)
        self.live = self.flow.live()
        self.attention = self.flow.attention()
        self.groups: dict[int, Group] = {}
        self.group_of: dict[int, int] = {}
        self._by_key: dict[tuple[str, str, int], int] = {}

    def _has_parameter(self, node: Node) -> bool:
        return self.flow.has_parameter(node)

    def place_all(self) -> None:
        """Give every live node to a group, in order."""
        for index, node in enumerate(self.recording.nodes):
            if index not in self.live:
                continue
            self._check(index, node)
            if index in self.attention:
                root = self.attention[index]
                fresh = Group("attention", self.recording.nodes[root].path, root, leaf=False)
                self._put(index, ("attention", fresh.path, root), fresh)
            elif node.path in self.leaves:
                fresh = Group("other", node.path, node.call, leaf=True)
                self._put(index, ("leaf", node.path, node.call), fresh)
            else:
                self._place_free(index, node)
        for group in self.groups.values():
            self._classify(group)

    def _check(self, index: int, node: Node) -> None:
        where = f"operator '{node.name}' in module '{node.path or 'the whole model'}'"
        if node.category == "unsupported":
            raise ConfigError(f"{where} is not supported: {why_unsupported(node.name)}", file=self.source)
        if node.category == "product" and index not in self.attention and not self._has_parameter(node):
            if any(self.recording.values[v].producer is None for v in node.inputs):
                return  # a product with a constant buffer, such as a frequency table
            raise ConfigError(
                f"{where} is not supported: it multiplies two activations outside attention over the cache",
                file=self.source,
            )

    def _put(self, index: int, key: tuple[str, str, int], fresh: Group) -> None:
        group_id = self._by_key.setdefault(key, len(self._by_key))
        self.groups.setdefault(group_id, fresh).members.append(index)
        self.group_of[index] = group_id

    def _place_free(self, index: int, node: Node) -> None:
        """Place a node that lies directly in a module with submodules: beside a neighbour where possible."""
        self._put(index, ("free", str(index), 0), Group("elementwise", node.path, node.call, leaf=False))
        if node.category in ALONE or node.detail is not None:
            return
        for source in self.flow.sources_of[index]:
            neighbour = self.group_of.get(source)
            if neighbour is None or neighbour == self.group_of[index]:
                continue
            if self._may_join(self.groups[neighbour], node):
                self._join(neighbour, self.group_of[index])

    def _may_join(self, group: Group, node: Node) -> bool:
        if group.leaf:
            gated = node.name == "mul" and group.path.rpartition(".")[0] == node.path
            return gated and self._is_activation(group)
        same_place = (group.path, group.call) == (node.path, node.call)
        return group.kind == "elementwise" and same_place and not self._has_product(group)

    def _nodes(self, group: Group) -> list[Node]:
        return [self.recording.nodes[index] for index in group.members]

    def _has_product(self, group: Group) -> bool:
        return any(node.category in ALONE for node in self._nodes(group))

    def _is_activation(self, group: Group) -> bool:
        nodes = self._nodes(group)
        pointwise = all(node.category == "pointwise" for node in nodes)
        return pointwise and not any(self._has_parameter(n) or n.name in TRIGONOMETRY for n in nodes)

    def _join(self, keep: int, other: int) -> None:
        """Move all of ``other`` into ``keep``, unless that would close a cycle."""
        moved = self.groups.pop(other)
        before = list(self.groups[keep].members)
        self.groups[keep].members = sorted(before + moved.members)
        self.group_of.update(dict.fromkeys(moved.members, keep))
        if self._order() is None:
            self.groups[keep].members = before
            self.groups[other] = moved
            self.group_of.update(dict.fromkeys(moved.members, other))

    def _feeds(self) -> dict[int, set[int]]:
        """Return {group: groups whose results it reads}."""
        feeds: dict[int, set[int]] = {group_id: set() for group_id in self.groups}
        for index, group_id in self.group_of.items():
            feeds[group_id].update(
                self.group_of[source] for source in self.flow.sources_of[index] if source in self.group_of
            )
            feeds[group_id].discard(group_id)
        return feeds

    def _order(self) -> list[int] | None:
        """Return the groups in data-flow order, the earliest finished first, or None if there is a cycle."""
        feeds = self._feeds()
        last = {group_id: group.members[-1] for group_id, group in self.groups.items()}
        done: list[int] = []
        waiting = set(self.groups)
        while waiting:
            ready = [group_id for group_id in waiting if not feeds[group_id] & waiting]
            if not ready:
                return None
            chosen = min(ready, key=last.__getitem__)
            done.append(chosen)
            waiting.discard(chosen)
        return done

    def _classify(self, group: Group) -> None:
        """Set the kind of a group from what its operations do."""
        nodes = self._nodes(group)
        categories = {node.category for node in nodes}
        names = {node.name for node in nodes}
        products = [node for node in nodes if node.category == "product"]
        group.trigonometry = bool(names & TRIGONOMETRY)
        if group.kind == "attention":
            return
        if "scan" in categories:
            group.kind = "scan"
        elif products and any(self._has_parameter(node) for node in products):
            if len(products) > 1:
                raise ConfigError(
                    f"operator '{products[1].name}' in module '{group.path}' is not supported: the module "
                    "multiplies by several matrices",
                    file=self.source,
                )
            group.kind = "linear"
        elif "embedding" in categories:
            group.kind = "embedding"
        elif group.trigonometry:
            group.kind = "rope"
        elif products:
            group.kind = "other"
        elif "reduction" in categories:
            group.kind = "norm" if group.leaf else "other"
        elif self._is_activation_named(group.leaf, names, nodes):
            group.kind = "activation"
        elif categories <= {"move"}:
            group.kind = "gather"
        else:
            group.kind = "elementwise"

    def _is_activation_named(self, leaf: bool, names: set[str], nodes: list[Node]) -> bool:
        """Whether operations are an activation: a module beyond mere arithmetic, or one by its name."""
        if not leaf:
            return bool(names & ACTIVATIONS)
        return bool(names - {"add", "mul", "sub", "div"}) and not any(self._has_parameter(n) for n in nodes)

    def join_rotary(self) -> None:
        """Mark what multiplies by sines and cosines, and join it to one group per module."""
        rotary: dict[tuple[str, int], int] = {}
        feeds = self._feeds()
        turned = [
            group_id
            for group_id, group in self.groups.items()
            if group.kind == "elementwise"
            and not group.leaf
            and any(self.groups[source].trigonometry for source in feeds[group_id])
        ]
        for group_id in turned:
            group = self.groups[group_id]
            group.kind = "rope"
            first = rotary.setdefault((group.path, group.call), group_id)
            if first != group_id:
                self._join(first, group_id)

    def _name_by_parameter(self, group: Group) -> None:
        """Label a product that a module computes with a parameter of another one by that parameter."""
        for node in self._nodes(group):
            if node.name == "scan":
                group.label = "scan"
                return
            for index in node.inputs:
                owner = self.recording.values[index].parameter
                if owner is not None and owner.startswith(f"{group.path}."):
                    group.label = owner.removeprefix(f"{group.path}.").removesuffix(".weight")
                    return

    def ordered(self) -> list[Group]:
        """Return the groups in data-flow order, with their labels."""
        for group in self.groups.values():
            last = self.recording.nodes[group.members[-1]].name.strip("_")
            group.label = group.kind if group.kind in ("attention", "rope") else last
            if group.kind in ("linear", "scan") and not group.leaf:
                self._name_by_parameter(group)
        order = self._order()
        if order is None:
            raise ConfigError("operators depend on each other in a cycle", file=self.source)
        return [self.groups[group_id] for group_id in order]
