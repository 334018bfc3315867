"""Prefill and decode in pools of their own: what a replica carries that does only one of them.

A prefill replica is a queue of prompts alone (Kingman's tail, as in ``analytic``); a decode replica has no
prompts that interrupt it, so that its TPOT is its round. The cache of each request moves over the network in
between, one at a time per prefill replica (Splitwise, arXiv 2311.18677; DistServe, arXiv 2401.09670).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np

from cost_models.collectives import p2p_time_s
from dse.capacity.analytic import (
    CACHE_Z,
    OperatingPoint,
    Serving,
    batch_grid,
    normal_within,
    wait_within,
    waiting_tail,
)
from dse.capacity.buckets import Buckets
from dse.capacity.load import Floats, ServiceLevel
from hardware_specs.spec import Link

PREFILL_BUSY = (0.4, 0.6, 0.75, 0.85)
Levels = Sequence[tuple[int, ServiceLevel]]


def transfer_s(buckets: Buckets, kv_bytes_per_token: float, link: Link) -> Floats:
    """Return (D,) the time that the cache of a prompt takes over the network."""
    return np.asarray(p2p_time_s(buckets.prompt_tokens * kv_bytes_per_token, link), dtype=np.float64)


def prefill_points(
    served: Serving, buckets: Buckets, levels: Levels, moving_s: Floats
) -> list[OperatingPoint]:
    """Return a prefill replica at several shares of its time; TTFT alone is decided here, the rest is NaN.

    Args:
        served: of ``analytic.serving``.
        buckets: the same.
        levels: (class index, level).
        moving_s: (D,) of ``transfer_s``; a replica that sends longer than it computes is as busy as its link.
    """
    times = served.times
    busy_s = np.maximum(times.busy_s, moving_s)
    usable = served.room.kv_tokens / (1.0 + CACHE_Z)
    held = (times.prefill_s + moving_s) * buckets.prompt_tokens / usable
    found = []
    for busy in PREFILL_BUSY:
        rate = busy / served.mean(busy_s)
        waits, tau = waiting_tail(rate, busy_s, served.weights, buckets.burstiness_cv2)
        attained = np.full((len(buckets.share), len(levels)), np.nan)
        for k, (index, level) in enumerate(levels):
            mine = buckets.class_index == index
            if level.metric == "ttft":
                attained[mine, k] = wait_within(level.limit_s - times.prefill_s, waits, tau)[mine]
        found.append(
            OperatingPoint(
                batch=1.0,
                rate_per_s=rate,
                tpot_s=0.0,
                prefill_frac=busy,
                shares=np.stack([busy_s / busy, held], axis=1),
                attained_frac=attained,
                energy_j=times.prefill_j,
                kv_frac=min(1.0, rate * served.mean(held)),
                part="prefill",
            )
        )
    return found


def decode_points(
    served: Serving, buckets: Buckets, levels: Levels, moving_s: Floats
) -> list[OperatingPoint]:
    """Return a decode replica at several batches; TTFT is NaN, and e2e counts the class's TTFT limit.

    Where a class has no TTFT limit its first token is taken to come after twice the prefill.
    """
    alone = replace(served, times=replace(served.times, busy_s=np.zeros_like(moving_s)))
    limits = {index: level.limit_s for index, level in levels if level.metric == "ttft"}
    first_s = np.array(
        [
            limits.get(int(c), 2.0 * s)
            for c, s in zip(buckets.class_index, served.times.prefill_s, strict=True)
        ]
    )
    more, found = served.more, []
    for batch in batch_grid(alone.useful_batch(levels)):
        rate, tpot_s, decode_s = alone.steady(float(batch))
        fixed_s, each_s = served.rounds.chord(float(batch))
        longer_s = served.rounds.seconds(float(batch), longer=True) - decode_s
        per_position_s = longer_s / (0.5 * served.rounds.context * batch)
        load_s = more * np.maximum(each_s + per_position_s * (served.context - served.rounds.context), 0.0)
        busy = 1.0 - fixed_s / tpot_s
        if busy <= 0 or served.mean(load_s) <= 0:
            load_s, busy = more * (tpot_s / batch), 1.0
        stay_s = more * tpot_s
        usable = served.room.kv_tokens / (1.0 + CACHE_Z / sqrt(batch))
        each_token_s = tpot_s + moving_s / np.maximum(more, 1.0)
        wobble_s = np.full_like(each_token_s, each_s * sqrt(batch))
        attained = np.full((len(buckets.share), len(levels)), np.nan)
        for k, (index, level) in enumerate(levels):
            mine = buckets.class_index == index
            if level.metric == "tpot":
                met = np.where(more > 0, normal_within(level.limit_s - each_token_s, wobble_s), 1.0)
            elif level.metric == "e2e":
                met = normal_within(level.limit_s - first_s - more * each_token_s, more * wobble_s)
            else:
                continue
            attained[mine, k] = met[mine]
        found.append(
            OperatingPoint(
                batch=float(batch),
                rate_per_s=rate,
                tpot_s=tpot_s,
                prefill_frac=0.0,
                shares=np.stack([load_s / busy, stay_s * served.context / usable], axis=1),
                attained_frac=attained,
                energy_j=more * served.rounds.joules_per_token(float(batch)),
                kv_frac=min(1.0, rate * served.mean(stay_s * served.context) / served.room.kv_tokens),
                part="decode",
            )
        )
    return found
