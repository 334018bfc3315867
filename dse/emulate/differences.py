"""Products of differences: the linears behind a changed one in bfloat16, at next to no loss.

A linear is affine, so W x + b = y0 + W (x - x0) for the input x0 and the output y0 of the unchanged model. y0
is float32, and W (x - x0) is a product in bfloat16: its rounding, 2^-9 of each factor, is relative to the
change. Rounding x itself would add noise as large as what weights of 5 or 6 bits do; here the effect of any
precision is off by the same few thousandths. All else (norms, attention, activations) stays in float32.

For linears that read whole sequences (batch, length, channels); others compute as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel

HEAD_ROWS = 256  # logits at a time: more would leave the cache before they are used


@dataclass(frozen=True)
class LinearPass:
    """What a linear read (length, inputs) and gave (length, outputs) in the pass of one sequence."""

    read: Tensor
    gave: Tensor


Passes = Mapping[str, LinearPass]  # by path


class Differences:
    """The linears of a float32 model with a copy of their weights in bfloat16, which is made when needed."""

    def __init__(self, model: EmulatedModel) -> None:
        """Find the linears; nothing is copied yet."""
        self._model = model
        self._linears: dict[str, Any] = {
            path: module
            for path, module in model.module.named_modules()
            if type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        }

    @cached_property
    def head(self) -> str | None:
        """Path of the linear whose output is the logits; None where something comes after it."""
        module = self._model.module.get_output_embeddings()
        path = next((path for path, linear in self._linears.items() if linear is module), None)
        if path is None:
            return None
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda _, __, logits: seen.append(logits))
        try:
            logits = self._model.logits(torch.zeros((1, 1), dtype=torch.long, device=self._model.device))
        finally:
            hook.remove()
        return path if seen and torch.equal(seen[-1], logits) else None

    @contextmanager
    def recorded(self) -> Iterator[dict[str, LinearPass]]:
        """Collect what each linear does in the pass of one sequence inside the context; no logits."""
        passes: dict[str, LinearPass] = {}
        with self._headless([]), ExitStack() as undo:
            for path, linear in self._linears.items():
                undo.callback(linear.register_forward_hook(partial(_record, passes, path)).remove)
            yield passes

    @contextmanager
    def applied(self, passes: Passes, changed: Collection[str]) -> Iterator[list[Tensor]]:
        """Let the linears of batches of one sequence compute from its unchanged pass.

        Args:
            passes: from ``recorded``; linears without one compute as they are, and so do those at the paths
            changed: whose weights are not the model's own.

        Yields:
            A list that gets the input of the head (batch, length, inputs), see ``logit_changes``.
        """
        read_by_head: list[Tensor] = []
        with self._headless(read_by_head), ExitStack() as undo:
            for path in passes.keys() - {self.head, *changed}:
                linear = self._linears[path]
                linear.forward = partial(_forward, linear, self._weights[path], passes[path])
                undo.callback(linear.__dict__.pop, "forward", None)
            yield read_by_head

    def logit_changes(self, read: Tensor, passes: Passes) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, changes of their logits (batch, positions, vocabulary) in bfloat16).

        Changes are up to a constant for each position, which no softmax sees.

        Args:
            read: by the head, (batch, length, inputs); passes: of the unchanged model.
        """
        assert self.head is not None
        change = _change(read, passes[self.head])
        n_positions = max(1, HEAD_ROWS // len(read))
        for start in range(0, read.shape[1], n_positions):
            part = slice(start, min(start + n_positions, read.shape[1]))
            rows = change[:, part]
            yield part, (rows.flatten(0, 1) @ self._weights[self.head]).unflatten(0, rows.shape[:2])

    @contextmanager
    def _headless(self, read: list[Tensor]) -> Iterator[None]:
        assert self.head is not None
        head = self._linears[self.head]
        head.forward = partial(_keep, read)
        try:
            yield
        finally:
            head.__dict__.pop("forward", None)

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """(inputs, outputs) each; the head's without the mean over its words, which adds a constant."""
        weights = {}
        for path, linear in self._linears.items():
            weight = linear.weight.t() if type(linear) is nn.Linear else linear.weight
            if path == self.head:
                weight = weight - weight.mean(1, keepdim=True)
            weights[path] = weight.bfloat16()
        return weights


def _change(x: Tensor, known: LinearPass) -> Tensor:
    return torch.sub(x, known.read).bfloat16()


def _forward(linear: Any, weight: Tensor, known: LinearPass, x: Tensor) -> Tensor:
    if x.dim() != 3 or x.shape[1:] != known.read.shape:
        whole: Tensor = type(linear).forward(linear, x)
        return whole
    return known.gave + _change(x, known) @ weight


def _keep(read: list[Tensor], x: Tensor) -> Tensor:
    """Stand in for the head: note its input, give a single logit."""
    read.append(x)
    return x[..., :1]


def _record(passes: dict[str, LinearPass], path: str, _: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
    x = args[0]
    if x.dim() == 3 and len(x) == 1:
        passes[path] = LinearPass(x[0], y[0])
