"""Runtime policies as documents."""

from __future__ import annotations

import pytest

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.plan import Plan
from dse.policy import CachePolicy, PhaseStep, RuntimePolicy

FULL = RuntimePolicy(
    cache=CachePolicy(
        keys_per_channel=True,
        key_group=16,
        window=8,
        sinks=2,
        queries=parse_format("int8_token"),
        probabilities=parse_format("fp8_e4m3_token"),
        softmax_bits=4,
    ),
    phases=(PhaseStep(4, parse_format("int4_g64")), PhaseStep(9, None, parse_format("int8_token"))),
)


@pytest.mark.parametrize(
    "policy",
    [RuntimePolicy(), FULL, RuntimePolicy(static_activations=True), RuntimePolicy(integer_products=True)],
)
def test_round_trip(policy: RuntimePolicy) -> None:
    document = policy.to_json()
    assert RuntimePolicy.from_json(document) == policy
    assert (document == {}) == policy.is_default


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"cach": {}}, "did you mean 'cache'"),
        ({"cache": {"windw": 3}}, "cache: unknown key 'windw'"),
        ({"cache": {"window": "3"}}, "cache.window: must be int"),
        ({"cache": {"window": -1}}, "cache.window: must be at least 0"),
        ({"cache": {"softmax_bits": 9}}, "cache.softmax_bits: must be 1 to 8"),
        ({"cache": {"queries": "int9"}}, "cache.queries: unknown number format"),
        ({"cache": 3}, "cache: must be a mapping"),
        ({"phases": {}}, "phases: must be a list"),
        ({"phases": [{"weights": "int4"}]}, "phases.0: the key 'start' is missing"),
        ({"phases": [{"start": 0}]}, "phases.0.start: must be at least 1"),
        ({"phases": [{"start": 5}, {"start": 5}]}, "phases: positions must rise"),
        ({"phases": [{"start": 5}], "static_activations": True}, "cannot be combined"),
    ],
)
def test_mistakes_are_one_line_with_their_place(document: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RuntimePolicy.from_json(document)
    assert "\n" not in str(caught.value)


def test_a_plan_carries_its_policy() -> None:
    plain = {
        "model": "m",
        "cluster": "c",
        "assignment": {},
        "stages": [],
        "prefill_micro_batch": 1,
        "decode_micro_batch": 1,
    }
    plan = Plan.from_json({**plain, "runtime_policy": FULL.to_json()})
    assert plan.runtime_policy == FULL
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.hash != Plan.from_json(plain).hash
    assert "runtime_policy" not in Plan.from_json(plain).to_json()
    with pytest.raises(ConfigError, match=r"runtime_policy\.cache: unknown key"):
        Plan.from_json({**plain, "runtime_policy": {"cache": {"x": 1}}})
