"""What one search teaches the next: multipliers of every device sequence, and bounds on the penalty."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dse.partition.families import Space
from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import (
    Multipliers,
    choice_costs,
    cut_bounds,
    layer_costs,
    prefixes_and_constants,
    stage_of_layers,
)
from dse.partition.starts import start_multipliers

KEEP_MULTIPLIERS = 200
N_STARTS = 3  # multipliers that every sequence starts with
ROUNDING_FRAC = 1e-12  # widens comparisons that would otherwise hang on the rounding of sums


@dataclass
class Memory:
    """Multipliers of every device sequence; they carry over to its other lanes and other penalty bounds."""

    of_sequence: dict[tuple[int, ...], list[Multipliers]] = field(default_factory=dict)

    def known(self, lane: Lane) -> list[Multipliers]:
        """Return the list of the lane's sequence, which starts with ``start_multipliers``."""
        if lane.devices not in self.of_sequence:
            self.of_sequence[lane.devices] = start_multipliers(lane)
        return self.of_sequence[lane.devices]

    def forget(self) -> None:
        """Keep the newest of every sequence, for the next search."""
        for known in self.of_sequence.values():
            del known[N_STARTS : max(N_STARTS, len(known) - KEEP_MULTIPLIERS)]


class QualityFilter:
    """Rules out cuts and choices that no assignment within a penalty bound can have.

    Made from a finished search for the least penalty: its multipliers bound the penalty of every cut,
    whatever the micro-batches. It settles bounds near the least penalty, where only few assignments are left.
    """

    def __init__(self, space: Space, memory: Memory) -> None:
        self.space = space
        self.memory = memory
        self.evaluated: dict[tuple[int, ...], tuple[Array, Array]] = {}

    def _bounds(self, devices: tuple[int, ...]) -> tuple[Lane, list[Multipliers], Array, Array]:
        (pair,) = self.space.factory.pairs()
        lane = self.space.lane(devices, *pair)
        known = self.memory.known(lane)
        if devices not in self.evaluated:
            self.evaluated[devices] = prefixes_and_constants(lane, known, None)
        return lane, known, *self.evaluated[devices]

    def reaches(self, lane: Lane, cuts: NDArray[np.int64], max_penalty: float) -> NDArray[np.bool_]:
        """Return which cuts (C, n + 1) may have an assignment within the bound."""
        _, _, prefixes, constants = self._bounds(lane.devices)
        possible = np.ones(len(cuts), dtype=bool)
        for prefix, constant in zip(prefixes, constants, strict=True):
            possible[possible] = cut_bounds(prefix, float(constant), cuts[possible]) <= max_penalty
        return possible

    def choices(self, lane: Lane, cut: NDArray[np.int64], max_penalty: float) -> NDArray[np.bool_]:
        """Return (L, K): the choices of a cut that some assignment within the bound may contain."""
        quality, known, prefixes, constants = self._bounds(lane.devices)
        bounds = [
            float(cut_bounds(p, float(c), cut[None])[0]) for p, c in zip(prefixes, constants, strict=True)
        ]
        best = int(np.argmax(bounds))
        at = stage_of_layers(cut), np.arange(lane.n_layers)
        # what the time lanes use may be dominated in quality and memory, so it is priced unmasked
        least = layer_costs(quality, known[best])[at].min(axis=1, keepdims=True)
        reduced = choice_costs(quality, known[best])[at] - least
        return reduced <= max_penalty - bounds[best] + ROUNDING_FRAC * abs(max_penalty)
