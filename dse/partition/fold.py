"""Folding the units of a layer into one choice per layer.

A choice is a combination of the units' precisions that no other combination beats on every device, at every
micro-batch, in memory and in penalty. A plan that uses a beaten combination can be improved by the one that
beats it, so the fold loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.memory import kv_cache_bytes
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array, CostTable
from dse.graph.workload import Workload

N_DIRECTIONS = 512


def units_of_layers(table: CostTable) -> list[list[int]]:
    """Return the indices of the units of every layer."""
    of_layer: list[list[int]] = [[] for _ in range(len(table.layer_fixed_bytes))]
    for u, unit in enumerate(table.units):
        of_layer[unit.layer].append(u)
    return of_layer


@dataclass(frozen=True)
class UnitCosts:
    """Costs of units, columns (C): times of device types (infinite: unsupported), joules, memory, penalty.

    ``values``: (U, Q, C); ``n_times`` of the columns are times: prefill (P, D types), then decode (D sizes,
    types). Energies, where they are asked for, come in the same order. ``n_memory`` columns of memory follow:
    one for each way in which the device types hold copies of the cache.
    """

    values: Array
    n_times: int
    n_memory: int

    @staticmethod
    def of(
        table: CostTable,
        penalty: Array,
        workload: Workload,
        sizes: tuple[tuple[int, ...], ...],
        with_energy: bool,
        kv_copies: Array,
    ) -> UnitCosts:
        """Collect the columns; ``kv_copies`` (R, U) are the ways in which the cache is held."""
        times, joules = [], []
        for phase, candidates in enumerate(sizes):
            for size in candidates:
                m = table.micro_batch_index(size)
                seconds = table.unit_time_s[phase, m]  # (D, U, Q)
                times.append(np.where(table.supported[:, None, :], seconds, np.inf))
                energy = table.unit_energy_j[phase, m]
                joules.append(np.where(table.supported[:, None, :], energy, np.inf))
        one = kv_cache_bytes(workload.batch, workload.total_context, 1.0)
        kv = one * table.unit_kv_bytes_per_token
        memory = [table.unit_weight_bytes + copies[:, None] * kv for copies in kv_copies]
        n_times = len(times) * len(table.devices)
        measured = np.stack(times + joules * with_energy).reshape(-1, *kv.shape)
        columns = np.concatenate([measured, np.stack(memory), penalty[None]])
        return UnitCosts(np.moveaxis(columns, 0, 2), n_times, len(memory))


@dataclass(frozen=True)
class Fold:
    """Choices of one layer: ``picks`` (K, units) precision indices, ``costs`` (K, C) sums over the units."""

    picks: NDArray[np.int64]
    costs: Array
    n_memory: int
    n_thinned: int

    @property
    def memory_bytes(self) -> Array:
        """(K, R) for each way to hold the cache."""
        return self.costs[:, -1 - self.n_memory : -1]

    @property
    def penalty(self) -> Array:
        """(K,) summed penalties."""
        return self.costs[:, -1]


def fold_layer(
    table: CostTable,
    costs: UnitCosts,
    layer: int,
    usable: NDArray[np.bool_],
    mixed_within_layer: bool,
    max_choices: int,
) -> Fold:
    """Combine the units of a layer one after another, dropping beaten combinations on the way."""
    units = units_of_layers(table)[layer]
    able = usable & table.supported.any(axis=0)
    picks, sums, n_thinned = np.zeros((1, 0), np.int64), np.zeros((1, costs.values.shape[2])), 0
    if not mixed_within_layer:
        qs = np.flatnonzero(able[units].all(axis=0))
        picks = np.repeat(qs[:, None], len(units), axis=1)
        sums = costs.values[units][:, qs].sum(axis=0)
        keep = _undominated(sums)
        picks, sums = picks[keep], sums[keep]
    else:
        for unit in units:
            qs = np.flatnonzero(able[unit])
            sums = (sums[:, None] + costs.values[unit, qs][None]).reshape(-1, sums.shape[1])
            picks = np.concatenate(
                [np.repeat(picks, len(qs), axis=0), np.tile(qs, len(picks))[:, None]], axis=1
            )
            # a combination must run as a whole on at least one device
            runs = np.isfinite(sums[:, : costs.n_times]).any(axis=1)
            picks, sums = picks[runs], sums[runs]
            keep = _undominated(sums)
            if len(keep) > max_choices:
                n_thinned += len(keep) - max_choices
                keep = keep[_spread(sums[keep], picks[keep], max_choices)]
            picks, sums = picks[keep], sums[keep]
    if len(picks) == 0:
        raise ConfigError(
            f"no device can run any allowed combination of precisions of layer {layer}",
            path="precisions",
        )
    return Fold(picks, sums, costs.n_memory, n_thinned)


def _undominated(sums: Array) -> NDArray[np.int64]:
    """Return indices of rows (N, C) that no other beats or equals in every column (of equals the first)."""
    alive = np.lexsort(sums.T[::-1])
    kept: list[int] = []
    while len(alive):
        head = alive[0]
        kept.append(int(head))
        alive = alive[~(sums[alive] >= sums[head]).all(axis=1)]
    return np.sort(np.array(kept, dtype=np.int64))


def _spread(sums: Array, picks: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Choose n rows that win in most directions of weights; uniform rows and column minima stay first."""
    finite = np.where(np.isfinite(sums), sums, np.nan)
    low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
    scaled = np.where(np.isfinite(sums), (sums - low) / np.where(high > low, high - low, 1.0), 2.0)
    directions = np.random.default_rng(0).dirichlet(np.full(sums.shape[1], 0.3), N_DIRECTIONS)
    wins = np.bincount((scaled @ directions.T).argmin(axis=0), minlength=len(sums)).astype(np.float64)
    wins[scaled.argmin(axis=0)] += N_DIRECTIONS
    wins[(picks == picks[:, :1]).all(axis=1)] += N_DIRECTIONS
    return np.sort(np.argsort(-wins, kind="stable")[:n])
