"""Transfers between devices: point to point, collectives of one domain, and hierarchical ones across nodes.

Alpha-beta (Hockney) models: fixed times and a time per byte, with an efficiency that rises with the message.
An all-reduce takes the faster of the libraries that a link has constants for: NCCL's rings and trees, and the
one-shot kernels of serving frameworks.
"""

from __future__ import annotations

import numpy as np

from cost_models.work import Floats
from hardware_specs.families import COLLECTIVES
from hardware_specs.kernels import CollectiveProfile
from hardware_specs.spec import Link

NETWORK_START_S = 5.4e-6
"""Start of a ring across machines: that of NCCL inside one (H100 5.4 microseconds); hops cost the latency."""

NETWORK_EFF_FRAC = 0.8
"""Share of a network link that large rings reach: assumed, a round number near those inside a machine."""

NETWORK_HALF_BYTES = 4.0e6
"""Below about this size a ring across machines reaches half its best bandwidth; inside, 4 to 16 MB do."""


def p2p_time_s(message_bytes: Floats, link: Link) -> Floats:
    """Return the time of one message between neighbours: latency + bytes / bandwidth; none takes no time.

    In a mesh, ring or torus a message between two devices uses their part of the link only.
    """
    message = np.asarray(message_bytes, dtype=np.float64)
    return np.where(message > 0, link.latency_s + message / link.peer_bandwidth_bytes_per_s, 0.0)


def profiles_of(link: Link) -> tuple[CollectiveProfile, ...]:
    """Return the constants of a link's collectives: its own, else those of its kind."""
    if link.collectives:
        return link.collectives
    if link.kind in COLLECTIVES:
        return COLLECTIVES[link.kind]
    ring = CollectiveProfile(
        "ring",
        NETWORK_START_S,
        link.latency_s,
        NETWORK_EFF_FRAC,
        NETWORK_HALF_BYTES,
        "analytic",
        "assumed: NCCL's start, the link's latency per hop",
    )
    return (ring,)


def _collective_s(
    message_bytes: Floats, n_devices: Floats, link: Link, profile: CollectiveProfile, passes: float
) -> Floats:
    """Return ``start + hop (n - 1) + passes (n - 1) / n * (B + B_half (1 - e^(-B / B_half))) / (eff link)``.

    The added bytes make the efficiency rise with the message, from half of ``eff`` to all of it.
    """
    message = np.asarray(message_bytes, dtype=np.float64)
    others = np.asarray(n_devices, dtype=np.float64) - 1.0
    extra: Floats = 0.0
    if profile.half_bytes > 0:
        extra = -profile.half_bytes * np.expm1(-message / profile.half_bytes)
    moved = passes * others / (others + 1.0) * (message + extra)
    time_s = (
        profile.start_s + profile.hop_s * others + moved / (profile.eff_frac * link.bandwidth_bytes_per_s)
    )
    return np.where((message > 0) & (others > 0), time_s, 0.0)


def library_all_reduce_s(
    message_bytes: Floats, n_devices: Floats, link: Link, profile: CollectiveProfile
) -> Floats:
    """Return the time of one library's all-reduce: every byte passes each link 2 (n - 1) / n times."""
    return _collective_s(message_bytes, n_devices, link, profile, 2.0)


def all_reduce_time_s(message_bytes: Floats, n_devices: Floats, link: Link) -> Floats:
    """Return the time to sum one message over ``n_devices``; 0 for one device or an empty message."""
    times = [library_all_reduce_s(message_bytes, n_devices, link, entry) for entry in profiles_of(link)]
    return np.asarray(times).min(axis=0)


def half_all_reduce_time_s(message_bytes: Floats, n_devices: Floats, link: Link) -> Floats:
    """Return the time of a reduce-scatter, all-gather or all-to-all: half the traffic of an all-reduce.

    ``message_bytes`` is the whole message, of which each device ends up with (or starts from) one part.
    """
    times = [_collective_s(message_bytes, n_devices, link, entry, 1.0) for entry in profiles_of(link)]
    return np.asarray(times).min(axis=0)


def hierarchical_all_reduce_s(
    message_bytes: Floats, n_inside: int, n_nodes: int, inner: Link, outer: Link
) -> Floats:
    """Return the time across nodes: reduce-scatter inside, all-reduce of each part across, all-gather inside.

    Every device of a node reduces its own part of the message with its peers over its own network link.
    """
    message = np.asarray(message_bytes, dtype=np.float64)
    inside_s = 2.0 * half_all_reduce_time_s(message, n_inside, inner)
    return inside_s + all_reduce_time_s(message / n_inside, n_nodes, outer)
