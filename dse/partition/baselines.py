"""Published planners on the planner's own tables: what each of them would have done.

Uniform: one precision, layers split evenly. PipeEdge (DSD 2022): one precision, the exact split for the
largest throughput. AdaBits (LLM-PQ, arXiv 2403.01136, section 6): least penalty that fits, time unseen.
Bitwidth transfer: the same paper's heuristic, see ``bitwidth_transfer``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dse.partition.bitwidth_transfer import LayerPrecisions, bitwidth_transfer
from dse.partition.branch import Limits
from dse.partition.objective import objective_s, violations
from dse.partition.problem import Arrangement, Goal, PipelineProblem
from dse.partition.solve import Planner, least_penalty

Choices = NDArray[np.int64]
MAX_TYPE_ORDERS = 24  # as many as there are of four types
RELAXATIONS = 100  # of a baseline's own search: unlike seconds the same on every machine


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
    solution = Planner(fixed, goal, Limits(n_relaxations=RELAXATIONS)).solve(goal.max_penalty, explain=False)
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
    solution = least_penalty(problem, time_limit_s=None, n_relaxations=RELAXATIONS)
    if solution.arrangement is None:
        return Baseline("AdaBits", None, solution.binding)
    eta, xi = equal_micro_batches(problem, len(solution.arrangement.stages))
    plan = replace(solution.arrangement, prefill_micro_batch=eta, decode_micro_batch=xi)
    if violations(problem, Goal(), plan):
        plan = solution.arrangement
    return Baseline("AdaBits", plan)


def llm_pq_heuristic(problem: PipelineProblem, theta_s: float, precisions: LayerPrecisions) -> Baseline:
    """Return the best end of LLM-PQ's heuristic over the device orders and micro-batches that it tries.

    Orders keep equal devices together; the decode micro-batch is the batch split over the stages, and the
    prefill's each of its divisors above 1 (sections 4.2 and 4.3). Moves are judged by LLM-PQ's own formula.
    """
    name, goal = "LLM-PQ bitwidth transfer", Goal("llmpq", theta_s=theta_s)
    together = [order for order in problem.orders if _keeps_types_together(problem, order)]
    best: tuple[float, Arrangement | None] = (math.inf, None)
    reason = ""
    for order in (together or list(problem.orders))[:MAX_TYPE_ORDERS]:
        of_order = replace(problem, orders=(order,))
        start = ada_bits(of_order)
        reason = reason or start.reason
        for begun in [] if start.arrangement is None else _with_published_sizes(of_order, start.arrangement):
            plan = bitwidth_transfer(of_order, goal, begun, precisions)
            value = objective_s(of_order, goal, plan)
            if value < best[0]:
                best = (value, plan)
    return Baseline(name, best[1], "" if best[1] is not None else reason)


def _keeps_types_together(problem: PipelineProblem, order: tuple[int, ...]) -> bool:
    types = [problem.device_types[device] for device in order]
    return len(list(itertools.groupby(types))) == len(set(types))


def _with_published_sizes(problem: PipelineProblem, start: Arrangement) -> Iterator[Arrangement]:
    """Yield the start with each pair of micro-batches that LLM-PQ tries, as it is where none of them fits."""
    _, xi = equal_micro_batches(problem, len(start.stages))
    sizes = [size for size in problem.prefill_micro_batches if size > 1 and xi % size == 0]
    plans = [replace(start, prefill_micro_batch=eta, decode_micro_batch=xi) for eta in sizes]
    yield from [plan for plan in plans if not violations(problem, Goal(), plan)] or [start]


def one_precision_baselines(problem: PipelineProblem, choices: Choices) -> list[Baseline]:
    """Return the planners that know one precision only, which is given as the choices (L)."""
    return [replace(even_split(problem, choices), name="uniform"), pipe_edge(problem, choices)]


def mixed_baselines(problem: PipelineProblem, goal: Goal, precisions: LayerPrecisions) -> list[Baseline]:
    """Return the planners that choose between precisions.

    Args:
        problem: its choices give every layer one precision, which is all that the published planners know.
        goal: what our plan is for; the published planners do not look at it.
        precisions: what the choices are.
    """
    return [
        even_split_best_choices(problem, goal),
        ada_bits(problem),
        llm_pq_heuristic(problem, goal.theta_s, precisions),
    ]
