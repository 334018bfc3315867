"""LLM-PQ's latency model: ordinary least squares on workload sizes (arXiv 2403.01136, cost_model/lat.py).

One model per device, layer shape, precision and phase. Prefill features of batch b and prompt s: b, s, b s,
b s^2, 1; decode features with i cached positions: b (1 + i), b, i, 1. Nothing keeps a prediction positive; it
is refused where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Phase = Literal["prefill", "decode"]
Array = NDArray[np.float64]
N_FEATURES = {"prefill": 5, "decode": 4}


def features(phase: Phase, batch: ArrayLike, tokens: ArrayLike) -> Array:
    """Return (..., F) features; ``tokens`` is the prompt length, or the cached positions of a decode step."""
    b, s = np.broadcast_arrays(np.asarray(batch, dtype=np.float64), np.asarray(tokens, dtype=np.float64))
    one = np.ones_like(b)
    if phase == "prefill":
        return np.stack([b, s, b * s, b * s**2, one], axis=-1)
    return np.stack([b * (1.0 + s), b, s, one], axis=-1)


@dataclass(frozen=True)
class LinearLatency:
    """Fitted coefficients of one phase, (F,) in seconds per feature."""

    phase: Phase
    coefficients: tuple[float, ...]

    @classmethod
    def fit(cls, phase: Phase, batch: ArrayLike, tokens: ArrayLike, seconds: ArrayLike) -> LinearLatency:
        """Fit by least squares to (N,) measurements; the least-norm solution where they leave it open."""
        matrix = features(phase, batch, tokens)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1.0)
        found, *_ = np.linalg.lstsq(matrix / scale, np.asarray(seconds, dtype=np.float64), rcond=None)
        return cls(phase, tuple((found / scale).tolist()))

    def __call__(self, batch: ArrayLike, tokens: ArrayLike) -> Array:
        """Return the predicted seconds, which may be negative far from the measurements."""
        return np.asarray(features(self.phase, batch, tokens) @ np.array(self.coefficients))
