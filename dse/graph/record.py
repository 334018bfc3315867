"""What one forward pass does: every tensor operation with its module, its tensors and their origin.

Recording happens below autograd, where torch has broken composite operations down to its core set. Views,
copies and casts make no node of their own: their result is an alias of its input. The key-value cache is
observed where it is updated, so that cached tensors are known as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dse.graph.aten import FACTORIES, LAYOUTS, Category, category_of, flop_of, vector_flop_of
from dse.graph.kernels import kernels_in
from dse.graph.operator import Attention, Experts

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
    """A recorded operation: name in torch's core set, module, values in and out, and its arithmetic.

    ``detail`` is what is known of a kernel, and ``state_elements`` the recurrent state that it keeps.
    """

    name: str
    category: Category
    path: str
    call: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    flop: int
    vector_flop: int
    detail: Attention | Experts | None = None
    state_elements: int = 0


@dataclass
class Recording:
    """One forward pass. ``results`` are the indices of what it returns: the logits of a language model."""

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    results: tuple[int, ...] = ()

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

    def run(self, forward: Callable[[], list[torch.Tensor]]) -> Recording:
        """Call ``forward``, which returns the results of the pass, and return what it did."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.no_grad(), kernels_in(self._model, self), self:
                results = forward()
        finally:
            for handle in handles:
                handle.remove()
        self.recording.results = tuple(self._index(tensor) for tensor in results)
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

    def inside(self) -> AbstractContextManager[None]:
        """Record what a kernel does after its product as the operations that it does elsewhere."""
        return nullcontext()

    def scratch(self, shape: tuple[int, ...], like: torch.Tensor) -> None:
        """Memory that a kernel uses inside moves nothing between operators."""

    def kernel(
        self,
        name: str,
        category: Category,
        inputs: list[torch.Tensor],
        shapes: list[tuple[int, ...]],
        *,
        flop: int = 0,
        vector_flop: int = 0,
        detail: Attention | Experts | None = None,
        state_elements: int = 0,
    ) -> list[torch.Tensor]:
        """Record one node for all that a kernel does, and return its results, of the given shapes."""
        sources = tuple(self._index(tensor) for tensor in inputs)
        with self.paused():
            outputs = [torch.empty(shape, dtype=inputs[0].dtype, device=inputs[0].device) for shape in shapes]
        index = len(self.recording.nodes)
        made = tuple(self._add(tensor, producer=index) for tensor in outputs)
        path, call = self._stack[-1]
        self.recording.nodes.append(
            Node(name, category, path, call, sources, made, flop, vector_flop, detail, state_elements)
        )
        return outputs

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
        if not inputs or name in FACTORIES:
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
        if outputs[0] is inputs[0]:
            self._rebase(sources[0], index)

    def _rebase(self, written: int, producer: int) -> None:
        """After a write into a part of a tensor, let the whole of it and its views come from that write."""
        recording = self.recording
        old = recording.values[written].base
        if recording.values[written].numel == recording.values[old].numel:
            return
        aliases = [
            i
            for i, value in enumerate(recording.values)
            if value.base == old and self._index_of.get(id(self._alive[i])) == i
        ]
        whole = self._add(self._alive[old], producer=producer)
        node = recording.nodes[producer]
        recording.nodes[producer] = replace(node, outputs=(whole,))
        for index in aliases:
            if index != old:
                self._add_alias(self._alive[index], whole)

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
                _holds_reals(tensor),
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
            floating=_holds_reals(tensor),
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


def _holds_reals(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
