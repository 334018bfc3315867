"""Candidate orders. Oracle: all permutations, told apart by their devices' machines."""

from __future__ import annotations

import itertools
import time

import numpy as np

from dse.partition.lanes import LaneFactory
from dse.partition.orders import _arrangements, candidate_orders
from dse.partition.problem import Goal
from hardware_specs.loader import load_cluster
from tests.pipeline_problems import random_problem


def test_arrangements_are_all_distinct_permutations() -> None:
    found = list(_arrangements([2, 3, 1]))
    assert sorted(found) == sorted(set(itertools.permutations((0, 0, 1, 1, 1, 2))))


def test_ten_single_machines_have_all_their_orders() -> None:
    cluster = load_cluster("helix_10")
    orders, is_all = candidate_orders(cluster)
    kinds = dict(cluster.devices)
    names = [name for name, _ in cluster.devices]
    assert is_all
    assert len({tuple(kinds[names[i]] for i in order) for order in orders}) == len(orders) == 210
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_twenty_four_machines_are_quick_and_say_that_orders_are_missing() -> None:
    began = time.process_time()
    orders, is_all = candidate_orders(load_cluster("helix_24"))
    assert not is_all
    assert len(orders) == 6
    assert time.process_time() - began < 5


def test_sequences_of_unlike_devices_are_all_subsets_in_every_order() -> None:
    problem = next(
        p
        for p in (random_problem(seed, n_devices=3, n_layers=4) for seed in range(50))
        if p.allow_empty and len(set(p.device_types)) == 3 and np.unique(p.hop_prefill_s).size > 1
    )
    expected = {s for n in (1, 2, 3) for s in itertools.permutations(range(3), n)}
    assert set(LaneFactory(problem, Goal()).sequences()) == expected
