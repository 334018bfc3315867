"""Perplexity, KL and agreement against transformers' own loss and torch's KL in float64."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import Quality, QualityEvaluator
from dse.evaluate.quality_scores import kl_of_changes
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "sublayer")
NAMES = tuple(unit.name for unit in UNITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> EmulatedModel:
    return EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")


@pytest.fixture(scope="module")
def sample() -> TokenSample:
    ids = np.random.default_rng(5).integers(0, 256, (5, 32), dtype=np.int32)
    return TokenSample(ids, "random", "0", "evaluation", 5, "sample5")


def uniform(name: str) -> Assignment:
    return Assignment.uniform(NAMES, parse_precision(name))


def logits_of(model: EmulatedModel, sample: TokenSample, assignment: Assignment) -> torch.Tensor:
    with model.applied(model.formats_of(assignment)):
        return model.logits(torch.from_numpy(sample.ids).long()).clone()


@pytest.mark.parametrize("batch_tokens", [32, 64, 4096])
def test_against_torch_in_float64(model: EmulatedModel, sample: TokenSample, batch_tokens: int) -> None:
    """Oracle: torch.nn.functional.kl_div on all logits in float64; argmax; one batch or several."""
    assignment = uniform("int4_g32/int8_token/int8_head")
    got = QualityEvaluator(model, sample, batch_tokens=batch_tokens).evaluate(assignment)
    full = logits_of(model, sample, uniform("bf16")).double()
    quantized = logits_of(model, sample, assignment).double()
    expected = torch.nn.functional.kl_div(
        quantized.log_softmax(-1).flatten(0, 1),
        full.log_softmax(-1).flatten(0, 1),
        reduction="batchmean",
        log_target=True,
    )
    assert got.kl_nats == pytest.approx(float(expected), rel=1e-4)
    agreement = (full.argmax(-1) == quantized.argmax(-1)).double().mean()
    assert got.top1_agreement_frac == pytest.approx(float(agreement), abs=1e-12)
    assert (got.n_tokens, got.sequence_length) == (160, 32)
    assert got.kl_nats > 1e-3


def test_perplexity_is_transformers_own_loss(model: EmulatedModel, folder: Path, sample: TokenSample) -> None:
    """Oracle: the loss that the transformers model reports when given labels."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(sample.ids).long()
    with torch.no_grad():
        loss = plain(input_ids=ids, labels=ids).loss
    got = QualityEvaluator(model, sample).reference()
    assert got.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert (got.kl_nats, got.top1_agreement_frac) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sixteen_bits_are_exactly_the_reference(folder: Path, sample: TokenSample, dtype: str) -> None:
    """Also through the comparison itself: equal logits give a KL of exactly 0 with rounded probabilities."""
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype=dtype)
    evaluator = QualityEvaluator(model, sample)
    assert evaluator.evaluate(uniform("bf16")) == evaluator.reference()
    from dse.emulate.model import DTYPES
    from dse.evaluate.quality_scores import compare, reference_scores

    ids = torch.from_numpy(sample.ids).long()
    logits = model.logits(ids)
    scores = compare(logits, ids, reference_scores(logits, ids, DTYPES[dtype]))
    assert (scores.kl == 0).all()
    assert scores.agrees.all()


def test_rounded_probabilities_barely_matter(model: EmulatedModel, sample: TokenSample) -> None:
    """Oracle: the float64 KL; the reference's probabilities are stored in bfloat16 here."""
    from dse.evaluate.quality_scores import compare, reference_scores

    ids = torch.from_numpy(sample.ids).long()
    full, quantized = model.logits(ids), logits_of(model, sample, uniform("int6_g32"))
    got = compare(quantized, ids, reference_scores(full, ids, torch.bfloat16)).kl.mean()
    expected = torch.nn.functional.kl_div(
        quantized.double().log_softmax(-1), full.double().log_softmax(-1), reduction="sum", log_target=True
    )
    assert float(got) == pytest.approx(float(expected) / ids.numel(), rel=0.03)


def test_prefix_reuse_is_the_same_to_the_last_bit(model: EmulatedModel, sample: TokenSample) -> None:
    whole = QualityEvaluator(model, sample)
    reusing = QualityEvaluator(model, sample, keep_prefix=True)
    for unit in NAMES:
        assignment = Assignment(((unit, parse_precision("int4_g32/int8_token/int4_head")),))
        assert whole.evaluate(assignment) == reusing.evaluate(assignment)
    assert whole.evaluate(uniform("int3")) == reusing.evaluate(uniform("int3"))


def test_cache_answers_without_a_forward_pass(
    model: EmulatedModel, sample: TokenSample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Assignment((("layers.0.ffn", parse_precision("int4")),))
    first = QualityEvaluator(model, sample, cache=tmp_path).evaluate(alone)
    monkeypatch.setattr(model, "logits", lambda _: pytest.fail("ran again"))
    fresh = QualityEvaluator(model, sample, cache=tmp_path)
    again = fresh.evaluate(alone)
    assert again == first
    assert again.time_s == first.time_s
    # Naming units that stay in full precision makes no other model.
    padded = Assignment((*alone.items, ("layers.1.ffn", parse_precision("fp16"))))
    assert fresh.evaluate(padded) == first


def test_cache_keys_differ_by_everything_that_matters(
    model: EmulatedModel, sample: TokenSample, tmp_path: Path
) -> None:
    other = TokenSample(sample.ids[:4], "random", "0", "evaluation", 5, "other")
    QualityEvaluator(model, sample, cache=tmp_path).evaluate(uniform("int4"))
    QualityEvaluator(model, sample, cache=tmp_path).evaluate(uniform("int4_row"))
    QualityEvaluator(model, other, cache=tmp_path).evaluate(uniform("int4"))
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_interrupted_evaluation_leaves_no_file(
    model: EmulatedModel, sample: TokenSample, tmp_path: Path
) -> None:
    evaluator = QualityEvaluator(model, sample, cache=tmp_path, batch_tokens=32)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(uniform("int4"), stop)
    assert seen == [(32, 160), (64, 160)]
    assert list(tmp_path.iterdir()) == []
    assert evaluator.evaluate(uniform("int4")) == QualityEvaluator(model, sample, batch_tokens=32).evaluate(
        uniform("int4")
    )


def test_time_is_not_part_of_equality() -> None:
    assert Quality(1.0, 0.0, 1.0, 8, 8, 1.0) == Quality(1.0, 0.0, 1.0, 8, 8, 2.0)


def test_same_numbers_in_another_process(
    model: EmulatedModel, folder: Path, sample: TokenSample, tmp_path: Path
) -> None:
    """Oracle: a second interpreter with the same number of threads."""
    np.save(tmp_path / "ids.npy", sample.ids)
    script = f"""
import json, numpy as np
from pathlib import Path
from tests.unit.evaluate.test_quality import GRAPH, UNITS, uniform
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
sample = TokenSample(np.load({str(tmp_path / "ids.npy")!r}), "random", "0", "evaluation", 5, "sample5")
model = EmulatedModel.load(Path({str(folder)!r}), GRAPH, UNITS, dtype="float32", n_threads={model.n_threads})
quality = QualityEvaluator(model, sample).evaluate(uniform("int4_g32/int8_token/int8_head"))
print(json.dumps(quality.to_json()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert Quality(**json.loads(done.stdout)) == QualityEvaluator(model, sample).evaluate(
        uniform("int4_g32/int8_token/int8_head")
    )


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 30.0, 300.0])
def test_kl_of_changes(size: float) -> None:
    """Oracle: sum of p (log p - log q) in float64. Small changes keep their digits, huge ones stay finite."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((50, 3000), generator=generator, dtype=torch.float64) * 3
    changes = (torch.randn((50, 3000), generator=generator, dtype=torch.float64) * size).float()
    log_p = torch.log_softmax(logits, -1)
    log_q = torch.log_softmax(log_p + changes.double(), -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    p = log_p.exp().float()
    torch.testing.assert_close(kl_of_changes(p, changes), expected, rtol=2e-3, atol=0)
    torch.testing.assert_close(kl_of_changes(p, changes + size), expected, rtol=1e-2, atol=0)
