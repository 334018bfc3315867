"""Quantized weights in memory, made once per (tensor, format) and shared by all candidates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dse.formats.precision import NumberFormat
from dse.quantize.fake import fake_quantize


@dataclass
class StoreCounts:
    """What the store did: ``made`` tensors quantized, ``reused`` handed out again, ``dropped`` for space."""

    made: int = 0
    reused: int = 0
    dropped: int = 0


class WeightStore:
    """A bounded store of fake-quantized weights; the least recently used go first.

    A tensor that a model still holds stays alive when it is dropped here, so dropping is always safe.
    """

    def __init__(self, capacity_bytes: float) -> None:
        """Create an empty store that keeps at most ``capacity_bytes`` of tensors."""
        self.capacity_bytes = capacity_bytes
        self.counts = StoreCounts()
        self._entries: OrderedDict[tuple[str, str], nn.Parameter] = OrderedDict()
        self._size_bytes = 0
        self._pinned: dict[tuple[str, str], nn.Parameter] = {}

    def clear(self) -> None:
        """Forget everything, pinned values too."""
        self._entries.clear()
        self._pinned.clear()
        self._size_bytes = 0

    def pin(self, weights: Mapping[tuple[str, str], Tensor]) -> None:
        """Hand out these values for (path, format name) from now on; they are never dropped for space."""
        for key, weight in weights.items():
            self._pinned[key] = nn.Parameter(weight, requires_grad=False)

    def is_pinned(self, path: str, fmt: NumberFormat) -> bool:
        """Whether values were given for this weight."""
        return (path, fmt.name) in self._pinned

    def get(self, path: str, weight: Tensor, fmt: NumberFormat, *, inputs_first: bool) -> nn.Parameter:
        """Return ``weight`` rounded to ``fmt``, in its own dtype.

        Args:
            path: the weight's module path, which names it in this store.
            weight: (outputs, inputs), or (inputs, outputs) where ``inputs_first`` (GPT-2's layout).
            fmt: the format; scales run along the inputs.
            inputs_first: whether the first axis of ``weight`` is the inputs.
        """
        key = (path, fmt.name)
        if key in self._pinned:
            self.counts.reused += 1
            return self._pinned[key]
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self.counts.reused += 1
            return entry
        with torch.no_grad():
            rounded = (
                fake_quantize(weight.t(), fmt).t().contiguous()
                if inputs_first
                else fake_quantize(weight, fmt)
            )
        entry = nn.Parameter(rounded, requires_grad=False)
        self.counts.made += 1
        self._entries[key] = entry
        self._size_bytes += entry.nbytes
        while self._size_bytes > self.capacity_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._size_bytes -= dropped.nbytes
            self.counts.dropped += 1
        return entry
