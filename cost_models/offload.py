"""Weights, experts and caches outside the main memory: what crosses a slower link, and what it delays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.work import Floats


@dataclass(frozen=True)
class CacheLevel:
    """One level of a hierarchy: what share of requests it answers, and how fast.

    Attributes:
        hit_frac: of the requests that reach this level.
        bandwidth_bytes_per_s, latency_s: of the way from here to the compute units.
    """

    hit_frac: float
    bandwidth_bytes_per_s: float
    latency_s: float = 0.0


def hierarchy_s(n_requests: Floats, request_bytes: float, levels: Sequence[CacheLevel]) -> Floats:
    """Return the expected time to fetch equal parts (experts, neurons) through a hierarchy of caches.

    A request goes down until a level answers: ``n b sum_i p_i (latency_i + bytes / bandwidth_i)`` with
    ``p_i = hit_i prod_{j < i} (1 - hit_j)``. The last level must answer everything.
    """
    if not levels or levels[-1].hit_frac < 1.0:
        raise ValueError("the last level must answer every request (hit_frac 1)")
    total: Floats = np.zeros(np.shape(n_requests))
    reach = 1.0
    for level in levels:
        each_s = level.latency_s + request_bytes / level.bandwidth_bytes_per_s
        total = total + n_requests * (reach * level.hit_frac * each_s)
        reach *= 1.0 - level.hit_frac
    return total


def overlapped_s(compute_s: Floats, transfer_s: Floats, overlap_frac: float = 1.0) -> Floats:
    """Return the time of work and of transfers of which a share may run beside it.

    ``max(compute, phi transfer) + (1 - phi) transfer``: all of it in a row for phi = 0, the longer of both
    for phi = 1.
    """
    return np.maximum(compute_s, overlap_frac * transfer_s) + (1.0 - overlap_frac) * transfer_s


def streamed_layers_s(
    layer_compute_s: Sequence[float], layer_transfer_s: Sequence[float], n_buffers: int = 2
) -> float:
    """Return the time of a pass over layers whose weights are fetched while others compute.

    The link fetches layers in order; layer i waits for its weights, and its fetch waits for a free buffer,
    which layer i - ``n_buffers`` leaves when it has computed. One buffer cannot overlap anything.
    """
    fetched_s, computed_s = 0.0, [0.0] * len(layer_compute_s)
    for i, (compute_s, transfer_s) in enumerate(zip(layer_compute_s, layer_transfer_s, strict=True)):
        free_s = computed_s[i - n_buffers] if i >= n_buffers else 0.0
        fetched_s = max(fetched_s, free_s) + transfer_s
        before_s = computed_s[i - 1] if i else 0.0
        computed_s[i] = max(before_s, fetched_s) + compute_s
    return computed_s[-1] if computed_s else 0.0


def chained_bandwidth_bytes_per_s(*hops: float) -> float:
    """Return the bandwidth of a path whose hops work at the same time (SSD to host to device): the least."""
    return min(hops)
