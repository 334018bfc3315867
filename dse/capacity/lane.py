"""The sequences that an engine runs together, and what they hold of the paged cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dse.capacity.engine import Engine


@dataclass(slots=True)
class Requests:
    """State of all requests, by index."""

    prompt: list[int]
    output: list[int]
    done: list[int]
    first_s: list[float]
    finish_s: list[float]
    preemptions: list[int]
    moved: list[bool]
    replica: list[int]


@dataclass(slots=True, eq=False)
class Lane:
    """A micro-batch: sequences that run together.

    Attributes:
        joined: sequence -> (decode step and cached positions when it joined), in order of admission.
        cached: positions of all sequences; step: decode steps done; residues: sequences by (cached - step)
            modulo the block size; ends: heap of (step of the last token, sequence).
        prefills: [request, tokens done, tokens in all]; chunks: (entry, tokens) of this iteration.
        reserved: sequences whose caches are on the way; arrived: those that are there.
        busy: whether an iteration is under way: ``n_steps`` decode steps from ``start_s`` to ``end_s``, which
            keep the stages busy for ``stage_s`` and began with ``free_blocks``; committed: whether their
            blocks are taken.
    """

    engine: Engine
    residues: list[int]
    joined: dict[int, tuple[int, int]] = field(default_factory=dict)
    cached: int = 0
    step: int = 0
    ends: list[tuple[int, int]] = field(default_factory=list)
    prefills: list[list[int]] = field(default_factory=list)
    chunks: list[tuple[list[int], int]] = field(default_factory=list)
    reserved: int = 0
    arrived: list[int] = field(default_factory=list)
    busy: bool = False
    n_steps: int = 0
    start_s: float = 0.0
    end_s: float = 0.0
    joules: float = 0.0
    stage_s: float = 0.0
    free_blocks: int = 0
    version: int = 0
    committed: bool = True

    @property
    def size(self) -> int:
        """Sequences of the lane, in whatever state."""
        return len(self.joined) + len(self.prefills) + self.reserved + len(self.arrived)

    def join(self, request: int, cached: int) -> None:
        """Let a sequence decode from the next step on."""
        self.joined[request] = self.step, cached
        self.cached += cached
        self.residues[(cached - self.step) % len(self.residues)] += 1
        heappush(self.ends, (self.last_step(request), request))

    def last_step(self, request: int) -> int:
        """Return the number of the step that ends a sequence."""
        requests = self.engine.requests
        return self.joined[request][0] + requests.output[request] - requests.done[request]

    def part(self, request: int) -> tuple[int, int]:
        """Take a sequence out; return how many steps it has done, and the blocks that it held."""
        step, cached = self.joined.pop(request)
        n_steps = self.step - step
        self.cached -= cached + n_steps
        self.residues[(cached - step) % len(self.residues)] -= 1
        return n_steps, -(-(cached + n_steps) // len(self.residues))

    def next_end(self) -> int:
        """Return the number of the step that ends a sequence first."""
        ends, joined = self.ends, self.joined
        while ends[0][1] not in joined or self.last_step(ends[0][1]) != ends[0][0]:
            heappop(ends)  # of a sequence that has been preempted
        return ends[0][0]

    def ended(self) -> list[int]:
        """Return the sequences whose last step is done, in order."""
        ends, found = self.ends, []
        while ends and ends[0][0] <= self.step:
            step, request = heappop(ends)
            if request in self.joined and self.last_step(request) == step and request not in found:
                found.append(request)
        return found

    def blocks_for(self, n_steps: int) -> int:
        """Return the blocks that the next steps add."""
        residues = self.residues
        whole, rest = divmod(n_steps, len(residues))
        total = whole * len(self.joined)
        for j in range(rest):
            total += residues[(-self.step - j) % len(residues)]
        return total

    def affordable(self, most: int, free_blocks: int) -> int:
        """Return how many of the next steps the free blocks suffice for, at least 1."""
        if self.blocks_for(most) <= free_blocks:
            return most
        low, high = 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.blocks_for(middle) <= free_blocks:
                low = middle
            else:
                high = middle
        return low
