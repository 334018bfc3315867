"""The engine of one replica: continuous batching with a paged cache, advanced from event to event.

Iterations that hold prompt chunks are taken one by one. Decode iterations between events are taken in one go
(a *run*): as long as no sequence joins or ends, every step has the same sequences, one position further, so
that times are differences of running sums. An arrival cuts a run short at the end of the step it falls into.

A pipeline of S stages has S lanes (micro-batches), each with its own sequences; an iteration passes through
the stages in turn and waits where another lane's is. Runs are taken where one lane is alone; where several
take turns, a ``Rotation`` takes their steps ahead.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Protocol

from dse.capacity.lane import Lane, Requests
from dse.capacity.replica import Replica
from dse.capacity.rotation import Rotation, steps_alike

WATERMARK_FRAC = 0.01
"""Share of the blocks that admissions leave free, against preemptions right after them (vLLM's default)."""

MANY = 1 << 62


class Outside(Protocol):
    """What an engine tells the simulation."""

    def schedule(self, time_s: float, lane: Lane) -> None:
        """Call ``Engine.finish`` at a time, unless the lane is rescheduled before."""
        ...

    def prefilled(self, request: int, time_s: float, engine: Engine) -> None:
        """Take over a request whose prefill is done on a prefill replica; its cache stays until released."""
        ...

    def offered(self, engine: Engine, time_s: float) -> None:
        """Let the others of the pool look at a shared queue whose first request is another one now."""
        ...

    def transfer(self, request: int, time_s: float, lane: Lane) -> None:
        """Move the cache of a request for which the lane has room; it joins when it is there."""
        ...


class Engine:
    """One replica at work."""

    def __init__(
        self,
        index: int,
        replica: Replica,
        requests: Requests,
        outside: Outside,
        queue: deque[int] | None = None,
        max_run_steps: int = MANY,
    ) -> None:
        """Set up an idle engine.

        Args:
            index: of the replica.
            replica: what it is.
            requests: state of all requests.
            outside: the simulation.
            queue: shared with the other replicas of the pool, None for a queue of its own.
            max_run_steps: bound on what is taken in one go; 1 is the plain step-by-step loop.
        """
        self.index = index
        batching = replica.batching
        self.steps = replica.steps
        self.role = replica.role
        self.n_stages = replica.steps.n_stages
        self.requests = requests
        self.outside = outside
        self.block = batching.block_tokens
        self.n_blocks = MANY if replica.n_blocks is None else replica.n_blocks
        self.free_blocks = self.n_blocks
        self.watermark = 0 if replica.n_blocks is None else int(WATERMARK_FRAC * replica.n_blocks)
        self.lanes = [Lane(self, [0] * self.block) for _ in range(self.n_stages)]
        self.lane_sequences = -(-batching.max_sequences // self.n_stages)
        self.batch_tokens = batching.batch_tokens
        self.chunked = batching.chunked
        self.max_run_steps = max_run_steps
        self.max_tokens = replica.max_context_tokens
        self.kv_bytes_per_token = replica.kv_bytes_per_token
        self.pulls = queue is not None
        self.waiting: deque[int] = deque() if queue is None else queue
        self.stage_free_s = [0.0] * self.n_stages
        self.link_free_s = [0.0] * (self.n_stages - 1)
        self.kv_link_free_s = 0.0
        self.rotation: Rotation | None = None
        self.n_outstanding = 0
        self.outstanding_tokens = 0
        self.joules = 0.0
        self.log = array("d")  # (start, end, stage seconds, free blocks at the start, end, and after)
        self.n_iterations = 0

    def can_ever_hold(self, request: int) -> bool:
        """Return whether a request fits alone; a prefill replica holds no more than its prompt."""
        prompt = self.requests.prompt[request]
        total = prompt + self.requests.output[request]
        held = prompt if self.role == "prefill" else total
        return total <= self.max_tokens and -(-held // self.block) <= self.n_blocks

    def accept(self, request: int) -> None:
        """Count a request as this engine's."""
        self.requests.replica[request] = self.index
        self.n_outstanding += 1
        self.outstanding_tokens += self.requests.prompt[request]

    def enqueue(self, request: int, now: float) -> None:
        """Let a request wait, and look at once whether it can start."""
        self.waiting.append(request)
        if len(self.waiting) == 1:
            self.wake(now)

    def wake(self, now: float) -> None:
        """Look at the queue again: start idle lanes, and end runs so that the next step may admit."""
        self._reserve(now)
        for lane in self.lanes:
            if not lane.busy:
                self.cut_runs(now)
                self.start(lane, now)
        if self.waiting and any(lane.size < self.lane_sequences for lane in self.lanes):
            self.cut_runs(now)

    def release(self, request: int, now: float) -> None:
        """Free the cache of a request that has been moved away."""
        self.cut_runs(now)
        self.free_blocks += -(-self.requests.prompt[request] // self.block)
        self._leave(request)
        self.wake(now)

    def arrive(self, request: int, lane: Lane, now: float) -> None:
        """Let a request whose cache is here join its lane at the next step."""
        lane.reserved -= 1
        lane.arrived.append(request)
        self.cut_runs(now)
        if not lane.busy:
            self.start(lane, now)

    # --- iterations -------------------------------------------------------------------------------------

    def start(self, lane: Lane, now: float) -> None:
        """Begin the next iteration of an idle lane, if there is anything to do."""
        head = self.waiting[0] if self.pulls and self.waiting else -1
        for request in lane.arrived:
            lane.join(request, self.requests.prompt[request] + self.requests.done[request] - 1)
        lane.arrived.clear()
        chunks = lane.chunks
        if self.chunked:
            self._make_room(lane)
            taken = lane.blocks_for(1)
            self.free_blocks -= taken
            self._fill(lane, self.batch_tokens - len(lane.joined))
            if not chunks:
                self.free_blocks += taken
        else:
            self._fill(lane, self.batch_tokens)
            if lane.joined and not chunks:
                self._make_room(lane)
                if not lane.joined and self.waiting:
                    self._fill(lane, self.batch_tokens)
        if chunks:
            self._start_mixed(lane, now)
        elif lane.joined:
            self._start_run(lane, now)
        if self.pulls and self.waiting and self.waiting[0] != head:
            self.outside.offered(self, now)

    def _start_mixed(self, lane: Lane, now: float) -> None:
        """Begin an iteration with prompt chunks, and with the decode sequences where prompts are chunked."""
        n = len(lane.joined) if self.chunked else 0
        n_tokens, n_ending = n, n
        stage_s = list(self.steps.launch_s())
        joules = 0.0
        for (_, done, total), tokens in lane.chunks:
            attention_s, attention_j = self.steps.chunk(tokens, done + tokens)
            for s, seconds in enumerate(attention_s):
                stage_s[s] += seconds
            joules += attention_j
            n_tokens += tokens
            n_ending += done + tokens == total
        if n:
            context = lane.cached / n + 1.0
            segment = self.steps.segment(n, context)
            for s, seconds in enumerate(segment.stages(context)):
                stage_s[s] += seconds
            joules += segment.run(context, 1)[1]
        other_s, other_j = self.steps.mixed(n_tokens, n_ending)
        for s, seconds in enumerate(other_s):
            stage_s[s] += seconds
        lane.n_steps = 1 if n else 0
        lane.joules = joules + other_j
        self._pass_stages(lane, now, stage_s, n_tokens)

    def _start_run(self, lane: Lane, now: float) -> None:
        """Begin decode steps: as many as stay alike where the lane is alone, else one."""
        n = len(lane.joined)
        context = lane.cached / n + 1.0
        segment = self.steps.segment(n, context)
        other_s, other_j = self.steps.decode(n)
        alone = self.n_stages == 1 or not any(other.busy for other in self.lanes)
        alone = alone and (self.n_stages == 1 or self._is_blocked())
        most = min(self.max_run_steps, segment.steps_left(context)) if alone else 1
        if most > 1:
            most = lane.affordable(min(most, lane.next_end() - lane.step), self.free_blocks)
        lane.n_steps = most
        if most == 1:
            lane.joules = other_j + segment.run(context, 1)[1]
            stage_s = [a + b for a, b in zip(other_s, segment.stages(context), strict=True)]
            self.free_blocks -= lane.blocks_for(1)
            self._pass_stages(lane, now, stage_s, n)
            return
        lane.busy, lane.committed, lane.start_s = True, False, now
        lane.free_blocks = self.free_blocks
        self._settle(lane, most)

    def _settle(self, lane: Lane, n_steps: int) -> None:
        """Set how many steps a run takes, and what follows from it."""
        n = len(lane.joined)
        context = lane.cached / n + 1.0
        seconds, joules = self.steps.segment(n, context).run(context, n_steps)
        other_s, other_j = self.steps.decode(n)
        lane.n_steps = n_steps
        lane.joules = joules + n_steps * other_j
        lane.stage_s = seconds + n_steps * sum(other_s)
        lane.end_s = lane.start_s + (lane.stage_s + n_steps * sum(self.steps.hops_s(n)))
        self.outside.schedule(lane.end_s, lane)

    def cut_runs(self, now: float) -> None:
        """End runs with the step that they are in, so that others may come in at its end."""
        if self.rotation is not None:
            rotation, self.rotation = self.rotation, None
            rotation.cut(now)
        for lane in self.lanes:
            if lane.busy and not lane.committed:
                self._cut(lane, now)

    def _cut(self, lane: Lane, now: float) -> None:
        n = len(lane.joined)
        context = lane.cached / n + 1.0
        segment = self.steps.segment(n, context)
        each_s = sum(self.steps.decode(n)[0]) + sum(self.steps.hops_s(n))
        start_s, most = lane.start_s, lane.n_steps
        j = max(1, min(most, int(most * (now - start_s) / (lane.end_s - start_s))))
        while j > 1 and start_s + (segment.run(context, j - 1)[0] + (j - 1) * each_s) >= now:
            j -= 1
        while j < most and start_s + (segment.run(context, j)[0] + j * each_s) < now:
            j += 1
        if j < most:
            self._settle(lane, j)
        self._commit(lane)
        if self.n_stages > 1:
            time_s = start_s + (segment.run(context, j - 1)[0] + (j - 1) * each_s)
            stage_s = segment.stages(context + j - 1)
            hops_s = self.steps.hops_s(n)
            for s, seconds in enumerate(stage_s):
                time_s += seconds + self.steps.decode(n)[0][s]
                self.stage_free_s[s] = time_s
                if s < self.n_stages - 1:
                    time_s += hops_s[s]
                    self.link_free_s[s] = time_s

    def _pass_stages(self, lane: Lane, now: float, stage_s: list[float], n_tokens: int) -> None:
        """Send one iteration through the stages and the links between them, behind what is there."""
        free_s, time_s = self.stage_free_s, now
        if self.n_stages > 1:
            hops_s, links_s = self.steps.hops_s(n_tokens), self.link_free_s
            for s, seconds in enumerate(stage_s):
                if s:
                    time_s = max(time_s, links_s[s - 1]) + hops_s[s - 1]
                    links_s[s - 1] = time_s
                time_s = max(time_s, free_s[s]) + seconds
                free_s[s] = time_s
        else:
            time_s += stage_s[0]
        lane.busy = True
        lane.start_s, lane.end_s = now, time_s
        lane.stage_s = sum(stage_s)
        lane.free_blocks = self.free_blocks
        self.outside.schedule(time_s, lane)

    def finish(self, lane: Lane) -> None:
        """End the iteration of a lane: tokens are out, sequences end or go on, and the next one starts."""
        if self.rotation is not None:
            rotation, self.rotation = self.rotation, None
            rotation.complete()
            lane.version += 1
        now = lane.end_s
        self._commit(lane)
        lane.busy = False
        self.joules += lane.joules
        self.n_iterations += max(1, lane.n_steps)
        freed = self.free_blocks
        if lane.n_steps:
            n = len(lane.joined)
            lane.step += lane.n_steps
            lane.cached += n * lane.n_steps
            for request in lane.ended():
                self._end(lane, request, now)
        for entry, tokens in lane.chunks:
            entry[1] += tokens
            if entry[1] == entry[2]:
                lane.prefills.remove(entry)
                self._prefilled(lane, entry[0], entry[2], now)
        lane.chunks.clear()
        self.log.extend((lane.start_s, now, lane.stage_s, lane.free_blocks, freed, self.free_blocks))
        self._reserve(now)
        self.start(lane, now)
        if self.n_stages > 1 and self.waiting:
            for other in self.lanes:
                if not other.busy:
                    self.start(other, now)
        if self.n_stages > 1 and self.max_run_steps > 1:
            self._rotate()

    def _rotate(self) -> None:
        """Let decoding lanes take turns up to the next event, where nothing else can start."""
        busy = [lane for lane in self.lanes if lane.busy]
        if len(busy) < 2 or any(lane.chunks or not lane.committed for lane in busy):
            return
        if any(lane.arrived for lane in self.lanes) or not self._is_blocked():
            return
        n_steps = steps_alike(self, busy)
        if n_steps:
            self.rotation = Rotation(self, busy, n_steps)

    # --- sequences --------------------------------------------------------------------------------------

    def _end(self, lane: Lane, request: int, now: float) -> None:
        n_steps, blocks = lane.part(request)
        self.free_blocks += blocks
        self.requests.done[request] += n_steps
        self.requests.finish_s[request] = now
        self._leave(request)

    def _leave(self, request: int) -> None:
        self.n_outstanding -= 1
        self.outstanding_tokens -= self.requests.prompt[request]

    def _prefilled(self, lane: Lane, request: int, cached: int, now: float) -> None:
        """Emit the token that a prefill ends with."""
        requests = self.requests
        requests.done[request] += 1
        if requests.done[request] == 1:
            requests.first_s[request] = now
        if requests.done[request] == requests.output[request]:
            requests.finish_s[request] = now
            self.free_blocks += -(-cached // self.block)
            self._leave(request)
        elif self.role == "prefill":
            self.outside.prefilled(request, now, self)
        else:
            lane.join(request, cached)

    # --- cache ------------------------------------------------------------------------------------------

    def _commit(self, lane: Lane) -> None:
        """Take the blocks of a run whose steps are settled."""
        if not lane.committed:
            self.free_blocks -= lane.blocks_for(lane.n_steps)
            lane.committed = True

    def _make_room(self, lane: Lane) -> None:
        """Preempt the latest sequences until the others have blocks for a step (recomputed later)."""
        while lane.joined and lane.blocks_for(1) > self.free_blocks:
            if lane.prefills:
                request, _, total = lane.prefills.pop()
                self.free_blocks += -(-total // self.block)
            else:
                request = next(reversed(lane.joined))
                n_steps, blocks = lane.part(request)
                self.requests.done[request] += n_steps
                self.free_blocks += blocks
            self.requests.preemptions[request] += 1
            self.waiting.appendleft(request)
            if self.pulls:
                self._leave(request)

    def _fill(self, lane: Lane, budget: int) -> None:
        """Choose the prompt chunks of an iteration, and admit waiting requests while there is room."""
        chunks = lane.chunks
        for entry in lane.prefills:
            if budget <= 0:
                return
            tokens = min(budget, entry[2] - entry[1])
            chunks.append((entry, tokens))
            budget -= tokens
        while self.waiting and budget > 0:
            request = self.waiting[0]
            if self.role == "decode" and not self.requests.moved[request]:
                return
            total = self.requests.prompt[request] + self.requests.done[request]
            if not self.chunked and chunks and total > budget:
                return
            if not self._has_room(lane, -(-total // self.block)):
                return
            self.waiting.popleft()
            if self.pulls:
                self.accept(request)
            self.free_blocks -= -(-total // self.block)
            entry = [request, 0, total]
            lane.prefills.append(entry)
            tokens = min(budget, total) if self.chunked else total
            chunks.append((entry, tokens))
            budget -= tokens

    def _reserve(self, now: float) -> None:
        """Make room for waiting requests whose caches are elsewhere, and have them sent."""
        while self.role == "decode" and self.waiting:
            request = self.waiting[0]
            if self.requests.moved[request]:
                return
            self.cut_runs(now)
            lane = min(self.lanes, key=lambda entry: entry.size)
            blocks = -(-self.requests.prompt[request] // self.block)
            if not self._has_room(lane, blocks):
                return
            self.waiting.popleft()
            self.free_blocks -= blocks
            lane.reserved += 1
            self.requests.moved[request] = True
            self.outside.transfer(request, now, lane)

    def _is_blocked(self) -> bool:
        """Return whether nothing waits that could be admitted before a sequence ends."""
        if not self.waiting:
            return True
        request = self.waiting[0]
        total = self.requests.prompt[request]
        if self.role != "decode" or self.requests.moved[request]:
            total += self.requests.done[request]
        blocks = -(-total // self.block)
        return not any(self._has_room(lane, blocks) for lane in self.lanes)

    def _has_room(self, lane: Lane, blocks: int) -> bool:
        """Return whether a lane may admit a sequence: lanes stay level, and some blocks are left."""
        size = lane.size
        if size >= self.lane_sequences:
            return False
        total = size if self.n_stages == 1 else sum(other.size for other in self.lanes)
        if size * self.n_stages > total:
            return False
        return blocks + (self.watermark if total else 0) <= self.free_blocks
