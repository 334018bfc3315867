"""Pipeline problems for tests: random small ones with an exhaustive oracle, and the published cluster."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dse.partition.problem import Arrangement, Goal, PipelineProblem

MIB = 2**20


def random_problem(
    seed: int, *, n_layers: int = 6, n_devices: int = 2, n_choices: int = 3, sizes: tuple[int, ...] = (2,)
) -> PipelineProblem:
    """Random integer tables; every variant of the problem (hops, ends, tie, empty stages) is drawn too."""
    rng = np.random.default_rng(seed)

    def table(*shape: int, high: int = 20, present: float = 1.0) -> np.ndarray:
        return rng.integers(1, high, shape).astype(float) * (rng.random() < present)

    n = len(sizes)
    same_type = rng.random() < 0.3
    memory = table(n_layers, n_choices)
    prefill = table(n, n_devices, n_layers, n_choices)
    decode = table(n, n_devices, n_layers, n_choices)
    allowed = rng.random((n_devices, n_layers, n_choices)) > rng.choice([0.0, 0.1, 0.3])
    capacity = rng.integers(5 * n_layers, 14 * n_layers, n_devices).astype(float)
    hop_prefill, hop_decode = table(n, 1, 1, high=60, present=0.5), table(n, 1, 1, high=60, present=0.5)
    ends = [table(n, n_devices, present=0.5) for _ in range(4)]
    if same_type:
        for array in (prefill, decode, *ends):
            array[:, 1:] = array[:, :1]
        allowed[1:] = allowed[:1]
        capacity[1:] = capacity[0]
        hop_prefill, hop_decode = (
            np.broadcast_to(h, (n, n_devices, n_devices)) for h in (hop_prefill, hop_decode)
        )
    else:
        spread = rng.integers(1, 3, (n_devices, n_devices)).astype(float)
        hop_prefill, hop_decode = hop_prefill * spread, hop_decode * spread
    return PipelineProblem(
        devices=tuple(f"d/{i}" for i in range(n_devices)),
        device_types=tuple("same" if same_type else f"type{i}" for i in range(n_devices)),
        orders=tuple(itertools.permutations(range(n_devices))),
        prefill_micro_batches=sizes,
        decode_micro_batches=sizes,
        prefill_s=prefill,
        decode_s=decode,
        allowed=allowed,
        memory_bytes=memory,
        capacity_bytes=capacity,
        first_bytes=float(rng.integers(0, 8)),
        last_bytes=float(rng.integers(0, 8)),
        tied_bytes=float(rng.integers(0, 3)),
        first_prefill_s=ends[0],
        first_decode_s=ends[1],
        last_prefill_s=ends[2],
        last_decode_s=ends[3],
        hop_prefill_s=np.ascontiguousarray(hop_prefill),
        hop_decode_s=np.ascontiguousarray(hop_decode),
        penalty=table(n_layers, n_choices),
        batch=int(rng.choice([2, 4, 8])),
        output_tokens=int(rng.choice([1, 2, 10])),
        allow_empty=bool(rng.random() < 0.5),
    )


def exhaustive(problem: PipelineProblem, goal: Goal) -> tuple[float, float] | None:
    """Return the least (value, penalty) by enumeration, or None. Shares no formula with the planner."""
    n_layers, n_choices = problem.memory_bytes.shape
    bits = np.array(list(itertools.product(range(n_choices), repeat=n_layers)))
    layers = np.arange(n_layers)
    penalty = problem.penalty[layers, bits].sum(axis=1)
    fine = np.ones(len(bits), bool) if goal.max_penalty is None else penalty <= goal.max_penalty + 1e-9
    best: tuple[float, float] | None = None
    for devices in _sequences(problem):
        for inner in itertools.combinations(range(1, n_layers), len(devices) - 1):
            cut = (0, *inner, n_layers)
            of_layer = np.repeat(devices, np.diff(cut))
            ok = fine & problem.allowed[of_layer, layers, bits].all(axis=1)
            ok &= _fits(problem, devices, cut, bits)
            if not ok.any():
                continue
            for p, d in itertools.product(
                range(len(problem.prefill_micro_batches)), range(len(problem.decode_micro_batches))
            ):
                seconds = _seconds(problem, goal, devices, cut, bits[ok], p, d)
                value = seconds + goal.theta_s * penalty[ok]
                index = int(np.lexsort((penalty[ok], value))[0])
                found = (float(value[index]), float(penalty[ok][index]))
                best = found if best is None else min(best, found)
    return best


def by_mixed_integer_program(problem: PipelineProblem, goal: Goal) -> float | None:
    """Return the optimum of the "round" formula by scipy's HiGHS over z[stage, layer, choice], or None.

    One program per order and pair of micro-batches, in the textbook formulation; needs ``allow_empty`` False.
    """
    assert goal.formula == "round"
    assert not problem.allow_empty
    values = [
        _lane_program(problem, goal, devices, p, d)
        for devices in problem.orders
        for p in range(len(problem.prefill_micro_batches))
        for d in range(len(problem.decode_micro_batches))
    ]
    found = [value for value in values if value is not None]
    return min(found) if found else None


def _lane_program(
    problem: PipelineProblem, goal: Goal, devices: tuple[int, ...], p: int, d: int
) -> float | None:
    n, (n_layers, n_choices) = len(devices), problem.memory_bytes.shape
    n_z = n * n_layers * n_choices
    index = np.arange(n_z).reshape(n, n_layers, n_choices)
    k = math.ceil(problem.batch / problem.prefill_micro_batches[p])
    m = math.ceil(problem.batch / problem.decode_micro_batches[d])
    slow_p, slow_round = n_z, n_z + 1
    rows: list[np.ndarray] = []
    low: list[float] = []
    high: list[float] = []

    def row(least: float, most: float) -> np.ndarray:
        rows.append(np.zeros(n_z + 2))
        low.append(least)
        high.append(most)
        return rows[-1]

    for layer in range(n_layers):
        row(1, 1)[index[:, layer].ravel()] = 1
    for s in range(n):
        row(1, np.inf)[index[s].ravel()] = 1  # no empty stage
        for layer in range(1, n_layers):  # a layer is no earlier in the pipeline than the one before it
            monotone = row(0, np.inf)
            monotone[index[: s + 1, layer - 1].ravel()] = 1
            monotone[index[: s + 1, layer].ravel()] -= 1
    hops = [
        (problem.hop_prefill_s[p, a, b], problem.hop_decode_s[d, a, b])
        for a, b in itertools.pairwise(devices)
    ]
    sum_hop_p, sum_hop_d = (sum(h[i] for h in hops) for i in (0, 1))
    ends_p, ends_d = np.zeros((2, n))
    for array, first, last, at in (
        (ends_p, problem.first_prefill_s, problem.last_prefill_s, p),
        (ends_d, problem.first_decode_s, problem.last_decode_s, d),
    ):
        array[0] += first[at, devices[0]]
        array[-1] += last[at, devices[-1]]
    objective = np.zeros(n_z + 2)
    objective[slow_p], objective[slow_round] = k - 1, problem.output_tokens - 1
    whole_round = row(-np.inf, -(ends_d.sum() + sum_hop_d))
    whole_round[slow_round] = -1
    for s, device in enumerate(devices):
        times_p, times_d = problem.prefill_s[p, device].ravel(), problem.decode_s[d, device].ravel()
        objective[index[s].ravel()] = times_p + goal.theta_s * problem.penalty.ravel()
        whole_round[index[s].ravel()] = times_d
        stage_p, stage_d = row(-np.inf, -ends_p[s]), row(-np.inf, -m * ends_d[s])
        stage_p[index[s].ravel()], stage_p[slow_p] = times_p, -1
        stage_d[index[s].ravel()], stage_d[slow_round] = m * times_d, -1
        room = (
            problem.capacity_bytes[device]
            - problem.first_bytes * (s == 0)
            - problem.last_bytes * (s == n - 1)
        )
        row(-np.inf, room + problem.tied_bytes * (n == 1))[index[s].ravel()] = problem.memory_bytes.ravel()
    if goal.max_penalty is not None:
        row(-np.inf, goal.max_penalty)[:n_z] = np.tile(problem.penalty.ravel(), n)
    upper = np.concatenate([problem.allowed[list(devices)].ravel().astype(float), [np.inf, np.inf]])
    least = np.zeros(n_z + 2)
    least[slow_p] = max((h[0] for h in hops), default=0.0)
    least[slow_round] = m * max((h[1] for h in hops), default=0.0)
    result = milp(
        objective,
        constraints=LinearConstraint(np.array(rows), low, high),
        integrality=np.concatenate([np.ones(n_z), [0, 0]]),
        bounds=Bounds(least, upper),
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else float(result.fun + ends_p.sum() + sum_hop_p)


def _sequences(problem: PipelineProblem) -> list[tuple[int, ...]]:
    if not problem.allow_empty:
        return list(problem.orders)
    return sorted(
        {
            devices
            for order in problem.orders
            for n in range(1, len(order) + 1)
            for devices in itertools.combinations(order, n)
        }
    )


def _fits(
    problem: PipelineProblem, devices: tuple[int, ...], cut: tuple[int, ...], bits: np.ndarray
) -> np.ndarray:
    layers = np.arange(bits.shape[1])
    used = problem.memory_bytes[layers, bits]
    ok = np.ones(len(bits), bool)
    for s, device in enumerate(devices):
        need = used[:, cut[s] : cut[s + 1]].sum(axis=1)
        need = need + problem.first_bytes * (s == 0) + problem.last_bytes * (s == len(devices) - 1)
        need = need - problem.tied_bytes * (len(devices) == 1)
        ok &= need <= problem.capacity_bytes[device]
    return ok


def _seconds(
    problem: PipelineProblem,
    goal: Goal,
    devices: tuple[int, ...],
    cut: tuple[int, ...],
    bits: np.ndarray,
    p: int,
    d: int,
) -> np.ndarray:
    layers = np.arange(bits.shape[1])
    k = math.ceil(problem.batch / problem.prefill_micro_batches[p])
    m = math.ceil(problem.batch / problem.decode_micro_batches[d])
    n, last = problem.output_tokens, len(devices) - 1
    tp, td, cp, cd = [], [], [], []
    for s, device in enumerate(devices):
        part = slice(cut[s], cut[s + 1])
        tp.append(problem.prefill_s[p, device, layers[part], bits[:, part]].sum(axis=1))
        td.append(problem.decode_s[d, device, layers[part], bits[:, part]].sum(axis=1))
        if s == 0:
            tp[0] = tp[0] + problem.first_prefill_s[p, device]
            td[0] = td[0] + problem.first_decode_s[d, device]
        if s == last:
            tp[s] = tp[s] + problem.last_prefill_s[p, device]
            td[s] = td[s] + problem.last_decode_s[d, device]
        following = devices[(s + 1) % len(devices)]
        cp.append(problem.hop_prefill_s[p, device, following])
        cd.append(problem.hop_decode_s[d, device, following])
    if goal.formula != "llmpq":
        stations_p = np.stack([*tp, *(np.full(len(bits), c) for c in cp[:-1])])
        stations_d = np.stack([*td, *(np.full(len(bits), c) for c in cd[:-1])])
        fill = stations_p.sum(axis=0) + (k - 1) * stations_p.max(axis=0)
        whole, slowest = stations_d.sum(axis=0), stations_d.max(axis=0)
        if goal.formula == "makespan" and n > 1:
            return fill + (n - 2) * np.maximum(whole, m * slowest) + whole + (m - 1) * slowest
        return fill + (n - 1) * np.maximum(whole, m * slowest)
    if last == 0:
        cp, cd = [0.0], [0.0]
    tp = [np.maximum(t, c) for t, c in zip(tp, cp, strict=True)]
    td = [np.maximum(t, c) for t, c in zip(td, cd, strict=True)]
    prefill = sum(tp) + (k - 1) * np.maximum.reduce(tp)
    return prefill + sum(td) + (m - 1) * (n - 1) * np.maximum.reduce(td)


@dataclass(frozen=True)
class PublishedPlan:
    """A recorded plan of cluster 3 and its recorded objectives, seconds."""

    name: str
    arrangement: Arrangement
    llmpq_s: float
    round_s: float


def published_cluster(folder: Path) -> tuple[PipelineProblem, list[PublishedPlan], dict[str, Any]]:
    """Return the recorded problem (both orders), its recorded plans and the data file's content."""
    data = json.loads((folder / "planning" / "llmpq_cluster3.json").read_text())
    problem = _cluster3(
        data,
        {name: np.array(t["prefill"])[None] for name, t in data["layer_time_s"].items()},
        {name: np.array(t["decode"])[None] for name, t in data["layer_time_s"].items()},
        (data["prefill_micro_batch"],),
        data["layer_memory_mib"],
    )
    plans = []
    for entry in data["recorded"]:
        order = problem.orders[entry["order"]]
        counts = np.array(entry["counts_per_stage"])
        ends = np.cumsum(counts.sum(axis=1))
        stages = tuple(
            (device, int(end - n), int(end))
            for device, end, n in zip(order, ends, counts.sum(axis=1), strict=True)
        )
        choices = tuple(int(k) for row in counts for k in np.repeat(np.arange(3), row))
        plans.append(
            PublishedPlan(
                entry["plan"],
                Arrangement(stages, choices, data["prefill_micro_batch"], data["decode_micro_batch"]),
                entry["objective_llmpq_s"],
                entry["objective_round_s"],
            )
        )
    return problem, plans, data


def measured_cluster(folder: Path) -> tuple[PipelineProblem, dict[str, Any]]:
    """Return the same cluster with the measured layer times, prefill micro-batches 2, 4 and 8.

    ``first_bytes`` is that of micro-batches 2 and 4: the tables of embedding and head (1403 MiB). At 8 the
    recorded 1872 MiB hold, because there the prefill's activations exceed the decode's.
    """
    data = json.loads((folder / "planning" / "llmpq_cluster3.json").read_text())
    times = json.loads((folder / "planning" / "opt30b_layer_times.json").read_text())
    bits = ("3", "4", "8", "16")
    table = {
        (name, phase): np.array([rows[phase][b] for b in bits]).T / 1e3
        for name, rows in times["layer_time_ms"].items()
        for phase in ("prefill", "decode")
    }
    problem = _cluster3(
        data,
        {name: table[name, "prefill"] for name in times["layer_time_ms"]},
        {name: table[name, "decode"][-1:] for name in times["layer_time_ms"]},
        tuple(times["batch_sizes"]),
        [757, *data["layer_memory_mib"]],
    )
    vocabulary, positions, hidden = 50272, 2050, times["hidden"]
    tables_bytes = (2 * vocabulary + positions) * hidden * 2
    return replace(problem, first_bytes=math.ceil(tables_bytes / MIB) * float(MIB)), times


def _cluster3(
    data: dict[str, Any],
    prefill: dict[str, np.ndarray],
    decode: dict[str, np.ndarray],
    sizes: tuple[int, ...],
    layer_mib: list[float],
) -> PipelineProblem:
    types = ("T4", "T4", "T4", "V100")
    n_layers, n, k = data["n_layers"], len(sizes), len(layer_mib)
    capacity = data["capacity_mib"]
    first = capacity["T4"] - capacity["T4_first"]
    assert first == capacity["V100"] - capacity["V100_first"]

    def spread(table: dict[str, np.ndarray]) -> np.ndarray:
        per_device = np.stack([table[name] for name in types], axis=1)  # (sizes, N, K)
        return np.repeat(per_device[:, :, None, :], n_layers, axis=2)

    nothing = np.zeros((n, 4))
    return PipelineProblem(
        devices=("t4/0", "t4/1", "t4/2", "v100/0"),
        device_types=types,
        orders=((0, 1, 2, 3), (3, 0, 1, 2)),
        prefill_micro_batches=sizes,
        decode_micro_batches=(data["decode_micro_batch"],),
        prefill_s=spread(prefill),
        decode_s=spread(decode),
        allowed=np.ones((4, n_layers, k), bool),
        memory_bytes=np.tile(np.array(layer_mib, float) * MIB, (n_layers, 1)),
        capacity_bytes=np.array([capacity[name] for name in types], float) * MIB,
        first_bytes=float(first * MIB),
        last_bytes=0.0,
        tied_bytes=0.0,
        first_prefill_s=nothing,
        first_decode_s=np.zeros((1, 4)),
        last_prefill_s=nothing,
        last_decode_s=np.zeros((1, 4)),
        hop_prefill_s=np.zeros((n, 4, 4)),
        hop_decode_s=np.zeros((1, 4, 4)),
        penalty=np.zeros((n_layers, k)),
        batch=data["batch"],
        output_tokens=data["output_tokens"],
        allow_empty=False,
    )


def only(
    problem: PipelineProblem, *, order: int | None = None, prefill: int | None = None
) -> PipelineProblem:
    """Return the problem with one order and, by index, one prefill micro-batch."""
    if order is not None:
        problem = replace(problem, orders=(problem.orders[order],))
    if prefill is not None:
        problem = replace(
            problem,
            prefill_micro_batches=(problem.prefill_micro_batches[prefill],),
            prefill_s=problem.prefill_s[prefill : prefill + 1],
            first_prefill_s=problem.first_prefill_s[prefill : prefill + 1],
            last_prefill_s=problem.last_prefill_s[prefill : prefill + 1],
            hop_prefill_s=problem.hop_prefill_s[prefill : prefill + 1],
        )
    return problem
