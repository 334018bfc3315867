"""The cache of the traced passes: it grows without bound, and tells the recorder what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from dse.graph.lifetimes import Lifetimes
from dse.graph.record import Recorder

UNBOUNDED: dict[type[Any], type[Any]] = {
    DynamicLayer: DynamicLayer,
    DynamicSlidingWindowLayer: DynamicLayer,
    LinearAttentionLayer: LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer: LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: LinearAttentionAndFullAttentionLayer,
}
"""For each kind of cache layer that can be traced, the same without a window."""


@dataclass(frozen=True)
class CacheLayout:
    """What one layer keeps.

    Attributes:
        attention: (heads, width) of the keys and of the values, None without attention.
        states: for each recurrent state, its shape without the batch, and the same of its convolution.
    """

    attention: tuple[tuple[int, int], tuple[int, int]] | None = None
    states: tuple[tuple[tuple[int, ...] | None, tuple[int, ...] | None], ...] = ()


class RecordingCache(Cache):
    """A cache with a layer of each of ``kinds``, values of ``UNBOUNDED``, on the meta device."""

    def __init__(self, recorder: Recorder | Lifetimes, kinds: tuple[type[Any], ...]) -> None:
        super().__init__(layers=[kind() for kind in kinds])
        self._recorder = recorder

    def beside(self) -> RecordingCache:
        """Return an empty cache of as many layers for what cross-attention keeps of an encoder."""
        return RecordingCache(self._recorder, (DynamicLayer,) * len(self.layers))

    def fill(self, layouts: tuple[CacheLayout, ...], batch: int, length: int) -> None:
        """Put ``length`` positions of ``batch`` sequences into every layer."""
        if length == 0:
            return
        for layer, layout in zip(self.layers, layouts, strict=True):
            if layout.attention is not None:
                keys, values = (_empty(batch, heads, length, width) for heads, width in layout.attention)
                DynamicLayer.update(layer, keys, values)
            for index, (state, convolution) in enumerate(layout.states):
                _keep_convolution(layer, index, None if convolution is None else _empty(batch, *convolution))
                _keep_state(layer, index, None if state is None else _empty(batch, *state))

    def layouts(self) -> tuple[CacheLayout, ...]:
        """Return what each layer keeps after a pass."""
        return tuple(_layout(layer) for layer in self.layers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return the whole keys and values of the layer."""
        with self._recorder.paused():
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self._recorder.note_cached("keys", key_states, keys)
        self._recorder.note_cached("values", value_states, values)
        return keys, values

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **settings: Any,  # noqa: ARG002
    ) -> torch.Tensor:
        """Keep the last inputs of a convolution; it gets the new ones alone, which is what it computes."""
        batch, channels, length = conv_states.shape
        with self._recorder.paused():
            kept = _empty(batch, channels, conv_kernel_size or length)
        _keep_convolution(self.layers[layer_idx], state_idx, kept)
        return conv_states

    def update_recurrent_state(
        self,
        recurrent_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        **settings: Any,  # noqa: ARG002
    ) -> torch.Tensor:
        """Keep a copy of the state of a scan."""
        with self._recorder.paused():
            kept = torch.empty_like(recurrent_states)
        _keep_state(self.layers[layer_idx], state_idx, kept)
        return recurrent_states


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _keep_convolution(layer: Any, index: int, kept: torch.Tensor | None) -> None:
    if kept is not None:
        layer.conv_states[index] = kept
        layer.conv_kernel_size[index] = kept.shape[-1]
        layer.is_conv_states_initialized[index] = True
        layer.has_previous_state[index] = True


def _keep_state(layer: Any, index: int, kept: torch.Tensor | None) -> None:
    if kept is not None:
        layer.recurrent_states[index] = kept
        layer.is_recurrent_states_initialized[index] = True
        layer.has_previous_state[index] = True


def _layout(layer: CacheLayerMixin | LinearAttentionCacheLayerMixin) -> CacheLayout:
    attention: Any = None
    states: Any = ()
    if isinstance(layer, DynamicLayer) and layer.keys is not None:
        attention = tuple((t.shape[1], t.shape[3]) for t in (layer.keys, layer.values))
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = tuple(
            (_tail(layer.recurrent_states[index]), _tail(layer.conv_states[index]))
            for index in range(layer.number_of_states)
        )
    return CacheLayout(attention, states)


def _tail(state: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if state is None else tuple(state.shape[1:])
