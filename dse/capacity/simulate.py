"""Discrete-event simulation of a load on a deployment: arrivals, routing, cache transfers, engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

import numpy as np

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from dse.capacity.deployment import Deployment, Pool
from dse.capacity.engine import MANY, Engine
from dse.capacity.lane import Lane, Requests
from dse.capacity.load import Load
from dse.capacity.simulation import ReplicaLog, Simulation

PROGRESS_REQUESTS = 1000
Entry = tuple[float, int, Lane, int, int]
"""(time, running number, lane, version of its iteration, or -1; request that arrives, or -1)."""


def simulate(
    load: Load,
    deployment: Deployment,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    max_run_steps: int = MANY,
) -> Simulation:
    """Serve a load and return what happened to every request.

    Args:
        load: the requests.
        deployment: pools of replicas with their routing.
        seed: of the routing's draws where rules share requests out.
        progress: called with (requests that have arrived, all of them) now and then.
        max_run_steps: bound on the decode steps taken in one go; 1 is the plain loop, for tests.

    Raises:
        ConfigError: no rule is for some request.
    """
    return _Simulator(load, deployment, seed, max_run_steps).run(progress)


class _Simulator:
    """The event loop, and what the engines need from outside."""

    def __init__(self, load: Load, deployment: Deployment, seed: int, max_run_steps: int) -> None:
        n = len(load)
        self.load = load
        self.deployment = deployment
        self.requests = Requests(
            prompt=load.prompt_tokens.tolist(),
            output=load.output_tokens.tolist(),
            done=[0] * n,
            first_s=[-1.0] * n,
            finish_s=[-1.0] * n,
            preemptions=[0] * n,
            moved=[False] * n,
            replica=[-1] * n,
        )
        first, second = deployment.routed(load, seed)
        self.first_pool: list[int] = first.tolist()
        self.second_pool: list[int] = second.tolist()
        self.engines: list[list[Engine]] = []
        for pool in deployment.pools:
            pulls = deployment.policy == "pull" and pool.replica.role != "decode"
            queue: deque[int] | None = deque() if pulls else None
            start = sum(map(len, self.engines))
            self.engines.append(
                [
                    Engine(start + index, pool.replica, self.requests, self, queue, max_run_steps)
                    for index in range(pool.count)
                ]
            )
            _tabulate(pool, load, first == len(self.engines) - 1)
        self.pool_of = [pool for pool, engines in enumerate(self.engines) for _ in engines]
        self.turn = [0] * len(deployment.pools)
        self.heap: list[Entry] = []
        self.n_entries = 0
        self.source: dict[int, Engine] = {}
        self.rejected: list[int] = []
        self.link_j = 0.0

    def run(self, progress: Callable[[int, int], None] | None) -> Simulation:
        """Process all events in the order of time; ends of iterations before arrivals."""
        heap, arrivals, n = self.heap, self.load.arrival_s.tolist(), len(self.load)
        arrivals.append(inf)
        upcoming = 0
        while heap or upcoming < n:
            if heap and heap[0][0] <= arrivals[upcoming]:
                time_s, _, lane, version, request = heappop(heap)
                if request >= 0:
                    self._arrived(request, lane, time_s)
                elif lane.version == version:
                    lane.engine.finish(lane)
            else:
                pools = self.first_pool[upcoming], self.second_pool[upcoming]
                if all(self.engines[pool][0].can_ever_hold(upcoming) for pool in pools):
                    self._route(upcoming, pools[0], arrivals[upcoming])
                else:
                    self.rejected.append(upcoming)
                upcoming += 1
                if progress is not None and upcoming % PROGRESS_REQUESTS == 0:
                    progress(upcoming, n)
        return self._result()

    # --- what engines call ------------------------------------------------------------------------------

    def schedule(self, time_s: float, lane: Lane) -> None:
        """End a lane's iteration at a time; what was scheduled for it before is void."""
        lane.version += 1
        self._push(time_s, lane, lane.version, -1)

    def prefilled(self, request: int, time_s: float, engine: Engine) -> None:
        """Pick a decode replica, which fetches the cache once it has room."""
        self.source[request] = engine
        self._route(request, self.second_pool[request], time_s)

    def offered(self, engine: Engine, time_s: float) -> None:
        """Let the others of the pool look at a shared queue whose first request is another one now."""
        for other in self.engines[self.pool_of[engine.index]]:
            if other is not engine:
                other.wake(time_s)

    def transfer(self, request: int, time_s: float, lane: Lane) -> None:
        """Send a cache over the link of its prefill replica, after those before it."""
        link, source = self.deployment.kv_link, self.source[request]
        assert link is not None
        moved = self.requests.prompt[request] * lane.engine.kv_bytes_per_token
        source.kv_link_free_s = max(time_s, source.kv_link_free_s) + float(p2p_time_s(moved, link))
        self.link_j += float(link_energy_j(moved, link))
        self._push(source.kv_link_free_s, lane, -1, request)

    # --- routing ----------------------------------------------------------------------------------------

    def _route(self, request: int, pool: int, now: float) -> None:
        engines = self.engines[pool]
        policy = self.deployment.policy
        if engines[0].pulls:
            engines[0].waiting.append(request)
            if len(engines[0].waiting) == 1:
                min(engines, key=_requests).wake(now)
            if len(engines[0].waiting) == 1:  # the first to end a step takes it
                for engine in engines:
                    engine.cut_runs(now)
            return
        if policy == "round_robin":
            chosen = engines[self.turn[pool] % len(engines)]
            self.turn[pool] += 1
        elif policy == "least_loaded":
            chosen = min(engines, key=_tokens)
        else:
            chosen = min(engines, key=_requests)
        chosen.accept(request)
        chosen.enqueue(request, now)

    def _arrived(self, request: int, lane: Lane, now: float) -> None:
        """Let a sequence join where its cache has come, and free the cache that it came from."""
        self.source.pop(request).release(request, now)
        lane.engine.arrive(request, lane, now)

    def _push(self, time_s: float, lane: Lane, version: int, request: int) -> None:
        self.n_entries += 1
        heappush(self.heap, (time_s, self.n_entries, lane, version, request))

    def _result(self) -> Simulation:
        requests = self.requests
        first_s, finish_s = np.array(requests.first_s), np.array(requests.finish_s)
        end_s = max(float(finish_s.max()), self.load.duration_s)
        logs = tuple(
            ReplicaLog(
                pool=pool.name,
                replica=pool.replica,
                rows=np.array(engine.log, dtype=np.float64).reshape(-1, 6),
                joules=engine.joules,
                n_blocks=pool.replica.n_blocks,
                n_iterations=engine.n_iterations,
            )
            for pool, engines in zip(self.deployment.pools, self.engines, strict=True)
            for engine in engines
        )
        rejected = np.zeros(len(self.load), dtype=bool)
        rejected[self.rejected] = True
        return Simulation(
            load=self.load,
            deployment=self.deployment,
            first_s=np.where(rejected, np.nan, first_s),
            finish_s=np.where(rejected, np.nan, finish_s),
            replica=np.array(requests.replica, dtype=np.intp),
            preemptions=np.array(requests.preemptions, dtype=np.int64),
            rejected=rejected,
            replicas=logs,
            link_j=self.link_j,
            end_s=end_s,
        )


def _requests(engine: Engine) -> int:
    return engine.n_outstanding


def _tokens(engine: Engine) -> int:
    return engine.outstanding_tokens


def _tabulate(pool: Pool, load: Load, mine: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    """Price the prompts of a pool's own requests in one go."""
    batching = pool.replica.batching
    if mine.any():
        chunk_tokens = batching.batch_tokens if batching.chunked else None
        pool.replica.steps.tabulate(load.prompt_tokens[mine], chunk_tokens)
