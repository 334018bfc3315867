"""Transfers between devices: point to point, and all-reduce as the better of one-shot and ring.

Alpha-beta (Hockney) models: a fixed latency and a time per byte. The all-reduce starts are fits
of measured NCCL and one-shot kernels; the efficiencies are round numbers near measured ones, not fits.
"""

from __future__ import annotations

import numpy as np

from cost_models.work import Floats
from hardware_specs.spec import Link

ONE_SHOT_START_S = 2.8e-6
"""Start of a one-shot all-reduce kernel (H100 2.8, A100 3.9, B200 4.6 microseconds)."""

RING_START_S = 5.4e-6
"""Start of a ring all-reduce (H100 5.4, A100 9.9 microseconds)."""

ONE_SHOT_EFF_FRAC = 0.6
"""Share of the link that a one-shot kernel reaches (A100 0.56, H100 0.64)."""

RING_EFF_FRAC = 0.8
"""Share of the link that a large ring reaches. Bus bandwidth measured at 67 MB on 8 devices: A100 0.58, H100
0.81 (Vidur profiles); a round number between that and the asymptote, too high for A100 by a quarter."""

RING_HALF_BYTES = 4.0e6
"""A ring reaches half its best bandwidth at this message size; measured ones lie between 4 and 16 MB."""


def p2p_time_s(message_bytes: Floats, link: Link) -> Floats:
    """Return the time of one message: latency + bytes / bandwidth; no message takes no time."""
    message = np.asarray(message_bytes, dtype=np.float64)
    return np.where(message > 0, link.latency_s + message / link.bandwidth_bytes_per_s, 0.0)


def one_shot_all_reduce_s(message_bytes: Floats, n_devices: int, link: Link) -> Floats:
    """Every device reads the whole message of all others at once: one latency, (n - 1) messages."""
    moved = np.asarray(message_bytes, dtype=np.float64) * (n_devices - 1)
    return ONE_SHOT_START_S + link.latency_s + moved / (ONE_SHOT_EFF_FRAC * link.bandwidth_bytes_per_s)


def ring_all_reduce_s(message_bytes: Floats, n_devices: int, link: Link) -> Floats:
    """Reduce-scatter and all-gather round a ring: 2 (n - 1) / n of the message over each link.

    One latency per neighbour, and an efficiency that rises with size: eff(B) = eff B / (B + B_half).
    """
    message = np.asarray(message_bytes, dtype=np.float64)
    moved = 2.0 * (n_devices - 1) / n_devices * (message + RING_HALF_BYTES)
    return (
        RING_START_S + link.latency_s * (n_devices - 1) + moved / (RING_EFF_FRAC * link.bandwidth_bytes_per_s)
    )


def all_reduce_time_s(message_bytes: Floats, n_devices: int, link: Link) -> Floats:
    """Return the time to sum one message over ``n_devices``; 0 for one device or an empty message."""
    message = np.asarray(message_bytes, dtype=np.float64)
    if n_devices < 2:
        return np.zeros_like(message)
    best = np.minimum(
        one_shot_all_reduce_s(message, n_devices, link), ring_all_reduce_s(message, n_devices, link)
    )
    return np.where(message > 0, best, 0.0)
