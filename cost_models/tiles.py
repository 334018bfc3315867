"""Tiles and waves of a matrix kernel: how much arithmetic a result costs once it is cut into tiles.

A kernel computes whole tiles of the result, a tile per core and wave, and may cut the contraction into parts
that run as further tiles. The best of a few tile shapes and cuts is taken. Each of them grows with either
size of the result, and so does their minimum: the model stays monotone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.work import Floats
from hardware_specs.kernels import Tiling

SHAPES = ((128, 128), (64, 64))
"""Tile shapes; finer choices (256 x 128, 128 x 64 ...) gained less than half a point of median error."""

SPLITS = (1, 4)
"""Parts of the contraction."""

_AREA = np.array([rows * columns for rows, columns in SHAPES for _ in SPLITS], dtype=np.float64)
_ROWS = np.array([rows for rows, _ in SHAPES for _ in SPLITS], dtype=np.float64)
_COLUMNS = np.array([columns for _, columns in SHAPES for _ in SPLITS], dtype=np.float64)
_SPLIT = np.array([split for _ in SHAPES for split in SPLITS], dtype=np.float64)
_HALVINGS = np.log2(_AREA[0] / _AREA)


def padded_elements(rows: Floats, columns: Floats, n_cores: int, tiling: Tiling) -> NDArray[np.float64]:
    """Return how many elements of the result the kernel pays for; the sizes broadcast.

    For a tile of area a, t tiles and s parts: ``a * (t s)^(1-w) * (cores * ceil(t s / cores))^w / s`` times
    the losses of small tiles and of cutting, w = ``wave_frac``; the least over shapes and cuts.
    """
    m, n = np.asarray(rows, dtype=np.float64), np.asarray(columns, dtype=np.float64)
    extra = (slice(None), *(None,) * max(m.ndim, n.ndim))
    n_tiles = np.ceil(m / _ROWS[extra]) * np.ceil(n / _COLUMNS[extra]) * _SPLIT[extra]
    paid = n_tiles
    if tiling.wave_frac > 0:
        waves = np.ceil(n_tiles / n_cores) * n_cores
        paid = n_tiles ** (1.0 - tiling.wave_frac) * waves**tiling.wave_frac
    least: NDArray[np.float64] = (paid * _loss(tiling)[extra]).min(axis=0)
    return least


@lru_cache(maxsize=1024)
def _loss(tiling: Tiling) -> NDArray[np.float64]:
    """Return what an element costs in each shape and cut, whole tiles apart."""
    return _AREA / _SPLIT * tiling.small_loss**_HALVINGS * np.where(_SPLIT > 1, 1.0 + tiling.split_loss, 1.0)
