"""How a cut is branched: the choices of one layer are shared between two nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dse.partition.lanes import Lane
from dse.partition.relax import Relaxed


def split_choices(
    lane: Lane, cut: NDArray[np.int64], usable: NDArray[np.bool_], relaxed: Relaxed
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks that share the choices of one layer between them.

    Interchangeable neighbours in a stage may be assumed to be sorted by penalty. So where one of them takes a
    low choice its predecessors do, and where it takes a high one its successors do: the split is one of the
    number of low choices among them.
    """
    top = np.zeros(lane.n_layers)
    np.maximum.at(top, relaxed.layer, relaxed.weight)
    layer = int(np.argmin(top))
    if top[layer] > 1 - 1e-7:
        layer = int(np.argmax(usable.sum(axis=1)))
    here = relaxed.layer == layer
    everything = np.arange(usable.shape[1])
    order = np.lexsort((everything, lane.memory[layer], lane.penalty[layer]))
    rank = np.argsort(order)
    by_penalty = order[usable[layer, order]]
    mean = float((relaxed.weight[here] * lane.penalty[layer, relaxed.choice[here]]).sum())
    n_low = int((lane.penalty[layer, by_penalty] <= mean).sum())
    n_low = min(max(n_low, 1), len(by_penalty) - 1)
    is_low = rank <= rank[by_penalty[n_low - 1]]
    first, end = _interchangeable(lane, cut, layer)
    inside = (relaxed.layer >= first) & (relaxed.layer < end)
    count = float(relaxed.weight[inside & is_low[relaxed.choice]].sum())
    at = first + min(int(count + 1e-9), end - first - 1)
    if not ((usable[at] & is_low).any() and (usable[at] & ~is_low).any()):
        at = layer
    low, high = usable.copy(), usable.copy()
    low[first : at + 1] &= is_low
    high[at:end] &= ~is_low
    return low, high


def _interchangeable(lane: Lane, cut: NDArray[np.int64], layer: int) -> tuple[int, int]:
    """Return the range of layers around a layer that are interchangeable with it in its stage."""
    stage = int(np.searchsorted(cut, layer, side="right")) - 1
    same = lane.same_as_next[stage]
    first, end = layer, layer + 1
    while first > cut[stage] and same[first - 1]:
        first -= 1
    while end < cut[stage + 1] and same[end - 1]:
        end += 1
    return first, end
