"""Calibration walks and weight recipes on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dse.emulate.anatomy import anatomy_of
from dse.emulate.calibrate import InputStatistics, walk_blocks
from dse.emulate.compensate import WeightRecipe, apply_recipe, paths_by_block
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.scaling import AWQ_GRID, best_awq_scale, first_calls
from dse.emulate.transforms import awq_scale
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.quantize import fake_quantize
from dse.quantize.gptq import gptq
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "block")
FMT = "int3_g32_asym"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


def _load(folder: Path) -> EmulatedModel:
    return EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")


def _formats(model: EmulatedModel, name: str = FMT) -> TensorFormats:
    return model.formats_of(Assignment(tuple((u.name, parse_precision(name)) for u in UNITS)))


def _sample(seed: int) -> TokenSample:
    ids = np.random.default_rng(seed).integers(0, 256, (8, 32)).astype(np.int32)
    return TokenSample(ids, "random", "0", "calibration", seed, str(seed))


def _kl(model: EmulatedModel, sample: TokenSample) -> float:
    return QualityEvaluator(model, sample).measure(_formats(model)).kl_nats


def test_statistics_are_those_of_a_whole_forward(folder: Path) -> None:
    """Oracle: hooks on one plain forward of all tokens."""
    model = _load(folder)
    ids = torch.from_numpy(_sample(0).ids).long()
    seen: dict[str, Tensor] = {}
    paths = paths_by_block(model, dict(_formats(model).weights))
    hooks = [
        model.linear(path)[0].register_forward_pre_hook(
            lambda _, args, path=path: seen.update({path: args[0]})
        )
        for block in paths
        for path in block
    ]
    model.logits(ids)
    for hook in hooks:
        hook.remove()
    found: dict[str, InputStatistics] = {}
    walk_blocks(model, paths, ids, lambda _, statistics: found.update(statistics) or {})
    assert set(found) == set(seen)
    for path, x in seen.items():
        rows = x.flatten(0, 1)
        assert torch.allclose(found[path].moments, rows.t() @ rows, rtol=1e-4, atol=1e-3)
        assert torch.allclose(found[path].absmax, rows.abs().amax(0), rtol=1e-5)
        assert torch.allclose(found[path].mean_abs, rows.abs().mean(0), rtol=1e-4)
        assert found[path].n_tokens == 256
    q, k = (found[f"model.layers.0.self_attn.{name}_proj"] for name in "qk")
    assert q is k


def test_gptq_of_the_model_is_gptq_of_each_linear_behind_the_quantized_prefix(folder: Path) -> None:
    """The last linear's weight, made here from the inputs that the quantized blocks give."""
    model = _load(folder)
    formats, sample = _formats(model), _sample(1)
    apply_recipe(model, formats, WeightRecipe(quantizer="gptq"), sample)
    path = "model.layers.1.self_attn.q_proj"
    inputs: list[Tensor] = []
    hook = model.linear(path)[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    only_first = TensorFormats(weights=tuple(f for f in formats.weights if ".0." in f[0]), first_layer=0)
    with model.applied(only_first):
        model.logits(torch.from_numpy(sample.ids).long())
    hook.remove()
    x = inputs[0].flatten(0, 1)
    expected = gptq(model.linear(path)[0].weight, 2 / len(x) * x.t() @ x, parse_format(FMT)).weight
    with model.applied(formats):
        close = torch.isclose(model.linear(path)[0].weight, expected, atol=1e-5)
    assert float(close.float().mean()) > 0.99  # float32 sums in another order may flip a tie


@pytest.mark.parametrize(
    "recipe",
    [
        WeightRecipe(fit="mse"),
        WeightRecipe(fit="act_clip"),
        WeightRecipe(fit="importance"),
        WeightRecipe(quantizer="gptq", fit="mse", order="activation"),
        WeightRecipe(transform="awq"),
        WeightRecipe(transform="smooth"),
        WeightRecipe(transform="rotate", quantizer="gptq"),
        WeightRecipe(transform="quarot"),
    ],
    ids=lambda recipe: f"{recipe.transform}-{recipe.quantizer}-{recipe.fit}",
)
def test_recipes_run_and_change_the_identity(recipe: WeightRecipe, folder: Path) -> None:
    model = _load(folder)
    before = model.hash
    apply_recipe(model, _formats(model), recipe, _sample(2))
    assert model.hash != before
    with model.applied(_formats(model)):
        assert bool(torch.isfinite(model.logits(torch.zeros(1, 4, dtype=torch.long))).all())


def test_gptq_beats_rounding_here(folder: Path) -> None:
    """On the tokens that it was calibrated with; a property of this model, not a theorem."""
    sample, plain, compensated = _sample(3), _load(folder), _load(folder)
    apply_recipe(compensated, _formats(compensated), WeightRecipe(quantizer="gptq"), sample)
    assert _kl(compensated, sample) < _kl(plain, sample)


def test_awq_takes_the_alpha_of_the_least_block_error(folder: Path) -> None:
    """Brute force over the grid at attention, feed-forward and down, with weights replaced by hand."""
    plain, model = _load(folder), _load(folder)
    formats, ids = _formats(model), torch.from_numpy(_sample(5).ids).long()
    block, paths = anatomy_of(plain).blocks[0], paths_by_block(plain, dict(formats.weights))
    seen: dict[str, InputStatistics] = {}
    walk_blocks(plain, paths, ids, lambda _, statistics: seen.update(statistics) or {})
    with first_calls([block.attention, block.ffn, block.down]) as calls, torch.inference_mode():
        plain.logits(ids)
    fmt = parse_format(FMT)
    for owner, linears, path in (
        (block.attention, (block.q, block.k, block.v), "self_attn.q_proj"),
        (block.ffn, (block.gate, block.up), "mlp.up_proj"),
        (block.down, (block.down,), "mlp.down_proj"),
    ):
        call, mean_abs = calls[id(owner)], seen[f"model.layers.0.{path}"].mean_abs
        assert call.args[0].shape[0] == 1 if call.args else call.options["hidden_states"].shape[0] == 1
        before = [linear.weight.clone() for linear in linears]
        with torch.inference_mode():
            chosen = best_awq_scale(call, linears, [fmt] * len(linears), mean_abs)
            exact, errors = call.output(), []
            for alpha in AWQ_GRID:
                scale = awq_scale(mean_abs, alpha).float()
                for linear, weight in zip(linears, before, strict=True):
                    linear.weight.data = fake_quantize(weight * scale, fmt) / scale
                errors.append(float((call.output() - exact).square().sum()))
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.data = weight
        best = awq_scale(mean_abs, AWQ_GRID[min(range(20), key=errors.__getitem__)])
        assert torch.equal(chosen, best)
        assert min(errors) < errors[0]


def test_wrong_recipes() -> None:
    for fields, part in (
        ({"quantizer": "gtpq"}, "did you mean 'gptq'"),
        ({"transform": "rotated"}, "did you mean 'rotate'"),
        ({"fit": "msr"}, "did you mean 'mse'"),
    ):
        with pytest.raises(ConfigError, match=part):
            WeightRecipe(**fields)  # type: ignore[arg-type]
