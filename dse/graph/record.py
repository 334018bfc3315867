"""What one forward pass does: every tensor operation with its module, its tensors and their origin.

Recording happens below autograd, where torch has broken composite operations down to its core set. Views,
copies and casts make no node of their own: their result is an alias of its input. The key-value cache is
observed where it is updated, so that cached tensors are known as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from dse.graph.aten import LAYOUTS, Category, category_of, flop_of, vector_flop_of

CacheRole = Literal["keys", "values"]


@dataclass(frozen=True)
class Value:
    """A tensor that was seen.

    Attributes:
        shape: sizes; ``floating``: whether it holds real numbers.
        producer: index of the node that computed it or its base, None for inputs and constants.
        parameter: name of the parameter that it is or aliases.
        base: index of the value it aliases, its own for a computed one.
        ancestors: indices of the values between it and the base, nearest first, the base last.
        path, call: module in which it was made, and the how-manieth call of that module.
        cached: for what a cache update returned, its role; ``fresh``: index of the value that was appended.
    """

    shape: tuple[int, ...]
    floating: bool
    producer: int | None
    parameter: str | None
    base: int
    ancestors: tuple[int, ...]
    path: str
    call: int
    cached: CacheRole | None = None
    fresh: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Node:
    """A recorded operation: name in torch's core set, module, values in and out, and its arithmetic."""

    name: str
    category: Category
    path: str
    call: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    flop: int
    vector_flop: int


@dataclass
class Recording:
    """One forward pass. ``result`` is the index of the logits."""

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    result: int = -1

    def sequence(self) -> list[tuple[str, str, int]]:
        """What must be equal between passes of different sizes: operations and modules in order."""
        return [(node.name, node.path, node.call) for node in self.nodes]


class Recorder(TorchDispatchMode):
    """Records the operations of one forward pass of ``model``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.recording = Recording()
        self._model = model
        self._index_of: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # a freed tensor's id would be given to another one
        self._stack: list[tuple[str, int]] = [("", 0)]
        self._calls: Counter[str] = Counter()
        self._paused = False
        for name, parameter in model.named_parameters():
            self._add(parameter, producer=None, parameter=name)

    def run(self, forward: Callable[[], torch.Tensor]) -> Recording:
        """Call ``forward``, which returns the logits, and return what it did."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.no_grad(), self:
                logits = forward()
        finally:
            for handle in handles:
                handle.remove()
        self.recording.result = self._index(logits)
        return self.recording

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def note_cached(self, role: CacheRole, appended: torch.Tensor, whole: torch.Tensor) -> None:
        """Tell that ``whole`` is the cache content after ``appended`` was added to it."""
        fresh = self._index(appended)
        self._add(whole, producer=None, cached=role, fresh=fresh)

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ):
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self._record(func, args, kwargs or {}, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not outputs:
            return
        name = func.overloadpacket.__name__
        if not inputs:
            for tensor in outputs:
                self._add(tensor, producer=None)
            return
        sources = [self._index(tensor) for tensor in inputs]
        if func.is_view or name in LAYOUTS:
            for tensor in outputs:
                self._add_alias(tensor, sources[0])
            return
        index = len(self.recording.nodes)
        made = tuple(self._add(tensor, producer=index) for tensor in outputs)
        path, call = self._stack[-1]
        self.recording.nodes.append(
            Node(
                name=name,
                category=category_of(func),
                path=path,
                call=call,
                inputs=tuple(sources),
                outputs=made,
                flop=flop_of(func, args, kwargs, result),
                vector_flop=vector_flop_of(func, kwargs, inputs, outputs),
            )
        )

    def _index(self, tensor: torch.Tensor) -> int:
        known = self._index_of.get(id(tensor))
        return self._add(tensor, producer=None) if known is None else known

    def _add(
        self,
        tensor: torch.Tensor,
        *,
        producer: int | None,
        parameter: str | None = None,
        cached: CacheRole | None = None,
        fresh: int | None = None,
    ) -> int:
        index = len(self.recording.values)
        path, call = self._stack[-1]
        return self._store(
            tensor,
            Value(
                tuple(tensor.shape),
                tensor.is_floating_point(),
                producer,
                parameter,
                index,
                (),
                path,
                call,
                cached,
                fresh,
            ),
        )

    def _add_alias(self, tensor: torch.Tensor, source: int) -> int:
        origin = self.recording.values[source]
        path, call = self._stack[-1]
        alias = Value(
            shape=tuple(tensor.shape),
            floating=tensor.is_floating_point(),
            producer=origin.producer,
            parameter=origin.parameter,
            base=origin.base,
            ancestors=(source, *origin.ancestors),
            path=path,
            call=call,
            cached=origin.cached,
            fresh=origin.fresh,
        )
        return self._store(tensor, alias)

    def _store(self, tensor: torch.Tensor, value: Value) -> int:
        index = len(self.recording.values)
        self.recording.values.append(value)
        self._index_of[id(tensor)] = index
        self._alive.append(tensor)
        return index

    def _enter(self, name: str) -> Callable[[torch.nn.Module, Any], None]:
        def hook(module: torch.nn.Module, inputs: Any) -> None:  # noqa: ARG001
            self._calls[name] += 1
            self._stack.append((name, self._calls[name]))

        return hook

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        self._stack.pop()


class RecordingCache(DynamicCache):
    """A cache that grows without bound and tells the recorder what it holds."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def fill(self, layouts: list[tuple[tuple[int, int], tuple[int, int]]], batch: int, length: int) -> None:
        """Put ``length`` positions into every layer.

        Args:
            layouts: per layer, (heads, width) of the keys and of the values.
            batch, length: sizes of the cached tensors, (batch, heads, length, width).
        """
        if length == 0:
            return
        for layer, shapes in enumerate(layouts):
            keys, values = (
                torch.empty(batch, heads, length, width, dtype=torch.bfloat16, device="meta")
                for heads, width in shapes
            )
            super().update(keys, values, layer)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return the whole keys and values of the layer."""
        with self._recorder.paused():
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self._recorder.note_cached("keys", key_states, keys)
        self._recorder.note_cached("values", value_states, values)
        return keys, values
