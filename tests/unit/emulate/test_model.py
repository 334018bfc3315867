"""The emulated model on a tiny random Llama: every quantized tensor equals a manual replacement."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.weights import WeightStore
from dse.errors import ConfigError
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import Unit, units_of
from dse.plan import Assignment
from dse.quantize.fake import fake_quantize
from tests.tiny_llama import HEAD_DIM, HEADS, KV_HEADS, LINEARS, tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "sublayer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> EmulatedModel:
    return EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")


@pytest.fixture
def plain(folder: Path) -> torch.nn.Module:
    """The checkpoint as transformers loads it, with its own eager attention: the oracle to edit by hand."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))


def run(model: EmulatedModel, ids: Tensor, *items: tuple[str, str]) -> Tensor:
    assignment = Assignment(tuple((unit, parse_precision(precision)) for unit, precision in items))
    with model.applied(model.formats_of(assignment)):
        return model.logits(ids)


def test_weights_equal_a_manual_replacement(
    model: EmulatedModel, plain: torch.nn.Module, ids: Tensor
) -> None:
    """Oracle: the module's weights replaced by hand, eager attention."""
    fmt = parse_format("int3_g32_asym")
    with torch.no_grad():
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            weight = plain.get_submodule(f"model.layers.1.{name}").weight
            weight.copy_(fake_quantize(weight, fmt))
        expected = plain(ids).logits
    got = run(model, ids, ("layers.1.ffn", "int3_g32_asym"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - model.logits(ids)).abs().max() > 0.01


def test_activations_equal_wrapped_forwards(
    model: EmulatedModel, plain: torch.nn.Module, ids: Tensor
) -> None:
    """Oracle: the linears' forwards wrapped by hand; only those of the assigned unit see rounded inputs."""
    fmt = parse_format("int4_token_asym")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        linear = plain.get_submodule(f"model.layers.0.{name}")
        linear.forward = lambda x, linear=linear: torch.nn.functional.linear(
            fake_quantize(x, fmt), linear.weight
        )
    with torch.no_grad():
        expected = plain(ids).logits
    got = run(model, ids, ("layers.0.attention", "bf16/int4_token_asym/bf16"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - model.logits(ids)).abs().max() > 0.01


def manual_attention(
    attention: torch.nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor], kv: str
) -> Tensor:
    """Causal grouped-query attention from its definition, rotated keys and values rounded to ``kv``."""
    batch, length, _ = hidden.shape

    def heads(name: str, count: int) -> Tensor:
        return attention.get_submodule(name)(hidden).view(batch, length, count, HEAD_DIM).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        half = HEAD_DIM // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * rope[0][:, None] + turned * rope[1][:, None]

    fmt = parse_format(kv)
    query, key = rotate(heads("q_proj", HEADS)), fake_quantize(rotate(heads("k_proj", KV_HEADS)), fmt)
    value = fake_quantize(heads("v_proj", KV_HEADS), fmt)
    out = torch.zeros_like(query)
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = query[:, head] @ key[:, group].transpose(1, 2) / math.sqrt(HEAD_DIM)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        out[:, head] = scores.masked_fill(future, -torch.inf).softmax(-1) @ value[:, group]
    return attention.get_submodule("o_proj")(out.transpose(1, 2).reshape(batch, length, -1))


@pytest.mark.parametrize("kv", ["int4_head_asym", "fp8_e4m3_head"])
def test_cache_equals_manual_attention(
    model: EmulatedModel, plain: torch.nn.Module, ids: Tensor, kv: str
) -> None:
    """Oracle: attention written out with rounded keys (after the rotary embedding) and values."""
    attention = plain.get_submodule("model.layers.1.self_attn")

    def forward(
        hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object
    ) -> tuple[Tensor, None]:
        return manual_attention(attention, hidden_states, position_embeddings, kv), None

    attention.forward = forward
    with torch.no_grad():
        expected = plain(ids).logits
    got = run(model, ids, ("layers.1.attention", f"bf16/bf16/{kv}"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - model.logits(ids)).abs().max() > 1e-3


def test_full_precision_formats_change_nothing(model: EmulatedModel, ids: Tensor) -> None:
    for name in ("bf16", "fp16", "fp32/fp16/fp32"):
        assignment = Assignment.uniform(tuple(unit.name for unit in UNITS), parse_precision(name))
        assert model.formats_of(assignment) == TensorFormats()
    assert torch.equal(run(model, ids, ("layers.0.ffn", "fp16")), model.logits(ids))


def test_leaving_restores_the_reference(model: EmulatedModel, ids: Tensor) -> None:
    before = model.logits(ids)
    weights = {name: id(parameter) for name, parameter in model.module.named_parameters()}
    everything = [(unit.name, "int4_g32/int8_token/int4_head") for unit in UNITS]
    assert not torch.equal(run(model, ids, *everything), before)
    assert torch.equal(model.logits(ids), before)
    assert {name: id(parameter) for name, parameter in model.module.named_parameters()} == weights


def test_interruption_restores_the_reference(model: EmulatedModel, ids: Tensor) -> None:
    before = model.logits(ids)
    formats = model.formats_of(
        Assignment.uniform(tuple(u.name for u in UNITS), parse_precision("int4/int4_token/int4_head"))
    )
    with pytest.raises(KeyboardInterrupt), model.applied(formats):
        raise KeyboardInterrupt
    assert torch.equal(model.logits(ids), before)


def test_contexts_do_not_nest(model: EmulatedModel) -> None:
    with model.applied(TensorFormats()), pytest.raises(RuntimeError), model.applied(TensorFormats()):
        pass


def test_granularities_meet(model: EmulatedModel) -> None:
    """The same formats from one block, two sublayers or seven linears are the same emulated model."""
    precision = parse_precision("int4_g32/int8_token/int8_head")
    expanded = [
        model.expand((unit, precision) for unit in units_of(GRAPH, granularity) if unit.layer == 1)
        for granularity in ("block", "sublayer", "linear")
    ]
    assert expanded[0] == expanded[1] == expanded[2]
    assert [path for path, _ in expanded[0].weights] == sorted(f"model.layers.1.{name}" for name in LINEARS)
    assert [path for path, _ in expanded[0].kv] == ["model.layers.1.self_attn"]
    assert expanded[0].first_layer == 1


def test_weights_are_shared_among_candidates(folder: Path, ids: Tensor) -> None:
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")
    run(model, ids, ("layers.0.ffn", "int4"), ("layers.1.ffn", "int4"))
    assert (model.store.counts.made, model.store.counts.reused) == (6, 0)
    run(model, ids, ("layers.0.ffn", "int4"), ("layers.1.ffn", "int3"))
    assert (model.store.counts.made, model.store.counts.reused) == (9, 3)


def test_store_is_bounded_and_drops_the_oldest() -> None:
    weight = torch.randn(8, 8)
    store = WeightStore(capacity_bytes=2 * weight.nbytes)
    for bits in (2, 3, 2, 4):  # 3 is the least recently used when 4 comes
        store.get("a", weight, parse_format(f"int{bits}"), inputs_first=False)
    assert (store.counts.made, store.counts.reused, store.counts.dropped) == (3, 1, 1)
    store.get("a", weight, parse_format("int2"), inputs_first=False)
    assert store.counts.reused == 2


def test_transposed_weights_are_rounded_along_their_inputs() -> None:
    """Oracle: GPT-2 stores (inputs, outputs), so rounding its transpose is rounding a linear's weight."""
    weight = torch.randn(16, 8)
    got = WeightStore(1e6).get("a", weight.t().contiguous(), parse_format("int4_row"), inputs_first=True)
    torch.testing.assert_close(got.data, fake_quantize(weight, parse_format("int4_row")).t(), rtol=0, atol=0)


def test_replay_gives_the_same_bits(model: EmulatedModel, ids: Tensor) -> None:
    with model.recorded() as outputs:
        whole = model.logits(ids)
    assert len(outputs) == 2
    for n_known in (1, 2):
        with model.replayed(outputs[:n_known]):
            assert torch.equal(model.logits(ids), whole)
    assert not any("forward" in layer.__dict__ for layer in model.layers)


def test_bad_input_is_named(model: EmulatedModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown unit 'layers\.0\.fnn' .*did you mean 'layers\.0\.ffn'"):
        model.formats_of(Assignment((("layers.0.fnn", parse_precision("int4")),)))
    with pytest.raises(ConfigError, match="unknown dtype 'bf16'"):
        EmulatedModel.load(folder, GRAPH, UNITS, dtype="bf16")
    wrong = model.expand([(Unit("x", 0, ("mlp.experts",)), parse_precision("int4"))])
    with (
        pytest.raises(ConfigError, match=r"no module 'model\.layers\.0\.mlp\.experts'"),
        model.applied(wrong),
    ):
        pass
    odd = model.expand([(Unit("x", 0, ("input_layernorm",)), parse_precision("int4"))])
    with pytest.raises(ConfigError, match="not a plain linear"), model.applied(odd):
        pass
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no weights"):
        EmulatedModel.load(tmp_path, GRAPH, UNITS)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot load the model"):
        EmulatedModel.load(tmp_path, GRAPH, UNITS)


def test_attention_that_ignores_the_cache_format_is_an_error(folder: Path, ids: Tensor) -> None:
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")
    model.module.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="cannot take a quantized KV cache"):
        run(model, ids, ("layers.0.attention", "bf16/bf16/int8_head"))
