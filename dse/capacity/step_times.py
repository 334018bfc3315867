"""Times of engine iterations, tabulated from the cost model as a simulation asks for them.

Everything is exact at the points that a serving engine visits: every whole number of tokens and sequences,
every whole context, whole prompts and chunks at their regular places (``tabulate``). Straight lines join
neighbours between whole contexts (the mean of unlike sequences, off by less than 1e-4), and for chunks of
other sizes, which share an iteration with decode sequences, between prefixes that double (less than 1e-3).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from cost_models.work import Provenance
from dse.evaluate.cost_table import Array
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES
from dse.evaluate.step_costs import StagePricer
from hardware_specs.spec import Link

SEGMENT_TOKENS = 1024
CHUNK_BLOCK_TOKENS = 128
Iteration = tuple[list[float], float]
"""(seconds of each stage, joules of all)."""


@dataclass(frozen=True)
class DecodeSegment:
    """Decode attention of n sequences at ``SEGMENT_TOKENS`` consecutive mean contexts.

    Attributes:
        start: context of the first node.
        stage_s: per stage (SEGMENT_TOKENS + 1,) seconds at each node.
        sum_s, sum_j: (SEGMENT_TOKENS + 2,) running sums over the nodes before, all stages together.
    """

    start: int
    stage_s: list[array[float]]
    sum_s: array[float]
    sum_j: array[float]

    def run(self, context: float, n_steps: int) -> tuple[float, float]:
        """Return (seconds, joules) of consecutive steps from a mean context on, one position more each."""
        whole = int(context)
        part = context - whole
        i = whole - self.start
        j = i + n_steps
        seconds, joules = self.sum_s[j] - self.sum_s[i], self.sum_j[j] - self.sum_j[i]
        if part:
            seconds += part * (self.sum_s[j + 1] - self.sum_s[i + 1] - seconds)
            joules += part * (self.sum_j[j + 1] - self.sum_j[i + 1] - joules)
        return seconds, joules

    def stages(self, context: float) -> list[float]:
        """Return the seconds of one step on each stage."""
        whole = int(context)
        part = context - whole
        i = whole - self.start
        if not part:
            return [nodes[i] for nodes in self.stage_s]
        return [nodes[i] + part * (nodes[i + 1] - nodes[i]) for nodes in self.stage_s]

    def steps_left(self, context: float) -> int:
        """Return how many steps from a context on the segment holds."""
        return self.start + SEGMENT_TOKENS - int(context)


class StepTimes(Protocol):
    """What the simulator asks of a replica."""

    @property
    def n_stages(self) -> int:
        """Pipeline stages."""
        ...

    def tabulate(self, prompt_tokens: ArrayLike, chunk_tokens: int | None) -> None:
        """Prepare for prompts of these lengths, cut into chunks of ``chunk_tokens`` (None: whole)."""
        ...

    def segment(self, n_sequences: int, context: float) -> DecodeSegment:
        """Return decode attention around a mean context."""
        ...

    def decode(self, n_sequences: int) -> Iteration:
        """Return all but attention of a decode-only iteration."""
        ...

    def mixed(self, n_tokens: int, n_sequences: int) -> Iteration:
        """Return all but attention of an iteration that holds prompt chunks."""
        ...

    def chunk(self, query: int, context: int) -> Iteration:
        """Return the attention of one prompt chunk, without launches."""
        ...

    def launch_s(self) -> list[float]:
        """Return the attention launches of an iteration that holds chunks, per stage."""
        ...

    def hops_s(self, n_tokens: int) -> list[float]:
        """Return the transfers between the stages of an iteration of so many tokens."""
        ...


class TabulatedSteps:
    """Step times of a pipeline of stages. Tables grow as they are used; they hold no other state."""

    def __init__(self, stages: Sequence[StagePricer], links: Sequence[Link]) -> None:
        """Take the stages in order, and the links between neighbours."""
        self.stages = tuple(stages)
        self.links = tuple(links)
        self.hidden_bytes = SIXTEEN_BIT_BYTES * stages[0].model.graph.hidden_size
        self._decode: list[Iteration] = []
        self._mixed_s: list[list[float]] = [[] for _ in stages]
        self._mixed_j: list[float] = []
        self._head_s: list[float] = []
        self._head_j: list[float] = []
        self._segments: dict[tuple[int, int], DecodeSegment] = {}
        self._chunks: dict[tuple[int, int], Iteration] = {}
        self._grid = _ChunkGrid(self.stages)
        self._launch_s = [stage.chunk_launch_s for stage in stages]
        self._hops = [
            (link.latency_s, self.hidden_bytes / link.peer_bandwidth_bytes_per_s) for link in self.links
        ]

    @property
    def n_stages(self) -> int:
        """Pipeline stages."""
        return len(self.stages)

    @property
    def provenance(self) -> Provenance:
        """Of all stages: "mixed" where they differ."""
        kinds = {stage.provenance for stage in self.stages}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def prefill_costs(self, prompt_tokens: ArrayLike) -> Array:
        """Return (2, S, N) seconds and joules of whole prompts, one sequence in one iteration; exact."""
        n = np.asarray(prompt_tokens, dtype=np.float64)
        out = np.stack(
            [
                stage.tokens(n, "prefill") + stage.head(np.ones_like(n)) + stage.chunk_attention(n, n)
                for stage in self.stages
            ],
            axis=1,
        )
        out[0] += np.array(self._launch_s)[:, None]
        return out

    def decode_costs(self, sequences: ArrayLike, context: ArrayLike) -> Array:
        """Return (2, S, ...) seconds and joules of decode iterations; exact.

        Args:
            sequences: how many, of one new token each.
            context: their mean number of positions, the new one included; it broadcasts.
        """
        n, c = np.broadcast_arrays(
            np.asarray(sequences, dtype=np.float64), np.asarray(context, dtype=np.float64)
        )
        return np.stack(
            [
                stage.tokens(n, "decode") + stage.head(n) + stage.decode_attention(n, c)
                for stage in self.stages
            ],
            axis=1,
        )

    def hop_costs(self, n_tokens: ArrayLike) -> Array:
        """Return (2, S - 1, ...) seconds and joules of the transfers between stages."""
        moved = np.asarray(n_tokens, dtype=np.float64) * self.hidden_bytes
        if not self.links:
            return np.zeros((2, 0, *moved.shape))
        return np.stack(
            [
                np.stack([np.asarray(p2p_time_s(moved, link)), np.asarray(link_energy_j(moved, link))])
                for link in self.links
            ],
            axis=1,
        )

    def tabulate(self, prompt_tokens: ArrayLike, chunk_tokens: int | None) -> None:
        """Price the attention of all chunks that undisturbed prompts are cut into."""
        prompts = np.unique(np.asarray(prompt_tokens, dtype=np.int64))
        size = int(prompts.max()) if chunk_tokens is None else chunk_tokens
        ends = [prompts]
        ends += [np.arange(size, int(prompts.max()) + 1, size, dtype=np.int64)]
        context = np.unique(np.concatenate(ends))
        query = context - (context - 1) // size * size
        new = [
            (q, c)
            for q, c in zip(query.tolist(), context.tolist(), strict=True)
            if (q, c) not in self._chunks
        ]
        if not new:
            return
        q, c = np.array(new, dtype=np.float64).T
        costs = np.stack([stage.chunk_attention(q, c) for stage in self.stages])
        joules = costs[:, 1].sum(axis=0)
        for index, key in enumerate(new):
            self._chunks[key] = costs[:, 0, index].tolist(), float(joules[index])

    def segment(self, n_sequences: int, context: float) -> DecodeSegment:
        """Return decode attention of so many sequences around a mean context."""
        start = int(context) // SEGMENT_TOKENS * SEGMENT_TOKENS
        key = n_sequences, start
        found = self._segments.get(key)
        if found is None:
            # two nodes more than steps: a fraction looks one node ahead, and sums start before the first
            nodes = np.arange(start, start + SEGMENT_TOKENS + 2, dtype=np.float64)
            nodes[0] = max(nodes[0], 1.0)
            costs = np.stack([stage.decode_attention(float(n_sequences), nodes) for stage in self.stages])
            sums = np.zeros((2, len(nodes)))
            np.cumsum(costs.sum(axis=0)[:, :-1], axis=1, out=sums[:, 1:])
            found = DecodeSegment(
                start,
                [array("d", row[:-1].tobytes()) for row in np.ascontiguousarray(costs[:, 0])],
                array("d", sums[0].tobytes()),
                array("d", sums[1].tobytes()),
            )
            self._segments[key] = found
        return found

    def decode(self, n_sequences: int) -> Iteration:
        """Return all but attention of a decode-only iteration, transfers' energy included."""
        if n_sequences >= len(self._decode):
            n = _more(len(self._decode), n_sequences, 64)
            costs = np.stack([stage.tokens(n, "decode") + stage.head(n) for stage in self.stages])
            joules = costs[:, 1].sum(axis=0) + self.hop_costs(n)[1].sum(axis=0)
            self._decode += zip(costs[:, 0].T.tolist(), joules.tolist(), strict=True)
        return self._decode[n_sequences]

    def mixed(self, n_tokens: int, n_sequences: int) -> Iteration:
        """Return all but attention of an iteration with chunks, transfers' energy included."""
        if n_tokens >= len(self._mixed_j):
            n = _more(len(self._mixed_j), n_tokens, 1024)
            costs = np.stack([stage.tokens(n, "prefill") for stage in self.stages])
            for times, row in zip(self._mixed_s, costs[:, 0], strict=True):
                times.extend(row.tolist())
            self._mixed_j += (costs[:, 1].sum(axis=0) + self.hop_costs(n)[1].sum(axis=0)).tolist()
        if n_sequences >= len(self._head_s):
            head = self.stages[-1].head(_more(len(self._head_s), n_sequences, 64))
            self._head_s += head[0].tolist()
            self._head_j += head[1].tolist()
            self._head_s[0] = self._head_j[0] = 0.0
        seconds = [of_stage[n_tokens] for of_stage in self._mixed_s]
        seconds[-1] += self._head_s[n_sequences]
        return seconds, self._mixed_j[n_tokens] + self._head_j[n_sequences]

    def chunk(self, query: int, context: int) -> Iteration:
        """Return the attention of one prompt chunk, without launches: exact where tabulated."""
        found = self._chunks.get((query, context))
        return self._grid.at(query, context - query) if found is None else found

    def launch_s(self) -> list[float]:
        """Return the attention launches of an iteration that holds chunks, per stage."""
        return self._launch_s

    def hops_s(self, n_tokens: int) -> list[float]:
        """Return the transfers between the stages of an iteration of so many tokens."""
        return [latency_s + n_tokens * each_s for latency_s, each_s in self._hops]


def _more(known: int, wanted: int, least: int) -> Array:
    """Return the next entries of a table of counts from 0 on, to twice what is wanted; 0 is taken as 1."""
    return np.maximum(np.arange(known, max(2 * wanted, least), dtype=np.float64), 1.0)


class _ChunkGrid:
    """Chunk attention of any size and prefix, exact in the size, with lines between prefixes that double."""

    def __init__(self, stages: Sequence[StagePricer]) -> None:
        self.stages = tuple(stages)
        self.prefixes = [0, 64]
        self.blocks: dict[int, list[list[list[float]]]] = {}

    def at(self, query: int, prefix: int) -> Iteration:
        """Return the attention of a chunk behind a prefix."""
        if prefix > self.prefixes[-1]:
            while prefix > self.prefixes[-1]:
                self.prefixes.append(2 * self.prefixes[-1])
            self.blocks.clear()
        number, row = divmod(query, CHUNK_BLOCK_TOKENS)
        if number not in self.blocks:
            self.blocks[number] = self._block(number * CHUNK_BLOCK_TOKENS)
        nodes = self.blocks[number][row]
        j = min(bisect_right(self.prefixes, prefix), len(self.prefixes) - 1)
        low, high = self.prefixes[j - 1 : j + 1]
        v = (prefix - low) / (high - low)
        mixed = [a + v * (b - a) for a, b in zip(nodes[j - 1], nodes[j], strict=True)]
        return mixed[:-1], mixed[-1]

    def _block(self, first: int) -> list[list[list[float]]]:
        """Return (queries, prefixes, stages + 1): seconds of the stages, then joules of all."""
        queries = np.maximum(np.arange(first, first + CHUNK_BLOCK_TOKENS, dtype=np.float64), 1.0)[:, None]
        context = queries + np.array(self.prefixes, dtype=np.float64)
        costs = np.stack([stage.chunk_attention(queries, context) for stage in self.stages])
        parts = np.concatenate([costs[:, 0], costs[:, 1].sum(axis=0, keepdims=True)])
        nodes: list[list[list[float]]] = np.moveaxis(parts, 0, -1).tolist()
        return nodes
