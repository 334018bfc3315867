"""Data flow of a recording: what feeds what, what matters for the logits, and where attention is."""

from __future__ import annotations

from dse.graph.record import Node, Recording, Value


class Flow:
    """Answers about the data flow of one recording.

    Attributes:
        sources_of: for each node, the nodes whose results it reads, also through the cache.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.sources_of = [self._producers(node) for node in recording.nodes]

    def has_parameter(self, node: Node) -> bool:
        """Whether a node reads a parameter."""
        return any(self._recording.values[i].parameter is not None for i in node.inputs)

    def live(self) -> set[int]:
        """Return the nodes whose real-valued results reach the logits, so not those that make indices."""
        results = [self._recording.values[index].producer for index in self._recording.results]
        live: set[int] = set()
        pending = [producer for producer in results if producer is not None]
        while pending:
            index = pending.pop()
            node = self._recording.nodes[index]
            if index in live or not any(self._recording.values[v].floating for v in node.outputs):
                continue
            live.add(index)
            read = [self._resolved(v) for v in node.inputs]
            pending.extend(v.producer for v in read if v.producer is not None and v.floating)
        return live

    def attention(self) -> dict[int, int]:
        """Return {node: its product with the keys} of all nodes from there to the product with the values.

        A node that is all of attention stands for itself.
        """
        found: dict[int, int] = {}
        started: dict[int, set[int]] = {}  # node -> products with keys that it depends on
        for index, node in enumerate(self._recording.nodes):
            roots: set[int] = set().union(*(started.get(source, set()) for source in self.sources_of[index]))
            product = node.category == "product"
            cached = self._cached(node) if product and not self.has_parameter(node) else set()
            if node.category == "attention":
                found[index] = index
                roots = set()
            elif "keys" in cached:
                roots = {index}
            elif "values" in cached:
                for root in roots:
                    self._collect(index, root, started, found)
                roots = set()
            elif product and self.has_parameter(node):
                roots = set()
            started[index] = roots
        return found

    def _collect(self, end: int, root: int, started: dict[int, set[int]], found: dict[int, int]) -> None:
        """Put the nodes on a path from ``root`` to ``end`` into ``found``."""
        pending = [end]
        while pending:
            index = pending.pop()
            found[index] = root
            sources = self.sources_of[index]
            pending.extend(s for s in sources if s not in found and root in started.get(s, set()))

    def _producers(self, node: Node) -> tuple[int, ...]:
        found = (self._resolved(index).producer for index in node.inputs)
        return tuple(dict.fromkeys(producer for producer in found if producer is not None))

    def _cached(self, node: Node) -> set[str]:
        return {v.cached for i in node.inputs if (v := self._recording.values[i]).cached is not None}

    def _resolved(self, index: int) -> Value:
        """Return a value, or for what the cache returned, the value that was appended to it."""
        value = self._recording.values[index]
        return value if value.fresh is None else self._recording.values[value.fresh]
