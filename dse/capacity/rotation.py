"""Decode steps of a pipeline whose lanes take turns, many at a time.

While no sequence joins or ends, every lane repeats the same step with its sequences one position further. The
stages are first come, first served and lanes cannot overtake each other, so they finish in the order in which
they are. This does what ``Engine.finish`` and ``Engine.start`` would do for each step, without the events.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np

from dse.capacity.lane import Lane
from dse.capacity.step_times import DecodeSegment

if TYPE_CHECKING:
    from dse.capacity.engine import Engine

MOST_STEPS = 64
LEAST_STEPS = 2


class _Turn:
    """A lane and the steps that it may take: times of the stages in each, after the one that is under way."""

    def __init__(self, engine: Engine, lane: Lane, n_steps: int) -> None:
        n = len(lane.joined)
        self.lane = lane
        self.context = lane.cached / n + 1.0
        self.segment: DecodeSegment = engine.steps.segment(n, self.context)
        self.other_s, self.other_j = engine.steps.decode(n)
        self.hops_s = engine.steps.hops_s(n)
        i, part = int(self.context) - self.segment.start + 1, self.context - int(self.context)
        columns = []
        for nodes, other_s in zip(self.segment.stage_s, self.other_s, strict=True):
            at = np.frombuffer(nodes)[i : i + n_steps + 1]
            each = at[:-1] + part * (at[1:] - at[:-1]) if part else at[:-1]
            columns.append((other_s + each).tolist())
        self.rows = list(zip(*columns, strict=True))
        self.start_s, self.end_s = lane.start_s, lane.end_s
        self.done = 0

    def reset(self) -> None:
        """Forget the steps taken."""
        self.start_s, self.end_s, self.done = self.lane.start_s, self.lane.end_s, 0

    def settle(self, engine: Engine) -> None:
        """Write back what was done to the lane and the engine."""
        lane, k = self.lane, self.done
        if k:
            n = len(lane.joined)
            _, joules = self.segment.run(self.context, k)
            engine.joules += joules + k * self.other_j
            engine.n_iterations += k
            engine.free_blocks -= lane.blocks_for(k + 1) - lane.blocks_for(1)
            busy_s = lane.stage_s + sum(map(sum, self.rows[: k - 1]))
            free = engine.free_blocks
            engine.log.extend((lane.start_s, self.start_s, busy_s, lane.free_blocks, free, free))
            lane.step += k
            lane.cached += n * k
            lane.start_s, lane.end_s = self.start_s, self.end_s
            lane.stage_s = sum(self.rows[k - 1])
            lane.joules = self.other_j + self.segment.run(self.context + k, 1)[1]
            lane.free_blocks = free
        engine.outside.schedule(lane.end_s, lane)


class Rotation:
    """Steps of decoding lanes, taken ahead; ``cut`` takes back those that begin after a time."""

    def __init__(self, engine: Engine, lanes: list[Lane], n_steps: int) -> None:
        """Take ``n_steps`` (see ``steps_alike``) of all busy lanes, each of which has one under way."""
        self.engine = engine
        self.n_steps = n_steps
        self.turns = [_Turn(engine, lane, n_steps) for lane in sorted(lanes, key=lambda entry: entry.end_s)]
        self.free_s, self.links_s = list(engine.stage_free_s), list(engine.link_free_s)
        self._take(inf)
        engine.outside.schedule(self.turns[0].end_s, self.turns[0].lane)
        for turn in self.turns[1:]:
            turn.lane.version += 1

    def complete(self) -> None:
        """Settle all steps."""
        for turn in self.turns:
            turn.settle(self.engine)

    def cut(self, now: float) -> None:
        """Settle only the steps that end by a time."""
        self.engine.stage_free_s, self.engine.link_free_s = self.free_s, self.links_s
        for turn in self.turns:
            turn.reset()
        self._take(now)
        self.complete()

    def _take(self, until_s: float) -> None:
        engine, turns = self.engine, self.turns
        free_s = engine.stage_free_s = list(engine.stage_free_s)
        links_s = engine.link_free_s = list(engine.link_free_s)
        hops = range(1, engine.n_stages)
        for step in range(self.n_steps):
            for turn in turns:
                now = turn.end_s
                if now > until_s:
                    return
                row, hops_s = turn.rows[step], turn.hops_s
                turn.start_s = now
                time_s = max(now, free_s[0]) + row[0]
                free_s[0] = time_s
                for s in hops:
                    time_s = max(time_s, links_s[s - 1]) + hops_s[s - 1]
                    links_s[s - 1] = time_s
                    time_s = max(time_s, free_s[s]) + row[s]
                    free_s[s] = time_s
                turn.end_s = time_s
                turn.done += 1


def steps_alike(engine: Engine, lanes: list[Lane]) -> int:
    """Return how many steps all lanes can take before a sequence ends or blocks run out, 0 for too few."""
    most = MOST_STEPS
    for lane in lanes:
        context = lane.cached / len(lane.joined) + 1.0
        left = engine.steps.segment(len(lane.joined), context).steps_left(context)
        most = min(most, lane.next_end() - lane.step - 1, left - 1)
    while most >= LEAST_STEPS and (
        sum(lane.blocks_for(most + 1) - lane.blocks_for(1) for lane in lanes) > engine.free_blocks
    ):
        most //= 2
    return most if most >= LEAST_STEPS else 0
