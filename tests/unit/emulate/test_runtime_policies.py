"""Cache policies, phases and static activations on a tiny model, against full precision and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.emulate.cache_policy import attend, attended, power_of_two_probabilities, quantized_keys
from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.phases import Phase, applied_by_position, decode_bits
from dse.emulate.runtime import applied_with
from dse.emulate.static_activations import measured_ranges, static_activations
from dse.errors import ConfigError
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.policy import CachePolicy, RuntimePolicy
from dse.quantize import fake_quantize
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "block")
KV = parse_format("int2_head_asym")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmulatedModel:
    return EmulatedModel.load(
        write_tiny_llama(tmp_path_factory.mktemp("tiny")), GRAPH, UNITS, dtype="float32"
    )


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))


def _formats(model: EmulatedModel, precision: str) -> TensorFormats:
    return model.formats_of(Assignment(tuple((u.name, parse_precision(precision)) for u in UNITS)))


def _logits(model: EmulatedModel, ids: Tensor, formats: TensorFormats, policy: CachePolicy) -> Tensor:
    with model.applied(formats), attended(model, policy):
        return model.logits(ids)


def test_policies_at_their_limits(model: EmulatedModel, ids: Tensor) -> None:
    """No policy is what the plain quantized cache does; a window of the whole length is full precision."""
    full = model.logits(ids)
    formats = _formats(model, "bf16/bf16/int2_head_asym")
    with model.applied(formats):
        plain = model.logits(ids)
    assert torch.allclose(_logits(model, ids, formats, CachePolicy()), plain, atol=1e-4)
    for policy in (CachePolicy(window=24), CachePolicy(sinks=24)):
        assert torch.allclose(_logits(model, ids, formats, policy), full, atol=1e-4)
    assert torch.allclose(_logits(model, ids, TensorFormats(), CachePolicy()), full, atol=1e-4)
    errors = [
        float((_logits(model, ids, formats, CachePolicy(window=w)) - full).square().mean())
        for w in (0, 8, 16)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_attention_against_a_loop_over_queries() -> None:
    """Oracle: every query builds the cache that it sees, by hand; 4 heads over 2 of keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 7, 16, generator=generator) for h in (4, 2, 2))
    policy = CachePolicy(keys_per_channel=True, key_group=4, window=2, sinks=1)
    found = attend(q, k, v, 0.25, KV, policy)
    qk, qv = quantized_keys(k, KV, policy), fake_quantize(v, KV)
    for head in range(4):
        for t in range(7):
            exact = [j == 0 or t - j < 2 for j in range(t + 1)]
            keys = torch.stack([(k if e else qk)[0, head // 2, j] for j, e in enumerate(exact)])
            values = torch.stack([(v if e else qv)[0, head // 2, j] for j, e in enumerate(exact)])
            p = torch.softmax(keys @ q[0, head, t] * 0.25, 0)
            assert torch.allclose(found[0, t, head], p @ values, atol=1e-5)


def test_keys_per_channel_win_where_outliers_sit_in_channels() -> None:
    k = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(1))
    k[..., 5] *= 20
    others = torch.arange(16) != 5
    errors = {
        per_channel: float(
            (quantized_keys(k, KV, CachePolicy(keys_per_channel=per_channel)) - k)[..., others]
            .square()
            .mean()
        )
        for per_channel in (True, False)
    }
    assert errors[True] < 0.7 * errors[False]


def test_low_precision_attention(model: EmulatedModel, ids: Tensor) -> None:
    full = model.logits(ids)
    eight = CachePolicy(queries=parse_format("int8_token"), probabilities=parse_format("int8_token"))
    four = CachePolicy(queries=parse_format("int4_token"), probabilities=parse_format("int4_token"))
    near, far = (_logits(model, ids, TensorFormats(), policy) - full for policy in (eight, four))
    assert 0 < float(near.square().mean()) < float(far.square().mean())
    p = torch.softmax(torch.randn(50, 20, generator=torch.Generator().manual_seed(2)) * 3, -1)
    for bits in (3, 8):
        powers = power_of_two_probabilities(p, bits)
        assert torch.allclose(powers.sum(-1), torch.ones(50))
        assert bool((powers.argmax(-1) == p.argmax(-1)).float().mean() > 0.8)
    shares = power_of_two_probabilities(p, 8)
    ratio = (shares[:, :1] / shares).log2()
    assert torch.allclose(ratio, ratio.round(), atol=1e-4)


def test_phases_equal_prefill_and_decode(model: EmulatedModel, ids: Tensor) -> None:
    """Oracle: prefill with one set of weights, then decode token by token with the other."""
    high, low = _formats(model, "int4_g32_asym"), _formats(model, "int2_g32_asym")
    with applied_by_position(model, [Phase(0, high), Phase(10, low)]):
        found = model.logits(ids)
    with torch.inference_mode():
        with model.applied(high):
            step = model.module(input_ids=ids[:, :10], use_cache=True)
            expected, cache = [step.logits], step.cache
        with model.applied(low):
            for t in range(10, 24):
                step = model.module(input_ids=ids[:, t : t + 1], cache=cache, use_cache=True)
                expected.append(step.logits)
                cache = step.cache
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-3)
    with applied_by_position(model, [Phase(0, high), Phase(30, low)]):
        late = model.logits(ids)
    with model.applied(high):
        assert torch.allclose(late, model.logits(ids), atol=1e-4)
    assert decode_bits([(0, 4.0), (85, 3.0)], 255) == pytest.approx((85 * 4 + 170 * 3) / 255)
    for phases in ([], [Phase(1, high)], [Phase(0, high), Phase(0, low)]):
        with pytest.raises(ConfigError, match="start"), applied_by_position(model, phases):
            pass
    with (
        pytest.raises(ConfigError, match="cache"),
        applied_by_position(model, [Phase(0, _formats(model, "bf16/bf16/int8_head"))]),
    ):
        pass


def test_static_activations(model: EmulatedModel, ids: Tensor) -> None:
    """With the range of the very input they are the dynamic ones; a smaller range saturates."""
    path = "model.layers.0.mlp.down_proj"
    fmt = parse_format("int8")
    ranges = measured_ranges(model, (path,), ids[:1])
    with model.applied(TensorFormats(activations=((path, fmt),), first_layer=0)):
        dynamic = model.logits(ids[:1])
    with static_activations(model, ((path, fmt),), ranges):
        assert torch.allclose(model.logits(ids[:1]), dynamic, atol=1e-5)
    low, high = ranges[path]
    with static_activations(model, ((path, fmt),), {path: (low / 8, high / 8)}):
        assert not torch.allclose(model.logits(ids[:1]), dynamic, atol=1e-2)
    for formats, known, part in (
        (((path, parse_format("int8_token")),), ranges, "per tensor"),
        (((path, fmt),), {}, "no measured"),
    ):
        with pytest.raises(ConfigError, match=part), static_activations(model, formats, known):
            pass


def test_a_model_of_integer_products_is_the_fake_quantized_one(model: EmulatedModel, ids: Tensor) -> None:
    formats = _formats(model, "int8_row/int8_token/bf16")
    with model.applied(formats):
        expected = model.logits(ids)
    with applied_with(model, formats, RuntimePolicy(integer_products=True)):
        found = model.logits(ids)
    assert torch.allclose(found, expected, atol=2e-2 * float(expected.abs().max()))
    assert not torch.equal(found, model.logits(ids))
    with (
        pytest.raises(ConfigError, match="integer weights and activations"),
        applied_with(model, _formats(model, "int4_g32"), RuntimePolicy(integer_products=True)),
    ):
        pass


def test_exact_columns_reach_every_way_of_rounding_inputs(model: EmulatedModel, ids: Tensor) -> None:
    """With every column of every linear kept exact nothing is rounded, whichever policy rounds the inputs."""
    formats = _formats(model, "bf16/int2_tensor/bf16")
    paths = tuple(path for path, _ in formats.activations)
    full = model.logits(ids)
    ranges = measured_ranges(model, paths, ids)
    phases = [Phase(0, formats), Phase(8, formats)]
    with applied_by_position(model, phases):
        assert not torch.allclose(model.logits(ids), full, atol=1e-3)
    exact = {path: range(model.linear(path)[0].weight.shape[1]) for path in paths}
    try:
        model.prepare({}, "exact", exact)
        with static_activations(model, formats.activations, ranges):
            assert torch.allclose(model.logits(ids), full, atol=1e-4)
        with applied_by_position(model, phases):
            assert torch.allclose(model.logits(ids), full, atol=1e-4)
    finally:
        model.became("undone")


def test_ranges_leave_out_exact_columns(model: EmulatedModel, ids: Tensor) -> None:
    path = "model.layers.0.mlp.down_proj"
    wide = measured_ranges(model, (path,), ids)[path]
    seen = torch.cat([_input_of(model, path, part) for part in ids.split(1)])
    loud = int(seen.abs().amax(0).argmax())
    try:
        model.prepare({}, "exact", {path: [loud]})
        low, high = measured_ranges(model, (path,), ids)[path]
    finally:
        model.became("undone")
    rest = torch.cat([seen[:, :loud], seen[:, loud + 1 :]], dim=1)
    assert (low, high) == (float(rest.min()), float(rest.max()))
    assert max(-wide[0], wide[1]) > max(-low, high)


def _input_of(model: EmulatedModel, path: str, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.linear(path)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    model.logits(ids)
    hook.remove()
    return seen[0]
