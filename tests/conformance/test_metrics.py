"""Every registered sensitivity metric keeps the promises of its interface; a new one is tested unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dse.sensitivity.measure  # noqa: F401  (registers the metrics)
from dse.emulate.corpus import Corpus, sample_tokens, tokenize
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.metric import METRICS
from dse.sensitivity.table import SensitivityTable
from tests.tiny_llama import tiny_graph, write_tiny_llama

PRECISIONS = tuple(parse_precision(name) for name in ("int3_g32_asym", "int8_g32_asym", "bf16"))


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> QualityEvaluator:
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSE_CACHE", str(folder / "cache"))
        checkpoint = write_tiny_llama(folder / "tiny-llama")
        graph = tiny_graph()
        model = EmulatedModel.load(checkpoint, graph, units_of(graph, "sublayer"), dtype="float32")
        corpus = Corpus("text", "".join(f"Number {i} is followed by {i + 1}. " for i in range(400)), "0" * 16)
        sample = sample_tokens(
            corpus, tokenize(corpus, checkpoint), n_tokens=128, sequence_length=64, split="calibration"
        )
    return QualityEvaluator(model, sample, keep_prefix=True)


@pytest.fixture(scope="module", params=METRICS.names())
def table(request: pytest.FixtureRequest, evaluator: QualityEvaluator) -> SensitivityTable:
    return measure_sensitivity(request.param, evaluator, evaluator.model.units, PRECISIONS)


def test_full_precision_costs_nothing(table: SensitivityTable) -> None:
    assert (table.penalty[:, 2] == 0).all()


def test_penalties_are_finite_and_not_negative(table: SensitivityTable) -> None:
    assert np.isfinite(table.penalty).all()
    assert (table.penalty >= 0).all()


def test_says_what_it_is(table: SensitivityTable) -> None:
    assert table.unit in {"nats", "arbitrary"}
    assert table.provenance in {"measured", "analytic"}
    assert table.n_tokens == 128
    assert SensitivityTable.from_json(table.to_json()).to_json() == table.to_json()


def test_repeats_to_the_last_bit(table: SensitivityTable, evaluator: QualityEvaluator) -> None:
    again = measure_sensitivity(table.metric, evaluator, evaluator.model.units, PRECISIONS)
    assert (again.penalty == table.penalty).all()


def test_finished_cells_are_not_measured_again(
    table: SensitivityTable, evaluator: QualityEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = evaluator.model.units
    measure_sensitivity(table.metric, evaluator, units, PRECISIONS, cache=tmp_path)
    metric = METRICS.get(table.metric)
    monkeypatch.setattr(type(metric), "prepare", lambda *_: pytest.fail("measured again"))
    cached = measure_sensitivity(table.metric, evaluator, units, PRECISIONS, cache=tmp_path)
    assert (cached.penalty == table.penalty).all()
