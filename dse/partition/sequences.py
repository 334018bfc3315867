"""Which devices may stand in which order: one sequence of each kind of interchangeable ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dse.partition.problem import Goal, PipelineProblem

MAX_SUBSET_DEVICES = 10  # of longer orders not every subset is tried


def device_sequences(problem: PipelineProblem, goal: Goal) -> list[tuple[int, ...]]:
    """Return device sequences without empty stages, the long ones first.

    Of sequences whose devices and transfers are alike one stays. Devices without a price are left out where
    the goal counts money.
    """
    n_layers = problem.memory_bytes.shape[0]
    n_most = min(n_layers, goal.max_devices or n_layers)
    seen: dict[object, tuple[int, ...]] = {}
    alike = device_kinds(problem, goal)
    hops: dict[object, int] = {}
    apart = [
        [hops.setdefault(_hop(problem, a, b), len(hops)) for b in range(len(alike))]
        for a in range(len(alike))
    ]
    for order in problem.orders:
        for devices in _subsets(order, alike) if problem.allow_empty else (order,):
            if len(devices) <= n_most and _is_priced(problem, goal, devices):
                after = devices[1:] + devices[:1]
                pairs = tuple(apart[a][b] for a, b in zip(devices, after, strict=True))
                if goal.formula != "llmpq" or len(devices) == 1:
                    pairs = pairs[:-1]
                seen.setdefault((tuple(alike[device] for device in devices), pairs), devices)
    return sorted(seen.values(), key=lambda devices: (-len(devices), devices))


def device_kinds(problem: PipelineProblem, goal: Goal) -> tuple[int, ...]:
    """Return a number for each device, the same for devices that are equal, transfers apart."""
    n = len(problem.devices)
    prices = problem.price_usd_per_h if "cost" in goal.quantities else None
    kinds = zip(problem.device_types, problem.capacity_bytes.tolist(), prices or n * (None,), strict=True)
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(kind, len(numbers)) for kind in kinds)


def _hop(problem: PipelineProblem, a: int, b: int) -> object:
    """Return what makes two transfers equal."""
    return tuple(problem.hop_prefill_s[:, a, b]), tuple(problem.hop_decode_s[:, a, b])


def _is_priced(problem: PipelineProblem, goal: Goal, devices: tuple[int, ...]) -> bool:
    """Whether the devices' prices are known, where they matter."""
    if "cost" not in goal.quantities:
        return True
    prices = problem.price_usd_per_h
    return prices is not None and all(prices[device] is not None for device in devices)


def _subsets(order: tuple[int, ...], alike: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield what may be left of an order without its unused devices.

    Of more than ``MAX_SUBSET_DEVICES`` whole runs of like devices are used or not.
    """
    parts: list[tuple[int, ...]] = [(device,) for device in order]
    if len(order) > MAX_SUBSET_DEVICES:
        parts = [tuple(run) for _, run in itertools.groupby(order, key=lambda device: alike[device])]
    if len(parts) > MAX_SUBSET_DEVICES:
        yield order
        return
    for mask in range(1, 1 << len(parts)):
        yield tuple(device for i, part in enumerate(parts) if mask >> i & 1 for device in part)
