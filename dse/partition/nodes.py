"""What the search opens: blocks of cuts, boxes of cuts, single cuts, and boxes of whole families."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.partition.families import Family, FamilyBox, RelaxedFamily
from dse.partition.problem import Array
from dse.partition.relax import Relaxed
from dse.partition.relax_box import RelaxedBox


@dataclass
class Block:
    """Cuts of a lane with their bounds so far: ``n_seen`` multipliers are in them, ``source`` is the best."""

    lane: int
    cuts: NDArray[np.int64]
    bounds: Array
    source: NDArray[np.int64]
    n_seen: int = 0

    def take(self, index: NDArray[np.bool_]) -> None:
        """Keep only some of the cuts."""
        self.cuts, self.bounds, self.source = self.cuts[index], self.bounds[index], self.source[index]


@dataclass
class Box:
    """A box of cuts of a lane: lo, hi (n + 1) for every boundary, its relaxation once that is solved."""

    lane: int
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]
    relaxed: RelaxedBox | None = None


@dataclass
class CutNode:
    """One cut with some choices forbidden."""

    lane: int
    cut: NDArray[np.int64]
    usable: NDArray[np.bool_]
    relaxed: Relaxed
    depth: int


@dataclass
class FamilyNode:
    """A box of layer counts for all orders of the same devices, its relaxation once that is solved."""

    family: Family
    box: FamilyBox
    relaxed: RelaxedFamily | None = None


Item = Block | Box | CutNode | FamilyNode
