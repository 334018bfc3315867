"""How long the tensors of one forward pass live: what a module itself holds while it runs its operators.

A module keeps more than data flow needs: callers hold their arguments until they return, and a model holds
its embedded input to the end. On the meta device storages come and go exactly as in a real run, so that
counting them gives its peak. The pass runs in float32, where casts to float32 make no copies.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dse.graph.aten import FACTORIES, LAYOUTS
from dse.graph.kernels import kernels_in

FLOAT32_BYTES = 4


def in_float32(model: nn.Module) -> nn.Module:
    """Return a copy of a module with float32 parameters."""
    return copy.deepcopy(model).float()


class Lifetimes(TorchDispatchMode):
    """Follows the storages of one forward pass of ``model``; the cache and the parameters do not count.

    What ``encoder``, a part of the model, makes counts only while it runs: later passes do without.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self._model = model
        self._encoder = encoder
        self._encoding = False
        self._live_bytes = 0
        self._encoder_bytes = 0
        self._sizes: dict[int, int] = {}
        self._of_encoder: set[int] = set()
        self._highest = 0  # since the last operation that counts
        self._paused = False
        self._inside = False
        self._per_node: list[int] = []
        self._ignored = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def run(self, forward: Callable[[], list[torch.Tensor]], inputs: list[torch.Tensor]) -> list[int]:
        """Return the live float32 elements, rounded up, at each operation that a ``Recorder`` notes."""
        self._ignored |= {_key(tensor) for tensor in inputs}
        handles = []
        if self._encoder is not None:
            handles.append(self._encoder.register_forward_pre_hook(self._enter))
            handles.append(self._encoder.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.no_grad(), kernels_in(self._model, self), self:
                forward()
        finally:
            for handle in handles:
                handle.remove()
        return [-(-live // FLOAT32_BYTES) for live in self._per_node]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Follow nothing that is made inside."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def note_cached(self, role: str, appended: torch.Tensor, whole: torch.Tensor) -> None:  # noqa: ARG002
        """Ignore what the cache holds; from here on its caller has no need of what was appended."""
        self._ignored.add(_key(whole))
        self._highest = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count of what is made inside only what is read afterwards: the rest stays in registers."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def scratch(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return memory that a kernel uses and that counts while the caller holds it."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    def kernel(
        self,
        name: str,  # noqa: ARG002  (the recorder's interface)
        category: str,  # noqa: ARG002
        inputs: list[torch.Tensor],
        shapes: list[tuple[int, ...]],
        **numbers: Any,  # noqa: ARG002
    ) -> list[torch.Tensor]:
        """Allocate the results of a kernel."""
        outputs = [torch.empty(shape, dtype=inputs[0].dtype, device=inputs[0].device) for shape in shapes]
        self._count_node()
        return outputs

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ):
        result = func(*args, **(kwargs or {}))
        if self._paused:
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in outputs if not self._inside else ():
            self._follow(tensor)
        self._highest = max(self._highest, self._counted)
        name = func.overloadpacket.__name__
        has_inputs = any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs or {})))
        if outputs and has_inputs and not (func.is_view or name in LAYOUTS or name in FACTORIES):
            self._count_node()
        return result

    def _count_node(self) -> None:
        self._per_node.append(max(self._highest, self._counted))
        self._highest = 0

    @property
    def _counted(self) -> int:
        return self._live_bytes if self._encoding else self._live_bytes - self._encoder_bytes

    def _enter(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002
        self._encoding = True

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        self._encoding = False
        self._highest = 0

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = _key(tensor)
        if key in self._sizes or key in self._ignored:
            return
        self._sizes[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        if self._encoding:
            self._of_encoder.add(key)
            self._encoder_bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        size = self._sizes.pop(key, 0)
        self._live_bytes -= size
        if key in self._of_encoder:
            self._of_encoder.remove(key)
            self._encoder_bytes -= size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001  (the address, which identifies a storage)
