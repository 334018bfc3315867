"""Sharing devices and requests out to replicas, by dynamic programming over what is left of both.

Devices are counted per node. A column is a replica on so many devices of each node, with a score for every
number of requests it may get; scores of replicas are added or the largest counts. All numbers of requests are
done at once, so that a pass over a node of eight devices takes a millisecond and can be repeated whenever a
column is known better.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dse.partition.problem import Array

Counts = tuple[int, ...]
Taken = tuple[tuple[Counts, int], ...]
"""(devices, requests) of every replica."""


def bundles_of(whole: Counts) -> list[Counts]:
    """Return every number of devices of each node, fewest devices first."""
    return sorted(itertools.product(*(range(n + 1) for n in whole)), key=sum)


@dataclass
class Shares:
    """Best scores of so many devices and requests.

    Attributes:
        columns: (batch + 1) scores of a replica by its devices, by its requests; infinite where it cannot be.
        batch: requests altogether.
        n_replicas: exactly so many; None for any number.
        summed: whether scores add up.
    """

    columns: dict[Counts, Array]
    batch: int
    n_replicas: int | None
    summed: bool
    known: dict[tuple[Counts, int], Array] = field(default_factory=dict)

    def score(self, counts: Counts) -> float:
        """Return the least score of all requests on at most so many devices."""
        return float(self._best(counts, self._rounds)[self.batch])

    def taken(self, counts: Counts) -> Taken:
        """Return what the replicas of the least score take."""
        left, batch, n, found = counts, self.batch, self._rounds, []
        while batch:
            inside, scores = self._candidates(left, n)
            which, size = np.unravel_index(int(scores[:, batch].argmin()), scores[:, batch].shape)
            found.append((inside[which], int(size) + 1))
            left = tuple(a - b for a, b in zip(left, inside[which], strict=True))
            batch -= int(size) + 1
            n -= self.n_replicas is not None
        return tuple(found)

    @property
    def _rounds(self) -> int:
        return 1 if self.n_replicas is None else self.n_replicas

    def _best(self, counts: Counts, n: int) -> Array:
        """Return (batch + 1) the least scores of ``n`` replicas; of any number where that is free."""
        key = (counts, n)
        if key not in self.known:
            scores = np.full(self.batch + 1, np.inf)
            if n == 0 or self.n_replicas is None:
                scores[0] = 0.0 if self.summed else -np.inf
            if n > 0:
                inside, candidates = self._candidates(counts, n)
                if inside:
                    scores[1:] = candidates.min(axis=(0, 2))[1:]
            self.known[key] = scores
        return self.known[key]

    def _candidates(self, counts: Counts, n: int) -> tuple[list[Counts], Array]:
        """Return the first replica's possible devices, and (those, requests, its own - 1) the scores."""
        inside = [
            bundle for bundle in self.columns if all(a <= b for a, b in zip(bundle, counts, strict=True))
        ]
        if not inside:
            return inside, np.empty((0, self.batch + 1, self.batch))
        own = np.stack([self.columns[bundle][1:] for bundle in inside])[:, None, :]
        after = n if self.n_replicas is None else n - 1
        rest = np.full((len(inside), self.batch + 2), np.inf)
        for row, bundle in enumerate(inside):
            left = tuple(a - b for a, b in zip(counts, bundle, strict=True))
            rest[row, :-1] = self._best(left, after)
        requests = np.arange(self.batch + 1)[:, None] - np.arange(1, self.batch + 1)[None, :]
        later = rest[:, np.where(requests < 0, self.batch + 1, requests)]
        return inside, own + later if self.summed else np.maximum(own, later)


def within(whole: Counts, max_devices: int | None) -> list[Counts]:
    """Return the largest numbers of devices of each node that a limit on all of them allows."""
    if max_devices is None or sum(whole) <= max_devices:
        return [whole]
    return [counts for counts in bundles_of(whole) if sum(counts) == max_devices]


def splits(whole: Counts, max_devices: int | None) -> list[tuple[Counts, Counts]]:
    """Return every way to give some devices to one pool and all others to another."""
    return [
        (counts, tuple(a - b for a, b in zip(used, counts, strict=True)))
        for used in within(whole, max_devices)
        for counts in bundles_of(used)
        if 0 < sum(counts) < sum(used)
    ]


def in_proportion(total: int, rates: Sequence[float]) -> list[int]:
    """Return whole numbers of at least 1 that sum to ``total``, in proportion to the rates (largest rest)."""
    spare = total - len(rates)
    exact = [spare * rate / sum(rates) for rate in rates]
    parts = [int(x) for x in exact]
    by_rest = sorted(range(len(rates)), key=lambda i: parts[i] - exact[i])
    for i in by_rest[: spare - sum(parts)]:
        parts[i] += 1
    return [1 + part for part in parts]
