"""Sensitivity tables: measured KL, the variance indicator, resuming, rank correlation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_format, parse_precision
from dse.formats.precision import Precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.quantize.fake import fake_quantize
from dse.sensitivity.correlation import rank_correlation, rank_correlation_by_precision
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.metric import METRICS
from dse.sensitivity.table import SensitivityTable
from dse.sensitivity.variance import InputMoments, input_factor, step_square
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "sublayer")
PRECISIONS = tuple(
    parse_precision(name) for name in ("bf16", "int8_g32", "int4_g32", "int3_g32", "fp8_e4m3_row")
)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> QualityEvaluator:
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")
    ids = np.random.default_rng(6).integers(0, 256, (3, 32), dtype=np.int32)
    return QualityEvaluator(model, TokenSample(ids, "random", "0", "calibration", 6, "s6"), keep_prefix=True)


@pytest.fixture(scope="module")
def kl(evaluator: QualityEvaluator) -> SensitivityTable:
    return measure_sensitivity("kl", evaluator, UNITS, PRECISIONS)


def test_kl_is_each_unit_alone(evaluator: QualityEvaluator, kl: SensitivityTable) -> None:
    """Oracle: full evaluations, without reuse, of assignments that name one unit."""
    whole = QualityEvaluator(evaluator.model, evaluator.sample)
    for (row, unit), (column, precision) in itertools.product(enumerate(UNITS), enumerate(PRECISIONS)):
        alone = whole.evaluate(Assignment(((unit.name, precision),)))
        assert kl.penalty[row, column] == max(0.0, alone.kl_nats)
    assert (kl.unit, kl.provenance, kl.n_tokens, kl.seed) == ("nats", "measured", 96, 6)
    assert (kl.penalty[:, 0] == 0).all()
    assert (kl.penalty[:, 1] < kl.penalty[:, 2]).all()


@pytest.mark.parametrize("metric", ["kl", "variance", "variance_stochastic"])
def test_interrupted_run_resumes_without_repeating(
    metric: str, evaluator: QualityEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the measurements of an interrupted and a second run: together, one for each cell."""
    chosen = METRICS.get(metric)
    n_measured = 0
    original = type(chosen).prepare

    def counting(self: object, *arguments: object) -> object:
        measurement = original(self, *arguments)
        inner = measurement.penalty

        class Counting:
            def penalty(self, *cell: object) -> float:
                nonlocal n_measured
                n_measured += 1
                return inner(*cell)

        return Counting()

    monkeypatch.setattr(type(chosen), "prepare", counting)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(total)
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(metric, evaluator, UNITS, PRECISIONS, cache=tmp_path, progress=stop)
    assert n_measured == 7
    table = measure_sensitivity(metric, evaluator, UNITS, PRECISIONS, cache=tmp_path)
    assert n_measured == 20 == seen[0]
    again = measure_sensitivity(metric, evaluator, UNITS, PRECISIONS, cache=tmp_path)
    assert n_measured == 20
    fresh = measure_sensitivity(metric, evaluator, UNITS, PRECISIONS)
    for other in (again, fresh, SensitivityTable.from_json(table.to_json())):
        assert other.to_json() == table.to_json()


def test_step_of_integers() -> None:
    """Oracle: the published scale computed by hand, and its mean square over rows and groups."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    for bits in (3, 4, 8):
        top = 2 ** (bits - 1) - 1
        scales = {
            "": weight.abs().amax().view(1),
            "_row": weight.abs().amax(1),
            "_g16": weight.view(8, 4, 16).abs().amax(-1).flatten(),
        }
        for scope, absmax in scales.items():
            expected = float((absmax / top).double().square().mean())
            assert step_square(weight, parse_format(f"int{bits}{scope}")) == pytest.approx(
                expected, rel=2e-3
            )  # fp16 scales
        low, high = weight.amin(1), weight.amax(1)
        expected = float(((high - low) / (2**bits - 1)).double().square().mean())
        assert step_square(weight, parse_format(f"int{bits}_row_asym")) == pytest.approx(expected, rel=2e-3)


def test_step_of_other_kinds_is_that_of_a_uniform_grid() -> None:
    """Oracle: mean squared error of a uniform step S is S^2 / 12, which int8 itself meets closely."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    error = (fake_quantize(weight, parse_format("int8_row")) - weight).double().square().mean()
    assert 12 * float(error) == pytest.approx(step_square(weight, parse_format("int8_row")), rel=0.05)
    mx = (fake_quantize(weight, parse_format("mxfp4")) - weight).double().square().mean()
    assert step_square(weight, parse_format("mxfp4")) == pytest.approx(12 * float(mx), rel=1e-9)
    assert step_square(weight, parse_format("bf16")) == 0.0


def test_moments_and_both_roundings() -> None:
    """Oracle: numpy on the concatenated values; and the factors bound and equal simulated rounding errors."""
    rng = np.random.default_rng(3)
    parts = [rng.normal(0.7, 2.0, size).astype(np.float32) for size in ((4, 5), (3, 7, 2))]
    moments = InputMoments()
    for part in parts:
        moments.add(torch.from_numpy(part))
    values = np.concatenate([part.ravel() for part in parts]).astype(np.float64)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.variance == pytest.approx(values.var(), rel=1e-9)
    assert input_factor(moments, "deterministic") == pytest.approx(values.var() / 4)
    assert input_factor(moments, "stochastic") == pytest.approx((values**2).mean() / 6)


def test_stochastic_factor_is_the_error_of_stochastic_rounding() -> None:
    """Oracle: Monte Carlo. The output error's second moment is D S^2 E[X^2] / 6 for uniform fractions."""
    rng = np.random.default_rng(4)
    n_inputs, n_draws, step = 32, 40_000, 0.25
    fraction = rng.random((n_draws, n_inputs))
    error = step * ((rng.random((n_draws, n_inputs)) < fraction) - fraction)
    x = rng.normal(0.5, 1.5, (n_draws, n_inputs))
    moments = InputMoments()
    moments.add(torch.from_numpy(x))
    expected = n_inputs * step**2 * input_factor(moments, "stochastic")
    assert float(((error * x).sum(1) ** 2).mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("metric", "rounding"), [("variance", "deterministic"), ("variance_stochastic", "stochastic")]
)
def test_indicator_by_hand(metric: str, rounding: str, evaluator: QualityEvaluator) -> None:
    """Oracle: inputs collected by wrapping the linears of one unit, the formula written out."""
    unit, precision = UNITS[3], parse_precision("int4_row")
    inputs: dict[str, torch.Tensor] = {}
    model = evaluator.model
    hooks = []
    for op in unit.ops:
        linear = model.module.get_submodule(model.path(unit.layer, op))
        hooks.append(
            linear.register_forward_hook(lambda _, args, __, op=op: inputs.__setitem__(op, args[0].double()))
        )
    model.logits(torch.from_numpy(evaluator.sample.ids).long())
    for hook in hooks:
        hook.remove()
    expected = 0.0
    for op in unit.ops:
        weight = model.module.get_submodule(model.path(unit.layer, op)).weight.double()
        x = inputs[op]
        g = (
            x.var(correction=0) / 4
            if rounding == "deterministic"
            else (x.mean() ** 2 + x.var(correction=0)) / 6
        )
        expected += weight.shape[1] * float((weight.abs().amax(1) / 7).square().mean() * g)
    table = measure_sensitivity(metric, evaluator, (unit,), (precision,))
    assert table.penalty[0, 0] == pytest.approx(expected, rel=2e-3)
    assert (table.unit, table.provenance) == ("arbitrary", "analytic")


def test_fewer_bits_never_less_indicator(evaluator: QualityEvaluator) -> None:
    precisions = tuple(parse_precision(f"int{bits}_g32") for bits in (8, 6, 5, 4, 3, 2))
    for metric in ("variance", "variance_stochastic"):
        table = measure_sensitivity(metric, evaluator, UNITS, precisions)
        assert (np.diff(table.penalty, axis=1) > 0).all()


def table_of(penalty: np.ndarray, precisions: tuple[Precision, ...] = PRECISIONS) -> SensitivityTable:
    units = tuple(f"u{index}" for index in range(len(penalty)))
    return SensitivityTable("kl", "nats", units, precisions, penalty, "m", "h", 0, 1)


def test_rank_correlation_from_its_definition() -> None:
    """Oracle: 1 - 6 sum d^2 / (n (n^2 - 1)) on ranks without ties."""
    rng = np.random.default_rng(8)
    first, second = rng.random((6, 5)), rng.random((6, 5))
    first[:, 0] = second[:, 0] = 0.0  # bf16: does not count

    def by_hand(a: np.ndarray, b: np.ndarray) -> float:
        d = a.ravel().argsort().argsort() - b.ravel().argsort().argsort()
        return 1 - 6 * float((d**2).sum()) / (d.size * (d.size**2 - 1))

    one, two = table_of(first), table_of(second)
    assert rank_correlation(one, two) == pytest.approx(by_hand(first[:, 1:], second[:, 1:]))
    per = rank_correlation_by_precision(one, two)
    assert list(per) == [precision.name for precision in PRECISIONS[1:]]
    for column, value in enumerate(per.values(), start=1):
        assert value == pytest.approx(by_hand(first[:, column], second[:, column]))
    assert rank_correlation(one, table_of(np.exp(3 * first) - 1)) == pytest.approx(1.0)


def test_rank_correlation_without_an_answer() -> None:
    flat = table_of(np.ones((4, 5)))
    assert rank_correlation(flat, flat) is None
    assert rank_correlation_by_precision(flat, flat)["int8_g32/bf16/bf16"] is None
    with pytest.raises(ConfigError, match="different units"):
        rank_correlation(flat, table_of(np.ones((3, 5))))


def test_indicator_follows_measured_kl(evaluator: QualityEvaluator, kl: SensitivityTable) -> None:
    """METHODS 2.8: the indicator rank-correlates with measured KL (Spearman > 0)."""
    correlation = rank_correlation(kl, measure_sensitivity("variance", evaluator, UNITS, PRECISIONS))
    assert correlation is not None
    assert correlation > 0.5


def test_unknown_metric(evaluator: QualityEvaluator) -> None:
    with pytest.raises(ConfigError, match="did you mean 'variance'"):
        measure_sensitivity("varience", evaluator, UNITS, PRECISIONS)
