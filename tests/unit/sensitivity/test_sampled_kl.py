"""Measured KL to a stated error: against the metric "kl", formulas by hand, and a whole text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dse.emulate.candidates import weights_by_sequence
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.measure_sampled import measure_sampled
from dse.sensitivity.sampled_kl import BLOCK, ratio_estimate
from dse.sensitivity.table import SensitivityTable
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "linear")
PRECISIONS = tuple(
    parse_precision(name) for name in ("bf16", "int8_g32", "int6_g32", "int5_g32", "int6_g32/int8_token/bf16")
)
SOME = (UNITS[1], UNITS[9])


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> QualityEvaluator:
    model = EmulatedModel.load(
        write_tiny_llama(tmp_path_factory.mktemp("tiny")), GRAPH, UNITS, dtype="float32"
    )
    ids = np.random.default_rng(6).integers(0, 256, (6, 96), dtype=np.int32)
    return QualityEvaluator(model, TokenSample(ids, "random", "0", "calibration", 6, "s6"), keep_prefix=True)


@pytest.fixture(scope="module")
def exact(evaluator: QualityEvaluator) -> SensitivityTable:
    return measure_sensitivity("kl", evaluator, SOME, PRECISIONS)


def test_one_pass_equals_one_precision_after_the_other(evaluator: QualityEvaluator) -> None:
    """Oracle: ``applied``, one format at a time."""
    model = evaluator.model
    formats = [parse_format(name) for name in ("int8_g32", "int4_g32", "int2_g32")]
    ids = torch.from_numpy(evaluator.sample.ids[:1]).long()
    with weights_by_sequence(model, [model.path(0, op) for op in UNITS[2].ops], formats):
        together = model.logits(ids.expand(3, -1))
    for fmt, found in zip(formats, together, strict=True):
        with model.applied(model.expand([(UNITS[2], parse_precision(fmt.name))])):
            assert torch.allclose(model.logits(ids)[0], found, atol=1e-4)
    full = model.logits(ids)
    assert not torch.allclose(full[0], together[2], atol=1e-2)


def test_a_strict_error_uses_up_the_text(evaluator: QualityEvaluator, exact: SensitivityTable) -> None:
    """Oracle: the metric "kl", which knows neither windows nor pilots."""
    table = measure_sampled(evaluator, SOME, PRECISIONS, 1e-9)
    assert table.standard_error is not None
    assert table.cell_tokens is not None
    assert (table.standard_error == 0).all()
    assert (table.cell_tokens == 6 * 96).all()
    np.testing.assert_allclose(table.penalty, exact.penalty, rtol=1e-3, atol=1e-8)


def test_a_loose_error_takes_less_text_and_holds(
    evaluator: QualityEvaluator, exact: SensitivityTable
) -> None:
    table = measure_sampled(evaluator, SOME, PRECISIONS, 0.5)
    assert table.standard_error is not None
    assert table.cell_tokens is not None
    assert table.cell_tokens[:, 1:].max() < 6 * 96
    assert (table.penalty[:, 0] == 0).all()
    assert (table.standard_error <= 0.5 * table.penalty).all()
    off = np.abs(table.penalty - exact.penalty)[:, 1:]
    assert (off < 4 * table.standard_error[:, 1:]).all()
    assert SensitivityTable.from_json(table.to_json()).to_json() == table.to_json()


def test_finished_cells_are_not_measured_again(
    evaluator: QualityEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = measure_sampled(evaluator, SOME, PRECISIONS, 0.5, cache=tmp_path)
    monkeypatch.setattr(EmulatedModel, "logits", lambda *_: pytest.fail("measured again"))
    again = measure_sampled(evaluator, SOME, PRECISIONS, 0.5, cache=tmp_path)
    assert again.to_json() == table.to_json()


def test_ratio_estimate_by_hand() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, (3, 4 * BLOCK))
    mean, error = ratio_estimate(values, np.ones_like(values))
    blocks = values.reshape(12, BLOCK).mean(1)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(blocks.std(ddof=1) / 12**0.5)
    mean, error = ratio_estimate(0.3 * values, values)
    assert mean == pytest.approx(0.3)
    assert error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("error", [0.0, 1.0, -0.1])
def test_errors_outside_of_a_share_are_refused(evaluator: QualityEvaluator, error: float) -> None:
    with pytest.raises(ConfigError, match="relative_error"):
        measure_sampled(evaluator, SOME, PRECISIONS, error)
