"""Block by block from disk: the same numbers as with the whole model in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dse.emulate.compensate import WeightRecipe, apply_recipe
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.emulate.one_weight import OutlierStore
from dse.emulate.streamed import SafetensorsSource, StreamedModel
from dse.errors import ConfigError
from dse.evaluate.block_by_block import quantize_block_by_block
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.policy import CachePolicy, RuntimePolicy
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "block")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("streamed"))


def _sample(split: str, seed: int) -> TokenSample:
    ids = np.random.default_rng(seed).integers(0, 256, (8, 32)).astype(np.int32)
    return TokenSample(ids, "random", "0", split, seed, str(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "recipe", "policy"),
    [
        ("int4_g32_asym", WeightRecipe(), RuntimePolicy()),
        ("int3_g32_asym/int8_token/int4_head", WeightRecipe(fit="mse"), RuntimePolicy()),
        ("int3_g32_asym", WeightRecipe(quantizer="gptq", fit="mse"), RuntimePolicy()),
        (
            "int3_g32_asym/bf16/int2_head_asym",
            WeightRecipe(quantizer="gptq", outliers=OutlierStore("columns", 0.05, "activation"), low_rank=2),
            RuntimePolicy(cache=CachePolicy(window=4, softmax_bits=6)),
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_numbers_as_the_whole_model(
    precision: str, recipe: WeightRecipe, policy: RuntimePolicy, dtype: str, folder: Path
) -> None:
    """Oracle: the path that has the whole model in memory."""
    assignment = Assignment(tuple((unit.name, parse_precision(precision)) for unit in UNITS))
    evaluation, calibration = _sample("evaluation", 1), _sample("calibration", 2)
    whole = EmulatedModel.load(folder, GRAPH, UNITS, dtype=dtype)
    evaluator = QualityEvaluator(whole, evaluation, policy=policy)
    baseline = evaluator.reference()
    prepared = apply_recipe(whole, whole.formats_of(assignment), recipe, calibration)
    expected = evaluator.evaluate(assignment)
    model = StreamedModel.open(folder, GRAPH, UNITS, dtype=dtype)
    blocks: list[int] = []
    found = quantize_block_by_block(
        model,
        model.formats_of(assignment),
        recipe,
        evaluation,
        calibration=calibration if recipe.needs_calibration else None,
        policy=policy,
        sink=lambda index, tensors: blocks.append(index) if tensors else None,
    )
    assert found.measured == expected
    assert found.baseline == baseline
    assert found.extra_bits == sum(prepared.extra_bits.values())
    assert blocks == [0, 1]
    assert all(parameter.is_meta for parameter in model.module.parameters())


def test_what_needs_the_whole_model_is_refused(folder: Path, tmp_path: Path) -> None:
    model = StreamedModel.open(folder, GRAPH, UNITS)
    formats = model.formats_of(Assignment(tuple((u.name, parse_precision("int4")) for u in UNITS)))
    sample = _sample("evaluation", 0)
    for recipe, policy, words in (
        (WeightRecipe(transform="awq"), None, "block by block"),
        (WeightRecipe(), RuntimePolicy(static_activations=True), "static ranges"),
        (WeightRecipe(quantizer="gptq"), None, "needs calibration"),
    ):
        with pytest.raises(ConfigError, match=words):
            quantize_block_by_block(model, formats, recipe, sample, policy=policy)
    with pytest.raises(ConfigError, match="no safetensors"):
        SafetensorsSource(tmp_path)


def test_an_incomplete_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: x.clone() for name, x in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks weights .*layers\.1\.mlp\.up_proj"):
        StreamedModel.open(tmp_path, GRAPH, UNITS)
    assert torch.is_tensor(SafetensorsSource(folder).read("model.norm.weight"))
