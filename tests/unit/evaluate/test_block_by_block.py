"""Block by block from disk: the same numbers as with the whole model in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dse.emulate.compensate import WeightRecipe, apply_recipe
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.one_weight import OutlierStore
from dse.emulate.streamed import SafetensorsSource, StreamedModel
from dse.errors import ConfigError
from dse.evaluate.block_by_block import quantize_block_by_block
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.policy import CachePolicy, PhaseStep, RuntimePolicy
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "block")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose norms have gains, so that fusing them changes something."""
    from safetensors.torch import load_file, save_file

    place = write_tiny_llama(tmp_path_factory.mktemp("streamed"))
    file = place / "model.safetensors"
    random = torch.Generator().manual_seed(0)
    tensors = {name: x.clone() for name, x in load_file(file).items()}
    for name, x in tensors.items():
        if "norm" in name:
            x.add_(0.3 * torch.randn(x.shape, generator=random))
    save_file(tensors, file, metadata={"format": "pt"})
    return place


def _sample(split: str, seed: int) -> TokenSample:
    ids = np.random.default_rng(seed).integers(0, 256, (4, 32)).astype(np.int32)
    return TokenSample(ids, "random", "0", split, seed, str(seed))  # type: ignore[arg-type]


KEPT = OutlierStore("columns", 0.05, "activation", exact_inputs=True)
STATIC = RuntimePolicy(static_activations=True)
CASES = {
    "round to nearest": ("int4_g32_asym", WeightRecipe(), RuntimePolicy()),
    "range fit, cache": ("int3_g32_asym/int8_token/int4_head", WeightRecipe(fit="mse"), RuntimePolicy()),
    "gptq": ("int3_g32_asym", WeightRecipe(quantizer="gptq", fit="mse"), RuntimePolicy()),
    "stores, cache policy": (
        "int3_g32_asym/bf16/int2_head_asym",
        WeightRecipe(quantizer="gptq", outliers=OutlierStore("columns", 0.05, "activation"), low_rank=2),
        RuntimePolicy(cache=CachePolicy(window=4, softmax_bits=6)),
    ),
    "awq": ("int3_g32_asym", WeightRecipe(transform="awq", fit="act_clip"), RuntimePolicy()),
    "smooth, static": ("int8_row/int8/bf16", WeightRecipe(transform="smooth"), STATIC),
    "kept inputs, static": ("int4_row/int4/bf16", WeightRecipe(quantizer="gptq", outliers=KEPT), STATIC),
    "rotate": ("int3_g32_asym", WeightRecipe(transform="rotate", quantizer="gptq"), RuntimePolicy()),
    "quarot": (
        "int4_row/int4_token/int4_head_asym",
        WeightRecipe(transform="quarot", quantizer="gptq", seed=3),
        RuntimePolicy(),
    ),
    "quarot, static": ("int8_row/int8/bf16", WeightRecipe(transform="quarot"), STATIC),
    "principal": (
        "int4_row/int4_token/bf16",
        WeightRecipe(transform="principal", outliers=OutlierStore("columns", 0.125, format="int8_row")),
        RuntimePolicy(),
    ),
    "phases": (
        "int4_g32_asym",
        WeightRecipe(quantizer="gptq"),
        RuntimePolicy(phases=(PhaseStep(8, weights=parse_format("int2_g32_asym")),)),
    ),
    "phases of activations, whole numbers": (
        "int8_row/int8_token/bf16",
        WeightRecipe(),
        RuntimePolicy(phases=(PhaseStep(16, activations=parse_format("int4_token")),)),
    ),
    "integer products": ("int8_row/int8_token/bf16", WeightRecipe(), RuntimePolicy(integer_products=True)),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, "bfloat16") for case in CASES), ("gptq", "float32"), ("quarot, static", "float32")],
)
def test_same_numbers_as_the_whole_model(case: str, dtype: str, folder: Path) -> None:
    """Oracle: the path that has the whole model in memory."""
    precision, recipe, policy = CASES[case]
    assignment = Assignment(tuple((unit.name, parse_precision(precision)) for unit in UNITS))
    evaluation, calibration = _sample("evaluation", 1), _sample("calibration", 2)
    whole = EmulatedModel.load(folder, GRAPH, UNITS, dtype=dtype)
    evaluator = QualityEvaluator(whole, evaluation, policy=policy, calibration=calibration)
    baseline = evaluator.reference()
    prepared = apply_recipe(whole, whole.formats_of(assignment), recipe, calibration)
    expected = evaluator.evaluate(assignment)
    model = StreamedModel.open(folder, GRAPH, UNITS, dtype=dtype)
    parts: list[str] = []
    found = quantize_block_by_block(
        model,
        model.formats_of(assignment),
        recipe,
        evaluation,
        calibration=calibration,
        policy=policy,
        sink=lambda part, tensors: parts.append(part) if tensors else None,
    )
    assert found.measured == expected
    assert found.baseline == baseline
    assert found.extra_bits == sum(prepared.extra_bits.values())
    assert parts == ["embedding", "block-000", "block-001", "head"]
    assert all(parameter.is_meta for parameter in model.module.parameters())


def test_nothing_is_left_behind_in_the_model(folder: Path) -> None:
    model = StreamedModel.open(folder, GRAPH, UNITS)
    precision, recipe, policy = CASES["quarot"]
    formats = model.formats_of(Assignment(tuple((u.name, parse_precision(precision)) for u in UNITS)))
    samples = _sample("evaluation", 1), _sample("calibration", 2)
    first, again = (
        quantize_block_by_block(model, formats, recipe, samples[0], calibration=samples[1], policy=policy)
        for _ in range(2)
    )
    assert first == again
    plain = quantize_block_by_block(model, TensorFormats(), WeightRecipe(), samples[0])
    assert (plain.measured, plain.measured.kl_nats) == (first.baseline, 0.0)


def test_what_cannot_be_done_is_refused(folder: Path, tmp_path: Path) -> None:
    model = StreamedModel.open(folder, GRAPH, UNITS)
    formats = model.formats_of(Assignment(tuple((u.name, parse_precision("int4")) for u in UNITS)))
    sample = _sample("evaluation", 0)
    for recipe, policy in (
        (WeightRecipe(quantizer="gptq"), RuntimePolicy()),
        (WeightRecipe(transform="awq"), RuntimePolicy()),
        (WeightRecipe(), STATIC),
    ):
        with pytest.raises(ConfigError, match="need calibration tokens"):
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
