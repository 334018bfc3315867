"""Published planners on the planner's own tables: what each of them would have done.

Uniform: one precision, layers split evenly. PipeEdge (DSD 2022): one precision, the exact split for the
largest throughput. AdaBits (LLM-PQ, arXiv 2403.01136, section 6): least penalty that fits, time unseen.
Bitwidth transfer (the same paper's heuristic): greedy descent from AdaBits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dse.partition.objective import objective_s, penalty_of, stage_use, violations
from dse.partition.problem import Arrangement, Goal, PipelineProblem
from dse.partition.solve import Planner, least_penalty

Choices = NDArray[np.int64]
MAX_SWAPS = 200
# (layers that the pioneer gives, layers that the straggler gives), as numbers of layers of its choices
EXCHANGES = ((1, 2), (1, 1), (1, 4))


@dataclass(frozen=True)
class Baseline:
    """A published planner's arrangement, or the reason why it has none."""

    name: str
    arrangement: Arrangement | None
    reason: str = ""


def equal_micro_batches(problem: PipelineProblem, n_stages: int) -> tuple[int, int]:
    """Return LLM-PQ's rule for both phases: the batch split over the stages, the next candidate below."""
    wanted = math.ceil(problem.batch / n_stages)

    def nearest(sizes: tuple[int, ...]) -> int:
        return max((size for size in sizes if size <= wanted), default=min(sizes))

    return nearest(problem.prefill_micro_batches), nearest(problem.decode_micro_batches)


def even_stages(n_layers: int, order: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Return stages of equal numbers of layers, the larger ones first."""
    sizes = [len(part) for part in np.array_split(np.arange(n_layers), len(order)) if len(part)]
    ends = np.cumsum(sizes)
    return tuple((d, int(e - n), int(e)) for d, n, e in zip(order, sizes, ends, strict=False))


def even_split(problem: PipelineProblem, choices: Choices) -> Baseline:
    """Return given choices (L) on an even split over all devices, in the first order in which they fit."""
    reason = ""
    for order in problem.orders:
        sizes = equal_micro_batches(problem, len(order))
        plan = Arrangement(
            even_stages(len(choices), order), tuple(int(k) for k in choices), sizes[0], sizes[1]
        )
        broken = violations(problem, Goal(), plan)
        if not broken:
            return Baseline("even split", plan)
        reason = reason or broken[0]
    return Baseline("even split", None, reason)


def even_split_best_choices(problem: PipelineProblem, goal: Goal) -> Baseline:
    """Return the best choices by the goal on an even split, in the first order."""
    order = problem.orders[0]
    stages = even_stages(len(problem.memory_bytes), order)
    allowed = np.zeros_like(problem.allowed)
    for device, first, end in stages:
        allowed[device, first:end] = problem.allowed[device, first:end]
    used = tuple(device for device, _, _ in stages)
    fixed = replace(problem, orders=(used,), allowed=allowed, allow_empty=False)
    solution = Planner(fixed, goal).solve(goal.max_penalty, explain=False)
    reason = "" if solution.arrangement else "no choices fit an even split within the bounds"
    return Baseline("even split, best bits", solution.arrangement, reason)


def pipe_edge(problem: PipelineProblem, choices: Choices) -> Baseline:
    """Return the split of given choices with the shortest slowest station in the prefill; exact.

    Dynamic programming over (devices of an order, layers placed), devices may be left out; PipeEdge knows
    no decode. Micro-batches as LLM-PQ sets them for a pipeline of all devices.
    """
    n_layers = len(choices)
    eta, xi = equal_micro_batches(problem, len(problem.devices))
    p, d = problem.prefill_micro_batches.index(eta), problem.decode_micro_batches.index(xi)
    best: tuple[float, tuple[tuple[int, int, int], ...]] = (math.inf, ())
    for order in problem.orders:
        for used in _subsequences(order, problem.allow_empty):
            found = _least_bottleneck(problem, used, choices, p, d)
            if found is not None and found[0] < best[0]:
                best = found
    if not best[1]:
        return Baseline("PipeEdge", None, f"{n_layers} layers of this precision fit no split")
    return Baseline("PipeEdge", Arrangement(best[1], tuple(int(k) for k in choices), eta, xi))


def _subsequences(order: tuple[int, ...], allow_empty: bool) -> Iterator[tuple[int, ...]]:
    yield order
    if allow_empty and len(order) <= 8:
        for n in range(len(order) - 1, 0, -1):
            yield from itertools.combinations(order, n)


def _least_bottleneck(
    problem: PipelineProblem, order: tuple[int, ...], choices: Choices, p: int, d: int
) -> tuple[float, tuple[tuple[int, int, int], ...]] | None:
    """Return the least longest station of an order in which every device has a layer, and its stages."""
    n_layers, layers = len(choices), np.arange(len(choices))
    slowest = np.full(n_layers + 1, np.inf)
    slowest[0] = 0.0
    came: list[NDArray[np.int64]] = []
    start, end = np.arange(n_layers + 1)[:, None], np.arange(n_layers + 1)[None, :]
    for s, device in enumerate(order):
        ends = (s == 0, s == len(order) - 1)
        time = np.append(0.0, np.cumsum(problem.prefill_s[p, device, layers, choices]))
        need = np.append(0.0, np.cumsum(problem.memory_bytes[layers, choices]))
        blocked = np.append(0, np.cumsum(~problem.allowed[device, layers, choices]))
        room = problem.capacity_bytes[device] - problem.first_bytes * ends[0] - problem.last_bytes * ends[1]
        room += problem.tied_bytes * (len(order) == 1)
        room -= 0.0 if problem.activation_bytes is None else problem.activation_bytes[p, d, device]
        extra = problem.first_prefill_s[p, device] * ends[0] + problem.last_prefill_s[p, device] * ends[1]
        hop = 0.0 if s == 0 else problem.hop_prefill_s[p, order[s - 1], device]
        stage = np.maximum(time[end] - time[start] + extra, hop)
        fits = (end > start) & (need[end] - need[start] <= room) & (blocked[end] == blocked[start])
        total = np.where(fits, np.maximum(slowest[:, None], stage), np.inf)
        came.append(total.argmin(axis=0))
        slowest = total.min(axis=0)
    if not np.isfinite(slowest[-1]):
        return None
    cut = [n_layers]
    for before in reversed(came):
        cut.append(int(before[cut[-1]]))
    bounds = cut[::-1]
    return float(slowest[-1]), tuple((device, bounds[s], bounds[s + 1]) for s, device in enumerate(order))


def ada_bits(problem: PipelineProblem) -> Baseline:
    """Return the least penalty that fits into memory, whatever its time, with LLM-PQ's micro-batches."""
    solution = least_penalty(problem, time_limit_s=5.0)
    if solution.arrangement is None:
        return Baseline("AdaBits", None, solution.binding)
    eta, xi = equal_micro_batches(problem, len(solution.arrangement.stages))
    plan = replace(solution.arrangement, prefill_micro_batch=eta, decode_micro_batch=xi)
    if violations(problem, Goal(), plan):
        plan = solution.arrangement
    return Baseline("AdaBits", plan)


def bitwidth_transfer(problem: PipelineProblem, goal: Goal, start: Arrangement) -> Baseline:
    """Return LLM-PQ's heuristic: from AdaBits, move layers off the slowest stage while the objective falls.

    The straggler is the stage with most seconds over both phases. A pioneer (the others, fastest first) gives
    one layer's precision for that of one, two or four of the straggler's layers and takes those layers over,
    where they are its neighbours in the pipeline; of all such exchanges the one with the least penalty is
    tried, and kept where the objective falls and everything still fits (bounds of the goal other than on the
    penalty are ignored, as the method has none).
    """
    free = Goal(goal.formula, theta_s=goal.theta_s, objective=goal.objective)
    current = start
    value = objective_s(problem, free, current)
    for _ in range(MAX_SWAPS):
        better = next(
            (
                plan
                for plan in _exchanges(problem, current)
                if not violations(problem, free, plan) and objective_s(problem, free, plan) < value
            ),
            None,
        )
        if better is None:
            break
        current, value = better, objective_s(problem, free, better)
    return Baseline("LLM-PQ bitwidth transfer", current)


def _exchanges(problem: PipelineProblem, plan: Arrangement) -> Iterator[Arrangement]:
    """Yield the exchanges of the straggler with each pioneer, least penalty first within a kind."""
    use = stage_use(problem, plan)
    k = math.ceil(problem.batch / plan.prefill_micro_batch)
    m = math.ceil(problem.batch / plan.decode_micro_batch)
    score = (k - 1) * use.prefill_s + (problem.output_tokens - 1) * max(m - 1, 1) * use.decode_s
    straggler = int(np.argmax(score))
    for pioneer in (int(s) for s in np.argsort(score) if s != straggler):
        for gives, takes in EXCHANGES:
            moved = list(_moves(plan, straggler, pioneer, gives, takes))
            yield from sorted(moved, key=lambda one: penalty_of(problem, one))
        yield from _moves(plan, straggler, pioneer, 0, 1)


def _moves(plan: Arrangement, straggler: int, pioneer: int, gives: int, takes: int) -> Iterator[Arrangement]:
    """Yield plans in which ``takes`` layers go from the straggler towards the pioneer, precisions exchanged.

    The boundaries between the two move by that number, so that stages between them keep their size. The
    pioneer's ``gives`` layers and the layers that moved swap their choices (one choice for all that moved).
    """
    step = 1 if pioneer > straggler else -1
    stages = [list(stage) for stage in plan.stages]
    if stages[straggler][2] - stages[straggler][1] <= takes:
        return
    between = range(straggler, pioneer, step)
    for s in between:
        low, high = (s, s + 1) if step > 0 else (s - 1, s)
        stages[low][2] -= step * takes
        stages[high][1] -= step * takes
    bounds = tuple((d, a, b) for d, a, b in stages)
    if any(b <= a for _, a, b in bounds):
        return
    shifted = replace(plan, stages=bounds)
    if not gives:
        yield shifted
        return
    _, first, end = bounds[pioneer]
    arrived = range(first, first + takes) if step > 0 else range(end - takes, end)
    kept = [layer for layer in range(first, end) if layer not in arrived]
    for layer in kept:
        choices = list(plan.choices)
        choices[layer] = plan.choices[arrived[0]]
        for other in arrived:
            choices[other] = plan.choices[layer]
        if tuple(choices) != plan.choices:
            yield replace(shifted, choices=tuple(choices))


def published_baselines(problem: PipelineProblem, goal: Goal, uniform: Choices | None) -> list[Baseline]:
    """Return every baseline; ``uniform`` (L) are the choices of one precision, None where it is no choice."""
    absent = "the precision of the uniform plan is no choice of every layer"
    found = []
    if uniform is None:
        found += [Baseline("uniform", None, absent), Baseline("PipeEdge", None, absent)]
    else:
        found += [replace(even_split(problem, uniform), name="uniform"), pipe_edge(problem, uniform)]
    start = ada_bits(problem)
    found += [even_split_best_choices(problem, goal), start]
    if start.arrangement is None:
        return [*found, Baseline("LLM-PQ bitwidth transfer", None, start.reason)]
    return [*found, bitwidth_transfer(problem, goal, start.arrangement)]
