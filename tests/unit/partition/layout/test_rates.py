"""Sums of the devices' rates against all combinations, and windows of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dse.partition.groups import device_groups
from dse.partition.layout.classes import stage_classes
from dse.partition.layout.rates import MAX_STEPS, RateWindow, rate_windows
from dse.partition.problem import Goal
from tests.factories import make_cluster, make_spec
from tests.layout_oracle import tiny_instance


def window_of(prices: dict[str, float | None], n_devices: int) -> RateWindow:
    """The window of all rents of a cluster with so many devices of each price."""
    specs = {name: make_spec(name, price=price) for name, price in prices.items()}
    cluster = make_cluster(specs, dict.fromkeys(prices, n_devices))
    instance = tiny_instance(0)
    groups = device_groups(cluster, (1, 2))
    table = instance.inputs.table(cluster, instance.workload, (1, 2))
    problem = instance.inputs.problem(table, cluster, instance.workload, groups, ((0,),)).problem
    (window,) = rate_windows(problem, stage_classes(cluster, groups), Goal(objective="cost"), 1e-3)
    return window


def test_steps_are_all_rents_that_some_devices_can_have() -> None:
    window = window_of({"a": 1.8, "b": 3.0}, 4)
    rents = {round(1.8 * a + 3.0 * b, 9) for a, b in itertools.product(range(5), repeat=2)} - {0.0}
    assert window.steps[:, 0] == pytest.approx(sorted(rents))
    assert window.steps[:, 1] == pytest.approx(sorted(rents))


def test_many_rents_are_held_by_few_steps() -> None:
    prices = dict(zip("abcd", (1.0, 1.37, 2.011, 3.1713), strict=True))
    window = window_of(dict(prices), 8)
    assert len(window.steps) <= MAX_STEPS
    rents = [np.dot(n, list(prices.values())) for n in itertools.product(range(9), repeat=4)]
    for rent in sorted(rents)[1:]:
        at = int(np.searchsorted(window.steps[:, 0], rent * (1 + 1e-12), side="right")) - 1
        assert rent <= window.steps[at, 1] * (1 + 1e-9)


def test_devices_without_a_price_have_no_rate() -> None:
    window = window_of({"a": None, "b": 2.0}, 2)
    assert set(window.of_classes) == {None, 2.0, 4.0}
    assert window.steps[:, 0] == pytest.approx([2.0, 4.0])


def test_halves_part_the_steps_until_each_is_alone() -> None:
    left, alone = [window_of({"a": 1.8, "b": 3.0}, 4)], []
    expected = left[0].steps
    while left:
        window = left.pop(0)
        halves = window.halves()
        left += halves
        alone += [] if halves else [window]
    assert np.sort(np.concatenate([window.steps for window in alone]), axis=0) == pytest.approx(expected)
