"""Assignments, stages and plans: validation, hashes, round trips."""

from __future__ import annotations

from typing import Any

import pytest

from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from dse.plan import Assignment, Plan, Stage

INT4, BF16 = parse_precision("int4_g64_asym"), parse_precision("bf16")
ASSIGNMENT = Assignment((("layers.0", INT4), ("layers.1", BF16)))


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "model": "m",
        "cluster": "c",
        "assignment": ASSIGNMENT,
        "stages": (Stage(("a/0",), (0, 1)), Stage(("b/0",), (1, 2))),
        "prefill_micro_batch": 1,
        "decode_micro_batch": 2,
    }
    return Plan(**(fields | changes))


def test_round_trip() -> None:
    assert Plan.from_json(plan(name="p").to_json()) == plan()
    assert Assignment.from_json(ASSIGNMENT.to_json()) == ASSIGNMENT


def test_hash_ignores_the_name_alone() -> None:
    assert plan(name="a").hash == plan(name="b").hash
    assert plan(decode_micro_batch=4).hash != plan().hash
    assert plan(stages=(Stage(("a/0",), (0, 2)),)).hash != plan().hash


def test_uniform() -> None:
    uniform = Assignment.uniform(("x", "y"), INT4)
    assert uniform.by_unit == {"x": INT4, "y": INT4}
    assert uniform.hash != Assignment.uniform(("x", "y"), BF16).hash


def test_a_unit_has_one_precision() -> None:
    with pytest.raises(ConfigError, match="assigned twice"):
        Assignment((("x", INT4), ("x", BF16)))


@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (-1, 3)])
def test_stages_are_not_empty(layers: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="first < last"):
        Stage(("a/0",), layers)


@pytest.mark.parametrize("ranges", [[(0, 1), (2, 3)], [(1, 2)], [(0, 2), (1, 3)]])
def test_stages_are_contiguous(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="contiguous"):
        plan(stages=tuple(Stage(("a/0",), pair) for pair in ranges))


@pytest.mark.parametrize("key", ["model", "stages", "assignment", "prefill_micro_batch"])
def test_missing_keys_are_named(key: str) -> None:
    document = plan().to_json()
    del document[key]
    with pytest.raises(ConfigError, match=f"{key}: is missing"):
        Plan.from_json(document)


def test_unknown_keys_are_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"prefil_chunks.*did you mean 'prefill_chunks'"):
        Plan.from_json({**plan().to_json(), "prefil_chunks": 2})
