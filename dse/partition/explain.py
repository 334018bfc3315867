"""Why a plan is not better, or why there is none: sentences for people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dse.partition.branch import Incumbent, Limits
from dse.partition.lanes import Lane, LaneFactory
from dse.partition.problem import Goal, Objective, PipelineProblem
from dse.partition.relax import Relaxed

GIB = 2.0**30
MAX_SEQUENCES = 64
PRICE_FRAC = 1e-6  # prices below this share of the value are not worth a word
RELAXATION_TIME_S = 10.0
UNITS: dict[Objective, str] = {
    "time": "s",
    "ttft": "s",
    "tpot": "s",
    "throughput": "s",
    "energy": "J/token",
    "cost": "USD/Mtok",
}
LABELS: dict[Objective, str] = {
    "time": "batch time",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "throughput": "time between batches",
    "energy": "energy",
    "cost": "cost",
}


def binding_sentence(problem: PipelineProblem, goal: Goal, best: Incumbent, relaxed: Relaxed | None) -> str:
    """Name the slowest stages and the constraints with a price, from the multipliers of the plan's cut.

    Prices are shadow values: what one unit more would save, while the cut stays and nothing else binds.
    """
    unit = UNITS[goal.objective]
    lane = best.lane
    if lane is None or best.cut is None or best.choices is None:
        return ""
    names = [problem.devices[device] for device in lane.devices]
    layers = np.arange(lane.n_layers)
    stage = np.repeat(np.arange(lane.n), np.diff(best.cut))
    parts: list[str] = []
    for phase, times, offset in (("prefill", lane.prefill_s, 0), ("decode", lane.decode_s, lane.n)):
        totals = lane.fixed[offset : offset + lane.n] + np.bincount(
            stage, times[stage, layers, best.choices], minlength=lane.n
        )
        slowest = int(np.argmax(totals))
        parts.append(f"{phase} of {names[slowest]} ({totals[slowest]:.4g} s per micro-batch)")
    memory = np.bincount(stage, lane.memory[layers, best.choices], minlength=lane.n)
    prices: list[tuple[float, str]] = []
    if relaxed is not None:
        for s in range(lane.n):
            price = float(relaxed.multipliers.memory[s])
            free = (lane.room[s] - memory[s]) / GIB
            text = f"memory of {names[s]} (about {price * GIB:.3g} {unit} less per GiB more, "
            text += f"{free:.3f} GiB free)"
            prices.append((price * lane.room[s], text))
        if goal.max_penalty is not None:
            price = relaxed.multipliers.penalty
            text = f"penalty bound {goal.max_penalty:.4g} (about {price:.3g} {unit} less per unit more)"
            prices.append((price * abs(goal.max_penalty), text))
        for bound, price in zip(lane.bounds, relaxed.multipliers.bounds, strict=True):
            limit = goal.bounds[bound.name]
            text = f"{LABELS[bound.name]} of at most {limit:.5g} {UNITS[bound.name]} "
            text += f"(about {price:.3g} {unit} less per {UNITS[bound.name]} more)"
            prices.append((price * abs(limit), text))
    prices = [entry for entry in prices if entry[0] > PRICE_FRAC * abs(best.value)]
    ranked = [text for _, text in sorted(prices, key=lambda pair: -pair[0])]
    slow = f"slowest: {parts[0]}, {parts[1]}"
    return f"{'; '.join(ranked)}; {slow}" if ranked else slow


def missing_sentence(problem: PipelineProblem, goal: Goal) -> str:
    """Say what is missing for any plan: a device for a layer, bytes, or penalty."""
    runnable = problem.allowed.any(axis=(0, 2))
    if not runnable.all():
        layer = int(np.argmin(runnable))
        return f"no device can run any choice of layer {layer}"
    missing = missing_bytes(problem)
    if missing is None:
        return (
            "no candidate order can run all layers: every contiguous cut meets a layer its device cannot run"
        )
    if missing[0] > 0:
        bytes_, names, is_least = missing
        return (
            f"memory: even with the smallest choice of every layer {'at least' if is_least else 'about'} "
            f"{bytes_:.0f} bytes ({bytes_ / GIB:.3f} GiB) are missing in all, on {', '.join(names)} at best"
        )
    parts = [] if goal.max_penalty is None else [_missing_penalty(problem, goal.max_penalty)]
    if not goal.bounds:
        return parts[0] if parts and parts[0] else "no arrangement satisfies all constraints together"
    relaxations = [text for name in goal.bounds if (text := _least_with_the_others(problem, goal, name))]
    if relaxations:
        return "the bounds exclude each other; any one of these is enough: " + "; or ".join(relaxations)
    return next((text for text in parts if text), "no single bound can be relaxed to make a plan possible")


def _missing_penalty(problem: PipelineProblem, max_penalty: float) -> str:
    """Say by how much the penalty bound is below what fits into memory, empty where it is not."""
    from dse.partition.solve import least_penalty

    least = least_penalty(problem)
    if least.bound is None or least.value is None or least.value <= max_penalty:
        return ""
    return (
        f"penalty: the bound is {max_penalty:.6g}, and the least penalty that fits into memory "
        f"is {least.value:.6g} (proven to be at least {least.bound:.6g}): raise it by "
        f"{least.value - max_penalty:.6g}"
    )


def _least_with_the_others(problem: PipelineProblem, goal: Goal, name: Objective) -> str:
    """Return how far one bound must be raised while all others stay, empty where that does not help."""
    from dse.partition.solve import Planner

    alone = replace(goal, objective=name, theta_s=0.0).with_bound(name, None)
    solution = Planner(problem, alone, Limits(time_s=RELAXATION_TIME_S, gap_frac=1e-4)).solve(
        goal.max_penalty, explain=False
    )
    if solution.value is None or solution.bound is None:
        return ""
    return (
        f"{LABELS[name]} at most {solution.value:.5g} {UNITS[name]} instead of {goal.bounds[name]:.5g} "
        f"(proven to be at least {solution.bound:.5g})"
    )


def missing_bytes(problem: PipelineProblem) -> tuple[float, list[str], bool] | None:
    """Return the smallest sum of missing bytes over sequences and cuts, and the devices that lack them.

    None where no cut avoids layers that its device cannot run. At most ``MAX_SEQUENCES`` sequences are looked
    at, those of most devices; the last value says whether these are all, so that the sum is the least and not
    an upper bound of it.
    """
    best: tuple[float, list[str]] | None = None
    factory = LaneFactory(problem, Goal(), quality_only=True)
    sequences = factory.sequences()
    ((p, d),) = factory.pairs()
    for devices in sequences[:MAX_SEQUENCES]:
        lane = factory.lane(devices, p, d)
        found = _least_excess(lane)
        if found is not None and (best is None or found[0] < best[0]):
            best = (found[0], [problem.devices[lane.devices[s]] for s in found[1]])
    return None if best is None else (*best, len(sequences) <= MAX_SEQUENCES)


def _least_excess(lane: Lane) -> tuple[float, list[int]] | None:
    """Return the least sum over a lane's stages of the bytes above their room, and the stages above theirs.

    Dynamic programming over the boundaries: O(n L^2).
    """
    n_positions = lane.n_layers + 1
    ahead = np.arange(n_positions)[:, None] < np.arange(n_positions)[None, :]
    total = np.where(np.arange(n_positions) == 0, 0.0, np.inf)
    came, excess = [], []
    for s in range(lane.n):
        need = lane.least_memory[s][None, :] - lane.least_memory[s][:, None]
        runs = ahead & (lane.n_unusable[s][None, :] == lane.n_unusable[s][:, None])
        over = np.where(runs, np.maximum(need - lane.room[s], 0.0), np.inf)
        sums = total[:, None] + over
        came.append(sums.argmin(axis=0))
        excess.append(over)
        total = sums.min(axis=0)
    if not np.isfinite(total[-1]):
        return None
    end, above = lane.n_layers, []
    for s in reversed(range(lane.n)):
        start = int(came[s][end])
        if excess[s][start, end] > 0:
            above.append(s)
        end = start
    return float(total[-1]), above[::-1]
