"""What an arrangement costs: the objective, the memory of its stages, and whether it is allowed at all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cost_models.pipeline import pipeline_times
from dse.partition.problem import Arrangement, Array, Formula, Goal, Objective, PipelineProblem

REL_TOL = 1e-9


@dataclass(frozen=True)
class StageUse:
    """Use of the stages of an arrangement, in pipeline order.

    Attributes:
        devices: (S) device indices.
        prefill_s, decode_s: (S) time of one micro-batch, embedding and head included.
        memory_bytes: (S) weights, KV cache, and the activations where the problem states them.
        hop_prefill_s, hop_decode_s: transfers to the next stage, and the hand-over at the end of the prefill.
    """

    devices: tuple[int, ...]
    prefill_s: Array
    decode_s: Array
    memory_bytes: Array
    hop_prefill_s: Array
    hop_decode_s: Array


def stage_use(problem: PipelineProblem, arrangement: Arrangement) -> StageUse:
    """Return times and memory of every stage."""
    p = problem.prefill_micro_batches.index(arrangement.prefill_micro_batch)
    d = problem.decode_micro_batches.index(arrangement.decode_micro_batch)
    choices = np.asarray(arrangement.choices)
    devices = tuple(stage[0] for stage in arrangement.stages)
    prefill, decode, memory = np.zeros((3, len(devices)))
    for s, (device, first, end) in enumerate(arrangement.stages):
        layers, ks = np.arange(first, end), choices[first:end]
        prefill[s] = problem.prefill_s[p, device, layers, ks].sum()
        decode[s] = problem.decode_s[d, device, layers, ks].sum()
        memory[s] = problem.memory_bytes[layers, ks].sum()
    start, stop = devices[0], devices[-1]
    prefill[0] += problem.first_prefill_s[p, start]
    prefill[-1] += problem.last_prefill_s[p, stop]
    decode[0] += problem.first_decode_s[d, start]
    decode[-1] += problem.last_decode_s[d, stop]
    memory[0] += problem.first_bytes
    memory[-1] += problem.last_bytes
    if len(devices) == 1:
        memory[0] -= problem.tied_bytes
    if problem.activation_bytes is not None:
        memory += problem.activation_bytes[p, d, list(devices)]
    return StageUse(
        devices,
        prefill,
        decode,
        memory,
        problem.prefill_hops_s(devices, p),
        problem.decode_hops_s(devices, d),
    )


def ring_floor_s(problem: PipelineProblem, arrangement: Arrangement) -> tuple[Array, Array]:
    """Return the (S,) transfer from each stage to the next one of the ring, prefill and decode.

    LLM-PQ overlaps transfers with computing, so that they are a floor of the stage time (section 1.1 of its
    formulation); the last stage sends to the first. One stage sends nothing.
    """
    p = problem.prefill_micro_batches.index(arrangement.prefill_micro_batch)
    d = problem.decode_micro_batches.index(arrangement.decode_micro_batch)
    devices = [stage[0] for stage in arrangement.stages]
    if len(devices) == 1:
        return np.zeros(1), np.zeros(1)
    pairs = list(zip(devices, devices[1:] + devices[:1], strict=True))
    return (
        np.array([problem.hop_prefill_s[p, a, b] for a, b in pairs]),
        np.array([problem.hop_decode_s[d, a, b] for a, b in pairs]),
    )


def penalty_of(problem: PipelineProblem, arrangement: Arrangement) -> float:
    """Return the summed penalty of the choices."""
    layers = np.arange(len(arrangement.choices))
    return float(problem.penalty[layers, list(arrangement.choices)].sum())


def objective_s(problem: PipelineProblem, goal: Goal, arrangement: Arrangement) -> float:
    """Return the goal's objective in its own unit, ``theta_s`` times the penalty included."""
    value = quantity(problem, goal, arrangement, goal.objective)
    if goal.theta_s == 0.0:
        return value
    return value + goal.theta_s * penalty_of(problem, arrangement)


def quantity(problem: PipelineProblem, goal: Goal, arrangement: Arrangement, name: Objective) -> float:
    """Return what an arrangement costs in one of the quantities of ``Goal``.

    "time": see ``batch_seconds``; "ttft" and "tpot": ``cost_models.pipeline``. "throughput": the busiest
    station's seconds per batch, k Tp_s + (n - 1) m Td_s, or what one request stays at least, sum Tp + (n - 1)
    sum Td. "energy": dynamic joules and the static power of the used devices over the whole time, per
    generated token. "cost": their rent, per million generated tokens.

    Raises:
        ValueError: the problem has no energy tables or prices.
    """
    if name == "time":
        return batch_seconds(problem, goal.formula, arrangement)
    use = stage_use(problem, arrangement)
    k = problem.n_prefill_passes(arrangement.prefill_micro_batch)
    m = problem.n_decode_passes(arrangement.decode_micro_batch)
    rounds = problem.output_tokens - 1
    times = pipeline_times(
        use.prefill_s, use.decode_s, use.hop_prefill_s, use.hop_decode_s, k, m, problem.output_tokens
    )
    if name == "ttft":
        return times.ttft_s
    if name == "tpot":
        return times.tpot_s
    if name == "throughput":
        prefill = np.concatenate([use.prefill_s, use.hop_prefill_s])
        decode = np.concatenate([use.decode_s, use.hop_decode_s])
        busiest = (k * prefill + rounds * m * decode).max()
        return float(max(busiest, prefill.sum() + rounds * decode.sum()))
    seconds = batch_seconds(problem, "round" if goal.formula == "llmpq" else goal.formula, arrangement)
    n_tokens = problem.batch * problem.output_tokens
    if name == "energy":
        if problem.energy is None:
            raise ValueError("the problem has no energy tables")
        static_w = float(problem.energy.static_w[list(use.devices)].sum())
        return (_dynamic_j(problem, arrangement, k, m * rounds) + static_w * seconds) / n_tokens
    prices = [None if problem.price_usd_per_h is None else problem.price_usd_per_h[d] for d in use.devices]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        raise ValueError("the problem lacks the price of a device")
    return sum(known) / 3600 * seconds / n_tokens * 1e6


def _dynamic_j(problem: PipelineProblem, arrangement: Arrangement, k: int, rounds: int) -> float:
    """Return the joules of k prefill micro-batches and of so many decode rounds of one micro-batch."""
    energy = problem.energy
    assert energy is not None
    p = problem.prefill_micro_batches.index(arrangement.prefill_micro_batch)
    d = problem.decode_micro_batches.index(arrangement.decode_micro_batch)
    first, last = arrangement.stages[0][0], arrangement.stages[-1][0]
    total = k * (energy.first_prefill_j[p, first] + energy.last_prefill_j[p, last])
    total += rounds * (energy.first_decode_j[d, first] + energy.last_decode_j[d, last])
    for device, begin, end in arrangement.stages:
        layers, ks = np.arange(begin, end), list(arrangement.choices[begin:end])
        total += k * energy.prefill_j[p, device, layers, ks].sum()
        total += rounds * energy.decode_j[d, device, layers, ks].sum()
    for (a, _, _), (b, _, _) in pairwise(arrangement.stages):
        total += k * energy.hop_prefill_j[p, a, b] + rounds * energy.hop_decode_j[d, a, b]
    return float(total)


def batch_seconds(problem: PipelineProblem, formula: Formula, arrangement: Arrangement) -> float:
    """Return the seconds of the batch job.

    "round": ``cost_models.pipeline``. "makespan": the last of the n - 1 rounds takes the sum of the stations
    plus (m - 1) times the slowest instead, which is when the last micro-batch leaves the last stage. "llmpq"
    (arXiv 2403.01136): sum_j Tp_j + (ceil(B/eta)-1) max Tp + sum_j Td_j + (ceil(B/xi)-1)(n-1) max Td, each
    T_j at least its transfer.
    """
    use = stage_use(problem, arrangement)
    n_prefill = problem.n_prefill_passes(arrangement.prefill_micro_batch)
    n_decode = problem.n_decode_passes(arrangement.decode_micro_batch)
    if formula == "llmpq":
        floor_p, floor_d = ring_floor_s(problem, arrangement)
        prefill, decode = np.maximum(use.prefill_s, floor_p), np.maximum(use.decode_s, floor_d)
        return float(
            prefill.sum()
            + (n_prefill - 1) * prefill.max()
            + decode.sum()
            + (n_decode - 1) * (problem.output_tokens - 1) * decode.max()
        )
    times = pipeline_times(
        use.prefill_s,
        use.decode_s,
        use.hop_prefill_s,
        use.hop_decode_s,
        n_prefill,
        n_decode,
        problem.output_tokens,
    )
    if formula == "round" or problem.output_tokens == 1:
        return times.total_s
    stations = np.concatenate([use.decode_s, use.hop_decode_s])
    last_round_s = float(stations.sum() + (n_decode - 1) * stations.max())
    return times.total_s + last_round_s - times.tpot_s


def violations(problem: PipelineProblem, goal: Goal, arrangement: Arrangement) -> list[str]:
    """Return what the arrangement breaks, one sentence each; empty where it is feasible."""
    broken: list[str] = []
    use = stage_use(problem, arrangement)
    expected = 0
    for (device, first, end), memory in zip(arrangement.stages, use.memory_bytes, strict=True):
        name = problem.devices[device]
        if first != expected or end <= first:
            broken.append(f"stage of {name} must start at layer {expected}, but has [{first}, {end})")
        expected = end
        if memory > problem.capacity_bytes[device] * (1 + REL_TOL):
            over = memory - problem.capacity_bytes[device]
            broken.append(f"{name} needs {over:.0f} bytes more than it has")
        broken.extend(
            f"{name} cannot run choice {choice} of layer {layer}"
            for layer, choice in enumerate(arrangement.choices[first:end], start=first)
            if not problem.allowed[device, layer, choice]
        )
    if expected != len(arrangement.choices):
        broken.append(f"stages end at layer {expected} of {len(arrangement.choices)}")
    if not _is_candidate_order(problem, use.devices):
        broken.append(f"devices {use.devices} are not in a candidate order")
    if goal.max_penalty is not None:
        penalty = penalty_of(problem, arrangement)
        if penalty > goal.max_penalty + REL_TOL * abs(goal.max_penalty):
            broken.append(f"penalty {penalty:.6g} is above {goal.max_penalty:.6g}")
    if goal.max_devices is not None and len(use.devices) > goal.max_devices:
        broken.append(f"{len(use.devices)} devices are more than {goal.max_devices}")
    for name, bound in goal.bounds.items():
        value = quantity(problem, goal, arrangement, name)
        if value > bound + REL_TOL * abs(bound):
            broken.append(f"{name} {value:.6g} is above {bound:.6g}")
    return broken


def _is_candidate_order(problem: PipelineProblem, devices: tuple[int, ...]) -> bool:
    """Whether some candidate order has ``devices`` as a subsequence (or as a whole, without empty stages)."""
    for order in problem.orders:
        rest = iter(order)
        if all(device in rest for device in devices) and (problem.allow_empty or len(devices) == len(order)):
            return True
    return False
