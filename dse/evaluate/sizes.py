"""Sizes of a workload: micro-batches, and the context lengths that stand for a whole decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cost_models.work import Floats
from dse.evaluate.cost_table import Array
from dse.evaluate.lowering import Phase
from dse.graph.workload import Workload

PhaseSizes = tuple[Phase, Array, Floats, float]
"""(phase, batch (M,), query, mean context)."""

CONTEXT_POINTS = 16

LAST_POSITION = 1.0
"""New positions per sequence that reach the final norm and the output head in a prefill: serving needs the
logits of the last one alone, whereas a traced forward pass computes them all."""


def decode_contexts(workload: Workload, n_points: int = CONTEXT_POINTS) -> Array:
    """Return (C,) context lengths whose plain mean stands for the mean over all decode steps.

    The first token comes out of the prefill, so step j = 1 .. n - 1 attends to prompt + j positions. Few
    steps are all taken; else the centres of ``n_points`` equal parts, which is exact for costs that are
    linear in the context and off by O(1 / n_points^2) where they bend (windows, roofs). A single output
    token needs no decode step; its context is that of the step that would follow.
    """
    n_steps = max(1, workload.output_tokens - 1)
    if n_steps <= n_points:
        return workload.prompt_tokens + np.arange(1.0, n_steps + 1)
    centres = (np.arange(n_points, dtype=np.float64) + 0.5) * (n_steps / n_points)
    return workload.prompt_tokens + 0.5 + centres


@dataclass(frozen=True)
class Sizes:
    """Workload sizes: prompt length (of all or of each), (M,) micro-batches, (C,) decode contexts.

    ``n_chunks``: passes that a prefill takes (chunked prefill, arXiv 2308.16369), each of an equal part of
    the prompt; its attention sees all tokens so far.
    """

    prompt: Floats
    micro_batches: Array
    contexts: Array
    n_chunks: int = 1

    @property
    def chunk(self) -> Floats:
        """Tokens of a prompt in one pass."""
        return self.prompt / self.n_chunks

    @property
    def prefill_contexts(self) -> Array:
        """(n_chunks,) positions that the tokens of each pass may attend to."""
        return self.chunk * np.arange(1.0, self.n_chunks + 1)

    def of_phases(self) -> tuple[PhaseSizes, ...]:
        """(phase, batch (M,), query, mean context) of prefill and decode."""
        return (
            ("prefill", self.micro_batches, self.chunk, float(self.prefill_contexts.mean())),
            ("decode", self.micro_batches, 1.0, float(self.contexts.mean())),
        )

    def points(self) -> tuple[Array, Array, Array]:
        """(batch, query, mean context) of ``of_phases``, each over (P, M)."""
        return self._stacked(self.prefill_contexts.mean(), self.contexts.mean())

    def at_longest_contexts(self) -> tuple[Array, Array, Array]:
        """(batch, query, longest context) of prefill and decode, each over (P, M)."""
        return self._stacked(self.prompt, self.contexts.max())

    def _stacked(self, prefill_context: Floats, decode_context: Floats) -> tuple[Array, Array, Array]:
        batch, query, context = np.empty((3, 2, len(self.micro_batches)))
        batch[:] = self.micro_batches
        query[0], query[1] = self.chunk, 1.0
        context[0], context[1] = prefill_context, decode_context
        return batch, query, context
