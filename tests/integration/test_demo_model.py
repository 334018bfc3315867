"""The demo model end to end: traced, loaded, quantized, measured on the embedded corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.emulate.checkpoint import checkpoint_hash, demo_checkpoint
from dse.emulate.corpus import TokenSample, load_corpus, sample_tokens, tokenize
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import Quality, QualityEvaluator
from dse.formats.grammar import parse_precision
from dse.graph.source import load_source
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.sensitivity.correlation import rank_correlation
from dse.sensitivity.measure import measure_sensitivity
from tests.demo_model import demo_folder

pytestmark = pytest.mark.model
N_TOKENS = 512


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_folder()


@pytest.fixture(scope="module")
def model(folder: Path) -> EmulatedModel:
    graph = trace_model(load_source(folder))
    return EmulatedModel.load(folder, graph, units_of(graph, "block"), dtype="bfloat16")


def sample(folder: Path, n_tokens: int, split: str) -> TokenSample:
    corpus = load_corpus()
    return sample_tokens(
        corpus, tokenize(corpus, folder), n_tokens=n_tokens, sequence_length=128, split=split
    )


@pytest.fixture(scope="module")
def evaluator(model: EmulatedModel, folder: Path) -> QualityEvaluator:
    return QualityEvaluator(model, sample(folder, N_TOKENS, "evaluation"))


def measured(evaluator: QualityEvaluator, name: str) -> Quality:
    units = tuple(unit.name for unit in evaluator.model.units)
    return evaluator.evaluate(Assignment.uniform(units, parse_precision(name)))


def test_folder_is_complete(folder: Path) -> None:
    assert demo_checkpoint() == folder
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert checkpoint_hash(folder) == checkpoint_hash(folder)


def test_quality_falls_with_the_bits(evaluator: QualityEvaluator) -> None:
    """A wrong order of query and key rows, or a wrong tokenizer, gives perplexities in the hundreds.

    A plain transformers forward pass over these four sequences of 128 tokens gives 21.62 in float32 (34, 25,
    19 and 14 by sequence); the text, and with it the number, is that of the Python at hand.
    """
    reference = evaluator.reference()
    assert 15 < reference.perplexity < 30
    eight, four, three = (
        measured(evaluator, name) for name in ("int8_g64", "int4_g64_asym", "int3_g64_asym")
    )
    assert eight.perplexity == pytest.approx(reference.perplexity, rel=0.01)
    assert eight.top1_agreement_frac > 0.94
    assert 1.1 < four.perplexity / reference.perplexity < 1.7
    assert 1.8 < three.perplexity / reference.perplexity < 5
    assert 0 < eight.kl_nats < four.kl_nats / 10
    assert four.kl_nats < three.kl_nats


def test_activations_and_cache(evaluator: QualityEvaluator) -> None:
    cache = measured(evaluator, "bf16/bf16/int4_head_asym")
    activations = measured(evaluator, "bf16/int8_token/bf16")
    assert 0.002 < cache.kl_nats < 1.0
    assert 0.002 < activations.kl_nats < 1.0


def test_sensitivities_of_three_blocks(folder: Path, model: EmulatedModel) -> None:
    """Measured in float32, where 8 bits cost less than the rounding noise of bfloat16."""
    exact = EmulatedModel.load(folder, model.graph, model.units, dtype="float32")
    evaluator = QualityEvaluator(exact, sample(folder, 128, "calibration"), keep_prefix=True)
    units = tuple(model.units[layer] for layer in (0, 15, 29))
    precisions = tuple(parse_precision(name) for name in ("int8_g64", "int4_g64", "int3_g64"))
    kl = measure_sensitivity("kl", evaluator, units, precisions)
    assert (kl.penalty[:, 0] < 3e-4).all()
    assert (kl.penalty[:, 1] > 10 * kl.penalty[:, 0]).all()
    assert (kl.penalty[:, 2] > kl.penalty[:, 1]).all()
    correlation = rank_correlation(kl, measure_sensitivity("variance", evaluator, units, precisions))
    assert correlation is not None
    assert correlation > 0.5
