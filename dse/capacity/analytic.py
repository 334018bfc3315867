"""What one replica carries: closed forms for continuous batching, checked later by simulation.

At a steady batch of B sequences a replica that prefills first spends the share rho_p = sum(lambda Tp) of its
time on prompts and the rest on decode rounds of T(B) seconds, so that

    TPOT = T(B) / (1 - rho_p)      and, by Little's law,      B = sum(lambda (n - 1)) TPOT.

With T(B) = a + sum over the sequences of b_d (a chord through B that lies above T below it) this is
TPOT = a / (1 - rho) with rho = sum(lambda_d (Tp_d + (n_d - 1) b_d)): the load of a request is a number of
seconds, and loads of unlike requests add up. The cache is a second resource of the same kind. Waiting for the
prefill is Kingman's formula with an exponential tail (Kingman, Proc. Camb. Phil. Soc. 57, 1961, and J. R.
Stat. Soc. B 24, 1962): P(W > t) = rho_p exp(-t / tau), tau = E[Tp] (ca^2 + cs^2) / 2 / (1 - rho_p), which is
exact for M/M/1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from dse.capacity.buckets import Buckets
from dse.capacity.fleet import Part
from dse.capacity.load import Floats, ServiceLevel

CACHE_Z = 2.33  # the cache holds what is there 99 % of the time
N_POINTS = 6
N_TABULATED = 40


class Steps(Protocol):
    """Costs of iterations, seconds in row 0 and joules in row 1; see ``step_times``."""

    def prefill_costs(self, prompt_tokens: ArrayLike) -> Floats:
        """Return (2, S, N) of whole prompts, one each."""
        ...

    def decode_costs(self, sequences: ArrayLike, context: ArrayLike) -> Floats:
        """Return (2, S, ...) of decode iterations."""
        ...

    def hop_costs(self, n_tokens: ArrayLike) -> Floats:
        """Return (2, S - 1, ...) of transfers between stages."""
        ...


@dataclass(frozen=True)
class Room:
    """How many positions of all sequences a replica's cache holds, and how many sequences it may run."""

    kv_tokens: float
    max_sequences: int


@dataclass(frozen=True)
class OperatingPoint:
    """A replica at a steady batch, serving a mix of buckets.

    Attributes:
        batch: sequences that decode at once; rate_per_s: requests that it serves then, of the mix.
        tpot_s: mean time between tokens; prefill_frac: share of time on prompts.
        shares: (D, 2) what one request per second of a bucket takes of the time and of the cache.
        attained_frac: (D, K) share of a bucket's requests that meet a level; 1 for levels of other classes.
        energy_j: (D,) dynamic energy of one request.
        kv_frac: of the cache that the mix fills on average.
        part: which part of a request it does; levels that the other part decides are NaN (see ``apart``).
    """

    batch: float
    rate_per_s: float
    tpot_s: float
    prefill_frac: float
    shares: Floats
    attained_frac: Floats
    energy_j: Floats
    kv_frac: float
    part: Part = "both"


@dataclass(frozen=True)
class Times:
    """Per bucket (D,): latency of a prefill, what it blocks of the busiest stage, and joules."""

    prefill_s: Floats
    busy_s: Floats
    prefill_j: Floats


class Rounds:
    """Decode rounds of a replica: every batch up to the largest, at contexts around the usual one.

    A batch is split over the S stages of a pipeline as one micro-batch each, so that a round takes max(sum of
    the stages and hops, S times the slowest of them), as ``cost_models.pipeline`` has it. The costs are read
    at some batches and joined by straight lines.
    """

    def __init__(self, steps: Steps, most: float, context: float) -> None:
        """Price batches up to ``most`` at the context and at 1.5 times it."""
        self.context = context
        self.n_stages = n = int(steps.decode_costs(np.ones(1), np.array([context])).shape[1])
        self.each = np.unique(np.geomspace(1.0, max(2.0, most / n), N_TABULATED).round())
        contexts = np.repeat([context, 1.5 * context], len(self.each))
        costs = steps.decode_costs(np.tile(self.each, 2), contexts)
        costs = np.moveaxis(costs.reshape(2, n, 2, len(self.each)), 2, 3)
        hops = steps.hop_costs(self.each)[..., None] + np.zeros(2)
        self._sum_s = costs[0].sum(axis=0) + hops[0].sum(axis=0)
        self._most_s = np.concatenate([costs[0], hops[0]]).max(axis=0)
        self._joules = (costs[1].sum(axis=0) + hops[1].sum(axis=0))[:, 0]

    def seconds(self, batch: float, *, longer: bool = False) -> float:
        """Return one round; ``longer`` at the longer context."""
        each, column = max(1.0, batch / self.n_stages), int(longer)
        whole = float(np.interp(each, self.each, self._sum_s[:, column]))
        slowest = float(np.interp(each, self.each, self._most_s[:, column]))
        return max(whole, min(batch, self.n_stages) * slowest)

    def joules_per_token(self, batch: float) -> float:
        """Return the dynamic energy of one token."""
        each = max(1.0, batch / self.n_stages)
        return float(np.interp(each, self.each, self._joules)) / each

    def chord(self, batch: float) -> tuple[float, float]:
        """Return (a, b) with a + b B equal to the round at the batch and not below it at smaller ones."""
        top = self.seconds(batch)
        if batch <= 1.0:
            return top, 0.0
        smaller = np.append(self.each[self.each * self.n_stages < batch] * self.n_stages, 1.0)
        slope = min((top - self.seconds(float(n))) / (batch - n) for n in smaller if n < batch)
        slope = max(0.0, slope)
        return top - slope * batch, slope


def serving(steps: Steps, room: Room, buckets: Buckets, mix: Floats | None = None) -> Serving | None:
    """Return what a replica needs to serve a mix, priced once for all service levels.

    Args:
        steps: costs of iterations.
        room: cache and sequences.
        buckets: lengths.
        mix: (D,) shares of the buckets that the replica serves; None for those of the load. Waiting depends
            on it, loads do not.

    Returns:
        None where the cache does not hold the longest bucket.
    """
    weights = buckets.share if mix is None else mix / mix.sum()
    more = np.maximum(buckets.output_tokens - 1.0, 0.0)
    context = buckets.prompt_tokens + buckets.output_tokens / 2.0
    held = float((weights * more * context).sum() / max((weights * more).sum(), 1e-12))
    if float((buckets.prompt_tokens + buckets.output_tokens).max()) > room.kv_tokens:
        return None
    most = max(1.0, _fitting_batch(min(room.kv_tokens / held, float(room.max_sequences))))
    return Serving(weights, more, context, Rounds(steps, most, held), _times(steps, buckets), room, most)


def operating_points(
    served: Serving, buckets: Buckets, levels: Sequence[tuple[int, ServiceLevel]]
) -> list[OperatingPoint]:
    """Return what a replica does at batches up to what its cache and the limits allow.

    Args:
        served: of ``serving``.
        buckets: the same.
        levels: (class index, level), the columns of ``attained_frac``.
    """
    grid = batch_grid(served.useful_batch(levels))
    return [_point(served, buckets, levels, float(batch)) for batch in grid]


def batch_grid(most: float) -> Floats:
    """Return batches up to the largest, denser towards it."""
    return np.unique(np.maximum(1.0, most * np.geomspace(1.0 / 8.0, 1.0, N_POINTS)).round(2))


def _fitting_batch(limit: float) -> float:
    """Return B with B + z sqrt(B) = limit: a Poisson number of sequences stays below it."""
    return (sqrt(limit + CACHE_Z**2 / 4) - CACHE_Z / 2) ** 2


@dataclass(frozen=True)
class Serving:
    """What a replica serves: (D,) weights, tokens after the first, mean contexts; and how fast it is.

    ``most`` is the largest batch that its cache holds most of the time.
    """

    weights: Floats
    more: Floats
    context: Floats
    rounds: Rounds
    times: Times
    room: Room
    most: float

    def mean(self, values: Floats) -> float:
        """Return the mean over the requests."""
        return float((self.weights * values).sum())

    def steady(self, batch: float) -> tuple[float, float, float]:
        """Return (requests/s, TPOT, decode round) at a batch."""
        decode_s = self.rounds.seconds(batch)
        busy_s = self.mean(self.times.busy_s)
        rate = batch / (batch * busy_s + self.mean(self.more) * decode_s)
        return rate, decode_s / (1.0 - rate * busy_s), decode_s

    def useful_batch(self, levels: Sequence[tuple[int, ServiceLevel]]) -> float:
        """Return the largest batch up to ``most`` whose mean TPOT may still meet the loosest limit."""
        most = self.most
        limits = [level.limit_s for _, level in levels if level.metric == "tpot"]
        if not limits or self.steady(most)[1] <= max(limits):
            return most
        low, high = 1.0, most
        for _ in range(20):
            middle = sqrt(low * high)
            low, high = (middle, high) if self.steady(middle)[1] <= max(limits) else (low, middle)
        return high


def _times(steps: Steps, buckets: Buckets) -> Times:
    costs = steps.prefill_costs(buckets.prompt_tokens)
    hops = steps.hop_costs(buckets.prompt_tokens)
    return Times(
        prefill_s=costs[0].sum(axis=0) + hops[0].sum(axis=0),
        busy_s=np.concatenate([costs[0], hops[0]]).max(axis=0),
        prefill_j=costs[1].sum(axis=0) + hops[1].sum(axis=0),
    )


def _point(
    served: Serving, buckets: Buckets, levels: Sequence[tuple[int, ServiceLevel]], batch: float
) -> OperatingPoint:
    rounds, times, more = served.rounds, served.times, served.more
    rate, tpot_s, decode_s = served.steady(batch)
    fixed_s, each_s = rounds.chord(batch)
    longer_s = rounds.seconds(batch, longer=True) - decode_s
    per_position_s = longer_s / (0.5 * rounds.context * batch)
    load_s = times.busy_s + more * np.maximum(
        each_s + per_position_s * (served.context - rounds.context), 0.0
    )
    busy = 1.0 - fixed_s / tpot_s
    if busy <= 0 or served.mean(load_s) <= 0:
        load_s, busy = np.full_like(load_s, 1.0 / rate), 1.0
    stay_s = times.prefill_s + more * tpot_s
    usable = served.room.kv_tokens / (1.0 + CACHE_Z / sqrt(batch))
    return OperatingPoint(
        batch=batch,
        rate_per_s=rate,
        tpot_s=tpot_s,
        prefill_frac=rate * served.mean(times.busy_s),
        shares=np.stack([load_s / busy, stay_s * served.context / usable], axis=1),
        attained_frac=_attained(served, buckets, levels, rate, tpot_s, decode_s, each_s * sqrt(batch)),
        energy_j=times.prefill_j + more * rounds.joules_per_token(batch),
        kv_frac=min(1.0, rate * served.mean(stay_s * served.context) / served.room.kv_tokens),
    )


def waiting_tail(
    rate_per_s: float, service_s: Floats, weights: Floats, arrival_cv2: float
) -> tuple[float, float]:
    """Return (P(W > 0), tau) of waiting for one server: Kingman's mean with an exponential tail."""
    mean = float((weights * service_s).sum())
    second = float((weights * service_s**2).sum())
    busy = min(rate_per_s * mean, 1.0 - 1e-9)
    service_cv2 = second / mean**2 - 1.0
    return busy, mean * (arrival_cv2 + service_cv2) / 2.0 / (1.0 - busy)


def _attained(
    served: Serving,
    buckets: Buckets,
    levels: Sequence[tuple[int, ServiceLevel]],
    rate: float,
    tpot_s: float,
    decode_s: float,
    wobble_s: float,
) -> Floats:
    """Return (D, K) the share of a bucket's requests that meets each level.

    TPOT is normal: the prompts that come between a request's tokens are a compound Poisson sum, of variance
    lambda (n - 1) TPOT E[Tp^2] over (n - 1)^2, and the batch wobbles like a Poisson number.
    """
    times, more = served.times, served.more
    waits, tau = waiting_tail(rate, times.busy_s, served.weights, buckets.burstiness_cv2)
    second = served.mean(times.busy_s**2)
    steps = np.maximum(more, 1.0)
    tpot_sd = np.sqrt(rate * tpot_s * second / steps + wobble_s**2)
    first_s = times.prefill_s + decode_s / 2.0
    out = np.ones((len(buckets.share), len(levels)))
    for k, (index, level) in enumerate(levels):
        mine = buckets.class_index == index
        if level.metric == "ttft":
            met = wait_within(level.limit_s - first_s, waits, tau)
        elif level.metric == "tpot":
            met = np.where(more > 0, normal_within(level.limit_s - tpot_s, tpot_sd), 1.0)
        else:
            slack = level.limit_s - first_s - more * tpot_s
            sd = np.sqrt((tau * waits) ** 2 + (more * tpot_sd) ** 2)
            met = normal_within(slack - waits * tau, sd)
        out[mine, k] = met[mine]
    return out


def wait_within(slack_s: Floats, waits: float, tau: float) -> Floats:
    """Return P(W <= slack) of a wait with an exponential tail."""
    return np.where(slack_s < 0, 0.0, 1.0 - waits * np.exp(-np.maximum(slack_s, 0.0) / tau))


def normal_within(slack_s: Floats | float, sd: Floats) -> Floats:
    """Return P(X <= slack) of a centred normal."""
    normal = NormalDist()
    z = np.asarray(slack_s, dtype=np.float64) / np.maximum(sd, 1e-12)
    return np.array([normal.cdf(value) for value in np.broadcast_to(z, np.shape(sd))])
