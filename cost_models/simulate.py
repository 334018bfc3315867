"""A discrete-event simulation of a pipeline: the check on the closed forms, and the timeline of a report.

Every stage and every link is a station that serves one micro-batch at a time, first come first served. All
micro-batches go through the prefill; then the decode ring starts, in which a micro-batch enters its next
round when its last one has left the last station.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Interval:
    """One micro-batch on one station. Even stations are stages, odd ones the links between them."""

    station: int
    phase: Phase
    micro_batch: int
    start_s: float
    end_s: float
    round: int = 0


def simulate_pipeline(
    prefill_stage_s: Sequence[float],
    decode_stage_s: Sequence[float],
    prefill_hop_s: Sequence[float],
    decode_hop_s: Sequence[float],
    n_prefill_micro_batches: int,
    n_decode_micro_batches: int,
    output_tokens: int,
) -> list[Interval]:
    """Return what every station does, in order of time. Arguments as for ``pipeline_times``.

    The decode has ``output_tokens - 1`` rounds and starts when the prefill has ended, because its
    micro-batches may be cut differently.
    """
    prefill = _simulate("prefill", _stations(prefill_stage_s, prefill_hop_s), n_prefill_micro_batches, 1, 0.0)
    ttft_s = max(interval.end_s for interval in prefill)
    decode = _simulate(
        "decode",
        _stations(decode_stage_s, decode_hop_s),
        n_decode_micro_batches,
        output_tokens - 1,
        ttft_s,
    )
    return prefill + decode


def _stations(stage_s: Sequence[float], hop_s: Sequence[float]) -> list[float]:
    """Interleave stages and the links between them."""
    times = [float(stage_s[0])]
    for hop, stage in zip(hop_s, stage_s[1:], strict=True):
        times += [float(hop), float(stage)]
    return times


def _simulate(
    phase: Phase, station_s: list[float], n_micro_batches: int, n_rounds: int, start_s: float
) -> list[Interval]:
    """Send micro-batches round the stations; events are arrivals, taken in order of time."""
    order = count()
    arrivals = [(start_s, next(order), 0, job, 0) for job in range(n_micro_batches if n_rounds > 0 else 0)]
    free_at_s = [start_s] * len(station_s)
    done: list[Interval] = []
    while arrivals:
        arrival_s, _, station, job, turn = heapq.heappop(arrivals)
        begin_s = max(arrival_s, free_at_s[station])
        end_s = begin_s + station_s[station]
        free_at_s[station] = end_s
        done.append(Interval(station, phase, job, begin_s, end_s, turn))
        if station + 1 < len(station_s):
            heapq.heappush(arrivals, (end_s, next(order), station + 1, job, turn))
        elif turn + 1 < n_rounds:
            heapq.heappush(arrivals, (end_s, next(order), 0, job, turn + 1))
    return done
