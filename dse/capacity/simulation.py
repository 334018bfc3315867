"""What a simulation found: times of every request, service levels, utilisation, cache, energy and money."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.money import SECONDS_PER_HOUR
from dse.capacity.deployment import Deployment
from dse.capacity.load import METRICS, Counts, Floats, Load, Metric, RequestClass
from dse.capacity.replica import Replica

N_BINS = 60
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True)
class LevelResult:
    """A service level of a class and how it was kept.

    ``achieved_s`` is the smallest limit that would be kept, None where too many requests were rejected;
    ``attained_frac`` the share of requests within the limit.
    """

    request_class: str
    metric: Metric
    percentile: float
    limit_s: float
    achieved_s: float | None
    attained_frac: float
    passed: bool


@dataclass(frozen=True)
class GoodputResult:
    """The share of a class's requests that kept all limits at once, and whether that is enough."""

    request_class: str
    n_requests: int
    attained_frac: float
    wanted_frac: float | None
    passed: bool


@dataclass(frozen=True, eq=False)
class ReplicaLog:
    """What one replica did.

    Attributes:
        pool, replica: which it is.
        rows: (R, 6) one per iteration or run: start and end in s, busy seconds summed over the stages, free
            blocks of the cache at the start, at the end, and after what ended has left.
        joules: dynamic energy.
        n_blocks: of the cache, None without one.
        n_iterations: steps of the engine.
    """

    pool: str
    replica: Replica
    rows: Floats
    joules: float
    n_blocks: int | None
    n_iterations: int

    @property
    def busy_s(self) -> float:
        """Mean over the stages."""
        return float(self.rows[:, 2].sum()) / self.replica.n_stages

    def utilisation(self, edges_s: Floats) -> Floats:
        """Return (B,) the share of each time bin that the stages work, on average."""
        start, end, busy = self.rows[:, 0], self.rows[:, 1], self.rows[:, 2]
        first = np.clip(np.searchsorted(edges_s, start, "right") - 1, 0, len(edges_s) - 2)
        last = np.clip(np.searchsorted(edges_s, end, "left") - 1, 0, len(edges_s) - 2)
        inside = first == last
        total = np.bincount(first[inside], busy[inside], len(edges_s) - 1).astype(np.float64)
        length = np.maximum(end - start, np.finfo(float).tiny)
        for row in np.flatnonzero(~inside):
            reached = np.clip((edges_s - start[row]) / length[row], 0.0, 1.0)
            total += busy[row] * np.diff(reached)
        return total / (np.diff(edges_s) * self.replica.n_stages)

    def cache_used(self, edges_s: Floats) -> Floats | None:
        """Return (B,) the mean share of the cache's blocks in use in each time bin, None without a cache.

        Linear within an iteration; of a pipeline, constant between the ends of iterations.
        """
        if self.n_blocks is None or not len(self.rows):
            return None if self.n_blocks is None else np.zeros(len(edges_s) - 1)
        rows = self.rows[np.argsort(self.rows[:, 1], kind="stable")]
        start, end, _, at_start, at_end, after = rows.T
        before = np.concatenate([[float(self.n_blocks)], after[:-1]])
        if self.replica.n_stages == 1:
            times = np.stack([start, start, end, end], 1).ravel()
            free = np.stack([before, at_start, at_end, after], 1).ravel()
        else:
            times, free = np.stack([end, end], 1).ravel(), np.stack([before, after], 1).ravel()
        times = np.concatenate([[0.0], times, [max(times[-1], edges_s[-1])]])
        used = 1.0 - np.concatenate([[self.n_blocks], free, free[-1:]]) / self.n_blocks
        area = np.concatenate([[0.0], np.cumsum(np.diff(times) * (used[1:] + used[:-1]) / 2)])
        return np.diff(np.interp(edges_s, times, area)) / np.diff(edges_s)

    @property
    def peak_cache_frac(self) -> float | None:
        """Largest share of the cache's blocks in use, None without a cache."""
        if self.n_blocks is None:
            return None
        return 1.0 - float(self.rows[:, 3:5].min(initial=self.n_blocks)) / self.n_blocks


@dataclass(frozen=True, eq=False)
class Simulation:
    """The outcome.

    Attributes:
        load, deployment: what was simulated.
        first_s, finish_s: (N,) when the first and the last token came; NaN for rejected requests.
        replica: (N,) index of the (last) replica, -1 for rejected requests; over all pools in their order.
        preemptions: (N,) how often each request lost its cache.
        rejected: (N,) requests that no replica of their pool can ever hold.
        replicas: a log of each.
        link_j: energy of cache transfers.
        end_s: when all is done, at least the load's duration.
    """

    load: Load
    deployment: Deployment
    first_s: Floats
    finish_s: Floats
    replica: NDArray[np.intp]
    preemptions: Counts
    rejected: NDArray[np.bool_]
    replicas: tuple[ReplicaLog, ...]
    link_j: float
    end_s: float

    @cached_property
    def ttft_s(self) -> Floats:
        """(N,) arrival to first token."""
        return self.first_s - self.load.arrival_s

    @cached_property
    def e2e_s(self) -> Floats:
        """(N,) arrival to last token."""
        return self.finish_s - self.load.arrival_s

    @cached_property
    def tpot_s(self) -> Floats:
        """(N,) mean time between the tokens after the first; NaN for requests of one token."""
        steps = self.load.output_tokens - 1
        return np.where(steps > 0, (self.finish_s - self.first_s) / np.maximum(steps, 1), np.nan)

    def metric(self, name: Metric) -> Floats:
        """Return (N,) one of "ttft", "tpot", "e2e"."""
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[name]

    @property
    def n_output_tokens(self) -> int:
        """Generated tokens."""
        return int(self.load.output_tokens[~self.rejected].sum())

    @property
    def throughput_tokens_per_s(self) -> float:
        """Generated tokens over the whole time."""
        return self.n_output_tokens / self.end_s

    @property
    def energy_j(self) -> float:
        """Dynamic energy of devices and links, and static energy (where known) over the whole time."""
        static_w = sum(log.replica.static_w for log in self.replicas)
        return sum(log.joules for log in self.replicas) + self.link_j + static_w * self.end_s

    @property
    def cost_usd(self) -> float | None:
        """Rent of all replicas over the whole time, None where a price is unknown."""
        price = self.deployment.price_usd_per_h
        return None if price is None else price * self.end_s / SECONDS_PER_HOUR

    @property
    def cost_usd_per_mtok(self) -> float | None:
        """Dollars per million generated tokens."""
        return (
            None
            if self.cost_usd is None or not self.n_output_tokens
            else (self.cost_usd / self.n_output_tokens * 1e6)
        )

    def levels(self) -> list[LevelResult]:
        """Return every service level with what was achieved; rejected requests keep none."""
        return [
            self._level(index, entry, metric, percentile, limit_s)
            for index, entry in enumerate(self.load.classes)
            for metric, percentile, limit_s in (
                (level.metric, level.percentile, level.limit_s) for level in entry.levels
            )
        ]

    def goodput(self) -> list[GoodputResult]:
        """Return for every class the share of requests that kept all its limits at once."""
        results = []
        for index, entry in enumerate(self.load.classes):
            mine = self.load.class_index == index
            kept = mine & ~self.rejected
            for level in entry.levels:
                values = self.metric(level.metric)
                kept &= np.isnan(values) | (values <= level.limit_s)
            n = int(mine.sum())
            frac = float(kept.sum()) / n if n else 1.0
            enough = entry.goodput_frac is None or frac >= entry.goodput_frac
            results.append(GoodputResult(entry.name, n, frac, entry.goodput_frac, enough))
        return results

    @property
    def passed(self) -> bool:
        """Whether all levels and goodput shares are kept."""
        return all(level.passed for level in self.levels()) and all(g.passed for g in self.goodput())

    def to_json(self, n_bins: int = N_BINS) -> dict[str, Any]:
        """Return the whole outcome but the single requests, with ``n_bins`` time bins."""
        edges = np.linspace(0.0, self.end_s, n_bins + 1)
        return {
            "load": self.load.to_json(),
            "n_finished": int((~self.rejected).sum()),
            "n_rejected": int(self.rejected.sum()),
            "n_preemptions": int(self.preemptions.sum()),
            "end_s": self.end_s,
            "throughput_tokens_per_s": self.throughput_tokens_per_s,
            "energy_j": self.energy_j,
            "energy_j_per_token": self.energy_j / self.n_output_tokens if self.n_output_tokens else None,
            "energy_excludes_static": sorted(
                {r.replica.name for r in self.replicas if not r.replica.static_known}
            ),
            "cost_usd": self.cost_usd,
            "cost_usd_per_mtok": self.cost_usd_per_mtok,
            "passed": self.passed,
            "levels": [asdict(level) for level in self.levels()],
            "goodput": [asdict(entry) for entry in self.goodput()],
            "latency": {name: self._summary(name) for name in METRICS},
            "over_time": {"edges_s": edges.tolist(), **self._over_time(edges)},
            "replicas": [self._replica_json(log, edges) for log in self.replicas],
        }

    def _level(
        self, index: int, entry: RequestClass, metric: Metric, percentile: float, limit_s: float
    ) -> LevelResult:
        values = self.metric(metric)
        mine = self.load.class_index == index
        if metric == "tpot":
            mine = mine & (self.load.output_tokens > 1)
        within = np.sort(np.where(self.rejected[mine], np.inf, values[mine]))
        if not len(within):
            return LevelResult(entry.name, metric, percentile, limit_s, None, 1.0, passed=True)
        needed = math.ceil(percentile / 100.0 * len(within) - 1e-9)
        achieved = float(within[max(0, needed - 1)])
        return LevelResult(
            entry.name,
            metric,
            percentile,
            limit_s,
            achieved if math.isfinite(achieved) else None,
            float((within <= limit_s).mean()),
            achieved <= limit_s,
        )

    def _summary(self, name: Metric) -> dict[str, float | None]:
        values = self.metric(name)
        known = values[~np.isnan(values)]
        if not len(known):
            return dict.fromkeys(("mean_s", *(f"p{q:g}_s" for q in PERCENTILES), "max_s"))
        return {
            "mean_s": float(known.mean()),
            **{f"p{q:g}_s": float(np.percentile(known, q)) for q in PERCENTILES},
            "max_s": float(known.max()),
        }

    def _over_time(self, edges_s: Floats) -> dict[str, list[float | None]]:
        """Return medians and 95th percentiles by the time of arrival, None where nothing arrived."""
        place = np.clip(np.searchsorted(edges_s, self.load.arrival_s, "right") - 1, 0, len(edges_s) - 2)
        arrived = np.bincount(place, minlength=len(edges_s) - 1)
        series: dict[str, list[float | None]] = {"arrivals": arrived.astype(float).tolist()}
        for name in METRICS:
            values = self.metric(name)
            groups = [values[(place == b) & ~np.isnan(values)] for b in range(len(edges_s) - 1)]
            for q in (50, 95):
                series[f"{name}_p{q}_s"] = [float(np.percentile(g, q)) if len(g) else None for g in groups]
        return series

    @staticmethod
    def _replica_json(log: ReplicaLog, edges_s: Floats) -> dict[str, Any]:
        used = log.cache_used(edges_s)
        return {
            "pool": log.pool,
            "name": log.replica.name,
            "busy_frac": log.busy_s / float(edges_s[-1]),
            "utilisation_frac": log.utilisation(edges_s).tolist(),
            "cache_used_frac": None if used is None else used.tolist(),
            "peak_cache_frac": log.peak_cache_frac,
            "n_iterations": log.n_iterations,
            "energy_j": log.joules,
        }
