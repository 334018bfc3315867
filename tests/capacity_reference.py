"""Toy step times in closed form, and a plain step-by-step simulator of one replica to compare with."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dse.capacity.load import Load, RequestClass, ServiceLevel
from dse.capacity.replica import Batching, Replica, Role
from dse.capacity.step_times import SEGMENT_TOKENS, DecodeSegment, Iteration

DEFAULT_BATCHING = Batching()
LEVELS = (ServiceLevel("ttft", 90.0, 1.0), ServiceLevel("tpot", 99.0, 0.1), ServiceLevel("e2e", 50.0, 5.0))


@dataclass(frozen=True)
class ToySteps:
    """Linear times: a fixed one, and one per token, cached position and prompt pair; a joule per second.

    Attributes:
        n_stages: equal shares of the work.
        hop_s: between stages.
    """

    fixed_s: float = 0.01
    token_s: float = 0.001
    position_s: float = 1e-5
    pair_s: float = 1e-7
    n_stages: int = 1
    hop_s: float = 0.0

    def tabulate(self, prompt_tokens: ArrayLike, chunk_tokens: int | None) -> None:
        """Nothing to prepare."""

    def segment(self, n_sequences: int, context: float) -> DecodeSegment:
        start = int(context) // SEGMENT_TOKENS * SEGMENT_TOKENS
        nodes = np.arange(start, start + SEGMENT_TOKENS + 2) * (self.position_s * n_sequences)
        sums = array("d", np.concatenate([[0.0], np.cumsum(nodes)[:-1]]).tobytes())
        each = [array("d", (nodes / self.n_stages).tobytes()) for _ in range(self.n_stages)]
        return DecodeSegment(start, each, sums, sums)

    def decode(self, n_sequences: int) -> Iteration:
        return self.mixed(n_sequences, n_sequences)

    def mixed(self, n_tokens: int, n_sequences: int) -> Iteration:
        seconds = self.fixed_s + self.token_s * n_tokens
        return [seconds / self.n_stages] * self.n_stages, seconds

    def chunk(self, query: int, context: int) -> Iteration:
        seconds = self.pair_s * query * (context - query / 2)
        return [seconds / self.n_stages] * self.n_stages, seconds

    def launch_s(self) -> list[float]:
        return [0.0] * self.n_stages

    def hops_s(self, n_tokens: int) -> list[float]:
        return [self.hop_s] * (self.n_stages - 1)

    def iteration_s(self, chunks: list[tuple[int, int]], contexts: list[int]) -> float:
        """Return the same in plain words: (tokens, context) of chunks, contexts of decode sequences."""
        n_tokens = sum(tokens for tokens, _ in chunks) + len(contexts)
        return (
            self.fixed_s
            + self.token_s * n_tokens
            + self.position_s * sum(contexts)
            + sum(self.pair_s * q * (c - q / 2) for q, c in chunks)
        )


def toy_replica(
    steps: ToySteps,
    *,
    kv_tokens: int | None = None,
    batching: Batching = DEFAULT_BATCHING,
    role: Role = "both",
    max_context_tokens: int = 10_000_000,
) -> Replica:
    """A replica with toy times: 1 USD/h, 100 W static, a byte per cached position."""
    return Replica("toy", ("toy",), steps, kv_tokens, 1.0, max_context_tokens, batching, role, 1.0, 100.0)


def toy_load(
    arrival_s: ArrayLike, prompt_tokens: ArrayLike, output_tokens: ArrayLike, duration_s: float | None = None
) -> Load:
    """A load of one class with service levels."""
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    return Load(
        "toy",
        arrivals,
        np.broadcast_to(np.asarray(prompt_tokens), arrivals.shape),
        np.broadcast_to(np.asarray(output_tokens), arrivals.shape),
        np.zeros(len(arrivals), dtype=np.intp),
        (RequestClass("all", LEVELS),),
        float(arrivals[-1]) if duration_s is None else duration_s,
    )


def random_load(seed: int, n: int = 40, rate_per_s: float = 3.0, longest: int = 60) -> Load:
    """A small load of Poisson arrivals and uniform lengths."""
    rng = np.random.default_rng(seed)
    return toy_load(
        np.cumsum(rng.exponential(1.0 / rate_per_s, n)),
        rng.integers(1, longest, n),
        rng.integers(1, longest, n),
    )


@dataclass
class _Sequence:
    request: int
    total: int
    processed: int = 0
    cached: int = 0


class PlainSimulator:
    """One replica, one step at a time, every quantity recomputed from its definition."""

    def __init__(self, load: Load, replica: Replica) -> None:
        assert isinstance(replica.steps, ToySteps)
        self.load, self.steps, self.rules = load, replica.steps, replica.batching
        self.n_blocks = 10**12 if replica.n_blocks is None else replica.n_blocks
        self.watermark = 0 if replica.n_blocks is None else int(0.01 * replica.n_blocks)
        self.waiting: list[int] = []
        self.prefills: list[_Sequence] = []
        self.running: list[_Sequence] = []
        self.done = [0] * len(load)
        self.first_s = [np.nan] * len(load)
        self.finish_s = [np.nan] * len(load)
        self.preemptions = [0] * len(load)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.rules.block_tokens)

    @property
    def free(self) -> int:
        held = [self.blocks(s.total) for s in self.prefills] + [self.blocks(s.cached) for s in self.running]
        return self.n_blocks - sum(held)

    def run(self) -> None:
        now, upcoming, n = 0.0, 0, len(self.load)
        while upcoming < n or self.waiting or self.prefills or self.running:
            if not (self.waiting or self.prefills or self.running):
                now = max(now, float(self.load.arrival_s[upcoming]))
            while upcoming < n and self.load.arrival_s[upcoming] <= now:
                self.waiting.append(upcoming)
                upcoming += 1
            now = self.step(now)

    def step(self, now: float) -> float:
        if self.rules.chunked:
            self.make_room()
            decodes = list(self.running)
            for sequence in decodes:
                sequence.cached += 1
            chunks = self.choose(self.rules.batch_tokens - len(self.running))
        else:
            chunks = self.choose(self.rules.batch_tokens)
            if not chunks:
                self.make_room()
                if not self.running:
                    chunks = self.choose(self.rules.batch_tokens)
            decodes = [] if chunks else list(self.running)
            for sequence in decodes:
                sequence.cached += 1
        assert self.free >= 0
        now += self.steps.iteration_s(
            [(tokens, s.processed + tokens) for s, tokens in chunks], [s.cached for s in decodes]
        )
        for sequence in decodes:
            self.emit(sequence, now)
        for sequence, tokens in chunks:
            sequence.processed += tokens
            if sequence.processed == sequence.total:
                self.prefills.remove(sequence)
                sequence.cached = sequence.total
                self.running.append(sequence)
                self.emit(sequence, now)
        return now

    def emit(self, sequence: _Sequence, now: float) -> None:
        request = sequence.request
        self.done[request] += 1
        if self.done[request] == 1:
            self.first_s[request] = now
        if self.done[request] == self.load.output_tokens[request]:
            self.finish_s[request] = now
            self.running.remove(sequence)

    def make_room(self) -> None:
        while self.running:
            wanted = sum(self.blocks(s.cached + 1) - self.blocks(s.cached) for s in self.running)
            if wanted <= self.free:
                return
            gone = (self.prefills or self.running).pop()
            self.preemptions[gone.request] += 1
            self.waiting.insert(0, gone.request)

    def choose(self, budget: int) -> list[tuple[_Sequence, int]]:
        chunks = []
        for sequence in self.prefills:
            tokens = min(budget, sequence.total - sequence.processed)
            if tokens > 0:
                chunks.append((sequence, tokens))
                budget -= tokens
        while self.waiting and budget > 0:
            request = self.waiting[0]
            total = int(self.load.prompt_tokens[request]) + self.done[request]
            size = len(self.running) + len(self.prefills)
            if not self.rules.chunked and chunks and total > budget:
                break
            if size >= self.rules.max_sequences:
                break
            if self.blocks(total) + (self.watermark if size else 0) > self.free:
                break
            self.waiting.pop(0)
            sequence = _Sequence(request, total)
            self.prefills.append(sequence)
            tokens = min(budget, total) if self.rules.chunked else total
            chunks.append((sequence, tokens))
            budget -= tokens
        return chunks
