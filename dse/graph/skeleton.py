"""What a folded model is: its module with one layer of each kind, and where each layer stands for others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from dse.graph.fit import Probe
from dse.graph.recording_cache import CacheLayout


@dataclass(frozen=True)
class Stack:
    """A list of transformer blocks of which one of each kind is kept, and a second one of the first kind.

    The second one reads what a layer before it made; where the model has one layer only, there is none.

    Attributes:
        prefix: module path of its layers, with ``{layer}`` for the index.
        kinds: for each kind, its layers in the full stack.
        windows: for each kind, its sliding window or None.
    """

    prefix: str
    kinds: tuple[tuple[int, ...], ...]
    windows: tuple[int | None, ...]

    @property
    def kind_of(self) -> tuple[int, ...]:
        """Kind of each kept layer."""
        once = tuple(range(len(self.kinds)))
        return once if self.kinds == ((0,),) else (*once, 0)

    @property
    def n_layers(self) -> int:
        """Layers of the full stack."""
        return sum(map(len, self.kinds))


@dataclass(frozen=True)
class Part:
    """A kept layer: its stack, its index among the layers kept there, and its kind."""

    stack: int
    index: int
    kind: int


@dataclass(frozen=True)
class Skeleton:
    """A model with one layer of each kind.

    Attributes:
        model: the reduced module, on the meta device in bfloat16.
        stacks: its lists of transformer blocks: encoder and decoder of an encoder-decoder, else one.
        parameters: elements of all parameters of the full model, shared ones once.
        cache_argument: name of the forward argument that takes the cache, None for encoders.
        cache_kinds: for each kept layer of the last stack, the class of its layer in the cache.
        layouts: for each kept layer of the last stack, what it keeps; known after a first pass.
        probe: sizes at which the module is run, and the polynomials that they determine.
        source_tokens: of an encoder-decoder, the length of the encoder's input, else None; ``encoder``: the
            module path of its encoder.
    """

    model: nn.Module
    stacks: tuple[Stack, ...]
    parameters: int
    cache_argument: str | None
    cache_kinds: tuple[type[Any], ...]
    probe: Probe
    layouts: tuple[CacheLayout, ...] = ()
    source_tokens: int | None = None
    encoder: str = ""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The kept layers of all stacks, in order; elsewhere a part is an index into these."""
        return tuple(
            Part(number, index, kind)
            for number, stack in enumerate(self.stacks)
            for index, kind in enumerate(stack.kind_of)
        )

    def prefix(self, part: int) -> str:
        """Return the module path of a kept layer."""
        place = self.parts[part]
        return self.stacks[place.stack].prefix.format(layer=place.index)

    def original_prefix(self, part: int) -> str:
        """Return the module path, in the full model, of the first layer that equals a kept one."""
        place = self.parts[part]
        stack = self.stacks[place.stack]
        return stack.prefix.format(layer=stack.kinds[place.kind][0])

    def window(self, part: int) -> int | None:
        """Return the sliding window of a kept layer."""
        place = self.parts[part]
        return self.stacks[place.stack].windows[place.kind]

    def layout(self, part: int) -> CacheLayout:
        """Return what a kept layer keeps in the cache."""
        place = self.parts[part]
        return self.layouts[place.index] if place.stack == len(self.stacks) - 1 else CacheLayout()

    def template(self, stack: int, kind: int) -> int:
        """Return the kept layer that stands for a kind: the last one of it, which reads a layer before it."""
        return max(i for i, part in enumerate(self.parts) if (part.stack, part.kind) == (stack, kind))

    @property
    def config(self) -> Any:
        """The text configuration of the reduced module."""
        return self.model.config.get_text_config()
