"""A stand-in for an accelerator on a machine without one: tensors with values that say they are elsewhere.

``Elsewhere`` wraps a tensor of the processor. Inside ``other_device()`` whatever is made on that device, or
moved to it, becomes one, all arithmetic happens on the wrapped tensors, and an operation that mixes the two
devices fails as it does on hardware: only zero-dimensional tensors and indices may come from the processor.
Unlike torch's fake tensors these have values, so that code which looks at them runs, and results can be
compared to the last bit. Kernels of real devices, their rounding and their missing data types are not
emulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
OTHER = torch.device("lazy", 0)  # the one type that needs neither hardware nor a build of torch for it
_ACROSS = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.copy}
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class Elsewhere(Tensor):
    """A tensor that says that it is on ``OTHER``; ``inner`` holds its values on the processor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        with torch.inference_mode(False):  # torch lets normal tensors only be views of normal ones
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=OTHER,
            )
        made.inner = inner
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Elsewhere) -> None:  # the base class would replace everything but the values
        self.inner = value.inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Have another device inside the context; attention is computed by plain products there."""
    before = torch._C._only_lift_cpu_tensors()
    with sdpa_kernel(SDPBackend.MATH), _Mode():
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=...) is seen
        try:
            yield OTHER
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    packet = func.overloadpacket
    if packet is torch.ops.aten._fused_sdp_choice:
        return SDPBackend.MATH.value
    given: list[Tensor] = []
    devices: list[torch.device] = []
    inner_args = _inner(args, given, devices)
    inner_kwargs = {key: _inner(value, given, devices) for key, value in kwargs.items()}
    elsewhere = any(isinstance(x, Elsewhere) for x in given)
    if elsewhere and packet not in _ACROSS:
        checked = given[:1] if packet in _INDEXING else given
        if any(not isinstance(x, Elsewhere) and x.dim() > 0 for x in checked):
            shapes = [tuple(x.shape) for x in given]
            raise RuntimeError(f"{func} found tensors on two devices, of shapes {shapes}")
    out = func(*inner_args, **inner_kwargs)
    place = devices[0] if devices else OTHER if elsewhere else CPU
    written = [args[at] if at < len(args) else kwargs[name] for at, name in _written(func)]
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return _placed(out) if place == OTHER else out


def _inner(x: Any, given: list[Tensor], devices: list[torch.device]) -> Any:
    """Return an argument as the processor sees it; note its tensors and devices."""
    if isinstance(x, Tensor):
        given.append(x)
        return x.inner if isinstance(x, Elsewhere) else x
    if isinstance(x, (list, tuple)):
        return [_inner(part, given, devices) for part in x]
    if isinstance(x, torch.device):
        devices.append(x)
        return CPU if x == OTHER else x
    return x


def _placed(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_placed(part) for part in x) if type(x) in (list, tuple) else tuple(map(_placed, x))
    return Elsewhere(x) if isinstance(x, Tensor) else x


@lru_cache(maxsize=1024)
def _written(func: Any) -> list[tuple[int, str]]:
    """Return the arguments that an operation in place (or with ``out``) returns, none for any other."""
    names = {
        name
        for value in func._schema.returns
        if value.alias_info is not None and value.alias_info.is_write
        for name in value.alias_info.before_set
    }
    return [
        (at, argument.name)
        for at, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.before_set & names
    ]
