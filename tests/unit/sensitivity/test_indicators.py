"""Sensitivity metrics against plain computations on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.quantize import fake_quantize
from dse.sensitivity.divergence import jensen_shannon
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.metric import METRICS
from dse.sensitivity.table import SensitivityTable
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "linear")
PRECISIONS = tuple(parse_precision(name) for name in ("int2_g32_asym", "int4_g32_asym", "bf16"))
PATH = "model.layers.1.mlp.down_proj"
ROW = [unit.name for unit in UNITS].index("layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> QualityEvaluator:
    folder: Path = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")
    ids = np.random.default_rng(0).integers(0, 256, (3, 24)).astype(np.int32)
    return QualityEvaluator(model, TokenSample(ids, "random", "0", "calibration", 0, "x"), keep_prefix=True)


def _table(metric: str, evaluator: QualityEvaluator) -> SensitivityTable:
    return measure_sensitivity(metric, evaluator, UNITS, PRECISIONS)


def _ids(evaluator: QualityEvaluator) -> Tensor:
    return torch.from_numpy(evaluator.sample.ids).long()


def _weight_and_error(evaluator: QualityEvaluator, column: int = 0) -> tuple[Tensor, Tensor]:
    weight = evaluator.model.linear(PATH)[0].weight.detach()
    return weight, fake_quantize(weight, PRECISIONS[column].weights) - weight


def _inputs(evaluator: QualityEvaluator) -> Tensor:
    seen: list[Tensor] = []
    hook = evaluator.model.linear(PATH)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    evaluator.model.logits(_ids(evaluator))
    hook.remove()
    return seen[0].flatten(0, 1)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_is_zero_at_full_precision_and_not_elsewhere(
    metric: str, evaluator: QualityEvaluator
) -> None:
    penalty = _table(metric, evaluator).penalty
    assert not penalty[:, 2].any()
    assert (penalty[:, :2] > 0).all()
    if metric not in ("random", "hessian_trace", "obs_salience", "activation_norm", "first_order"):
        assert (penalty[:, 0] > penalty[:, 1]).mean() > 0.9


def test_output_mse_and_trace_error_by_hand(evaluator: QualityEvaluator) -> None:
    x = _inputs(evaluator)
    weight, error = _weight_and_error(evaluator)
    expected = float((x @ error.t()).square().sum() / (x @ weight.t()).square().sum())
    assert _table("output_mse", evaluator).penalty[ROW, 0] == pytest.approx(expected, rel=1e-4)
    trace = float(2 / len(x) * x.square().sum() / x.shape[1])
    assert _table("hessian_trace", evaluator).penalty[ROW, 0] == pytest.approx(trace, rel=1e-4)
    expected = trace * float(error.square().sum())
    assert _table("trace_error", evaluator).penalty[ROW, 0] == pytest.approx(expected, rel=1e-4)
    norm = float(x.square().sum(-1).mean())
    assert _table("activation_norm", evaluator).penalty[ROW, 0] == pytest.approx(norm, rel=1e-4)


def test_first_order_is_the_slope_of_the_loss(evaluator: QualityEvaluator) -> None:
    """Oracle: finite differences of each sequence's loss along the rounding error."""
    linear = evaluator.model.linear(PATH)[0]
    weight, error = _weight_and_error(evaluator)

    def loss(step: float, sequence: Tensor) -> float:
        linear.weight.data = weight + step * error
        logits = evaluator.model.logits(sequence)[0, :-1].double()
        linear.weight.data = weight
        return float(torch.nn.functional.cross_entropy(logits, sequence[0, 1:]))

    step = 1e-2
    slopes = [(loss(step, s) - loss(-step, s)) / (2 * step) for s in _ids(evaluator).split(1)]
    expected = sum(abs(slope) for slope in slopes)
    assert _table("first_order", evaluator).penalty[ROW, 0] == pytest.approx(expected, rel=2e-2)
    assert linear.weight.grad is None
    assert not linear.weight.requires_grad


def test_jensen_shannon_against_its_definition() -> None:
    """By entropies: H(m) - (H(p) + H(q)) / 2; log 2 for distributions that do not overlap."""
    p, q = (torch.softmax(torch.randn(5, 30, generator=torch.Generator().manual_seed(i)), -1) for i in (0, 1))

    def entropy(x: Tensor) -> Tensor:
        return -(x * x.log()).sum(-1)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert torch.allclose(jensen_shannon(p, q.log() + 3), expected, atol=1e-6)
    apart = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1e4, 0.0]])
    assert float(jensen_shannon(*apart)) == pytest.approx(math.log(2), rel=1e-6)


def test_random_is_repeatable(evaluator: QualityEvaluator) -> None:
    first, second = (_table("random", evaluator).penalty for _ in range(2))
    assert np.array_equal(first, second)
    assert len(np.unique(first[:, :2])) == first[:, :2].size
