"""Walk a model block by block over calibration tokens: one block's inputs in memory, never the whole model's.

Every block is run twice: once to see what its linears read, then, with its weights replaced, to make the
inputs of the next block, so that each block is calibrated behind the already quantized ones (GPTQ, arXiv
2210.17323).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel

BATCH_TOKENS = 2048
Progress = Callable[[int, int], None]


@dataclass
class InputStatistics:
    """What one linear reads, over all calibration tokens.

    Attributes:
        moments: (C, C) float32 sum of x^T x; absmax, abs_sum: (C,) float32; n_tokens: rows seen.
    """

    moments: Tensor
    absmax: Tensor
    abs_sum: Tensor
    n_tokens: int = 0

    @classmethod
    def empty(cls, channels: int, device: torch.device) -> InputStatistics:
        """Return statistics of no tokens."""
        return cls(
            torch.zeros(channels, channels, device=device),
            torch.zeros(channels, device=device),
            torch.zeros(channels, device=device),
        )

    def add(self, x: Tensor) -> None:
        """Take in x (..., C)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.moments.addmm_(rows.t(), rows)
        magnitude = rows.abs()
        self.absmax = torch.maximum(self.absmax, magnitude.amax(0))
        self.abs_sum += magnitude.sum(0)
        self.n_tokens += len(rows)

    @property
    def mean_abs(self) -> Tensor:
        """Mean magnitude of each channel (C,)."""
        return self.abs_sum / max(self.n_tokens, 1)

    @property
    def hessian(self) -> Tensor:
        """2 / N sum x^T x (C, C), GPTQ's H without damping."""
        return self.moments * (2.0 / max(self.n_tokens, 1))


BlockAction = Callable[[int, dict[str, InputStatistics]], Mapping[str, Tensor]]
"""(block, statistics of the inputs of its linears by path) -> weights to go on with, by path."""


def walk_blocks(
    model: EmulatedModel,
    paths: Sequence[Sequence[str]],
    ids: Tensor,
    action: BlockAction,
    progress: Progress | None = None,
) -> None:
    """Show ``action`` the input statistics of each block, and let its weights make the next inputs.

    Args:
        model: the model, which is back in its first state afterwards.
        paths: of the linears of each block that are looked at.
        ids: (n_sequences, length) calibration tokens.
        action: gets a block's statistics, returns replacements (which may be empty).
        progress: called with (blocks done, blocks in all).
    """
    layers = model.layers
    with torch.inference_mode():
        stream = HiddenStream.of(model, ids, BATCH_TOKENS)
        for index, layer in enumerate(layers):
            with observed(model, paths[index]) as statistics:
                outputs = stream.through(layer)
            replaced = action(index, statistics)
            if replaced:
                with swapped(model, replaced):
                    outputs = stream.through(layer)
            stream.hidden = outputs
            if progress is not None:
                progress(index + 1, len(layers))


@dataclass
class HiddenStream:
    """Hidden states of batches of sequences between two blocks.

    Attributes:
        ids: (n_sequences, length) of each batch; hidden: what the next block reads.
        options: the other arguments that all blocks get.
    """

    ids: list[Tensor]
    hidden: list[Tensor]
    options: list[dict[str, Any]]

    @classmethod
    def of(cls, model: EmulatedModel, ids: Tensor, batch_tokens: int) -> HiddenStream:
        """Return the stream before the first block, in batches of at least one sequence."""
        batches = list(ids.split(max(1, batch_tokens // ids.shape[1])))
        return cls(batches, *first_inputs(model, model.layers[0], batches))

    def through(self, layer: nn.Module) -> list[Tensor]:
        """Return what a block makes of the hidden states."""
        return [run_block(layer, x, rest) for x, rest in zip(self.hidden, self.options, strict=True)]

    def advance(self, layer: nn.Module) -> None:
        """Go through a block."""
        self.hidden = self.through(layer)


class _Reached(Exception):
    """Stops a forward pass at the first block."""


def first_inputs(
    model: EmulatedModel, layer: nn.Module, batches: list[Tensor]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return the inputs of the first block, and the other arguments that all blocks get."""
    hidden: list[Tensor] = []
    options: list[dict[str, Any]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden.append(args[0] if args else named.pop("hidden_states"))
        options.append(named)
        raise _Reached

    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for part in batches:
            try:
                model.logits(part)
            except _Reached:
                continue
    finally:
        hook.remove()
    return hidden, options


def run_block(layer: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the hidden states after a block."""
    output = layer(x, **options)
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def observed_inputs(model: EmulatedModel, paths: Sequence[str]) -> Iterator[dict[str, list[InputStatistics]]]:
    """Collect statistics by path; linears that read the very same tensor share one object."""
    found: dict[str, list[InputStatistics]] = {path: [] for path in paths}
    last: list[tuple[Tensor, InputStatistics]] = []

    def look(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if last and last[0][0] is x:
            entry = last[0][1]
        else:
            entry = found[path][0] if found[path] else InputStatistics.empty(x.shape[-1], x.device)
            entry.add(x)
            last[:] = [(x, entry)]
        if not found[path]:
            found[path].append(entry)

    hooks = [model.linear(path)[0].register_forward_pre_hook(partial(look, path)) for path in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _distinct(found: dict[str, list[InputStatistics]]) -> dict[str, InputStatistics]:
    return {path: entries[0] for path, entries in found.items() if entries}


@contextmanager
def observed(model: EmulatedModel, paths: Sequence[str]) -> Iterator[dict[str, InputStatistics]]:
    """Collect statistics by path; the mapping is filled when the context ends."""
    statistics: dict[str, InputStatistics] = {}
    with observed_inputs(model, paths) as found:
        yield statistics
    statistics |= _distinct(found)


@contextmanager
def swapped(model: EmulatedModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run with other weights, by path of a linear, inside the context."""
    originals = {path: model.linear(path)[0].weight for path in weights}
    try:
        for path, weight in weights.items():
            model.linear(path)[0].weight = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for path, original in originals.items():
            model.linear(path)[0].weight = original
