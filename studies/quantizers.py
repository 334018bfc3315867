"""What quantizers do to a real model, over calibration seeds, and the orderings that they should show.

Orderings are expectations, not theorems (METHODS section 7): each is reported as it comes out. The evaluation
sample is the same in every row; the seed draws the calibration tokens and random rotations.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dse.content import cache_dir, canonical_json, content_hash, write_atomic
from dse.emulate.compensate import WeightRecipe, apply_recipe
from dse.emulate.model import TensorFormats
from dse.emulate.one_weight import OutlierStore
from dse.evaluate.effective_bits import effective_bits
from dse.formats.grammar import parse_precision
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.units import units_of
from dse.plan import Assignment
from studies.measuring import Bench
from studies.schema import QualitySpec

CALIBRATION_TOKENS = 32 * 512
EVALUATION_TOKENS = 4096
SEEDS = (0, 1, 2)
_INT4, _INT3 = "int4_g64_asym", "int3_g64_asym"
_GPTQ = WeightRecipe(quantizer="gptq", fit="mse", order="activation")


@dataclass(frozen=True)
class QuantizerRow:
    """Weights made once, and measured with one or several formats of the activations."""

    name: str
    weights: str
    recipe: WeightRecipe = field(default_factory=WeightRecipe)
    activations: tuple[str, ...] = ("bf16",)

    @property
    def is_seeded(self) -> bool:
        """Whether the calibration seed changes anything."""
        return self.recipe.needs_calibration or self.recipe.transform in ("rotate", "quarot")


ROWS: dict[str, QuantizerRow] = {
    row.name: row
    for row in (
        QuantizerRow("4-bit RTN", _INT4, activations=("bf16", "int8_token")),
        QuantizerRow("4-bit RTN, mse", _INT4, WeightRecipe(fit="mse")),
        QuantizerRow("4-bit AWQ, clip", _INT4, WeightRecipe(transform="awq", fit="act_clip")),
        QuantizerRow("4-bit GPTQ, mse", _INT4, _GPTQ, activations=("bf16", "int8_token")),
        QuantizerRow(
            "4-bit rotation, GPTQ, mse",
            _INT4,
            replace(_GPTQ, transform="rotate"),
            activations=("bf16", "int8_token"),
        ),
        QuantizerRow("3-bit RTN", _INT3),
        QuantizerRow("3-bit AWQ, clip", _INT3, WeightRecipe(transform="awq", fit="act_clip")),
        QuantizerRow("3-bit GPTQ, mse", _INT3, _GPTQ),
        QuantizerRow("3-bit rotation, GPTQ, mse", _INT3, replace(_GPTQ, transform="rotate")),
        QuantizerRow("3-bit RTN, outliers", _INT3, WeightRecipe(outliers=OutlierStore("csr", 0.005))),
        QuantizerRow("3-bit RTN, low rank", _INT3, WeightRecipe(low_rank=16)),
        QuantizerRow("W8A8 RTN", "int8_row", activations=("int8_token", "int8")),
        QuantizerRow(
            "W8A8 SmoothQuant", "int8_row", WeightRecipe(transform="smooth"), ("int8_token", "int8")
        ),
        QuantizerRow("W4A8 SmoothQuant", _INT4, WeightRecipe(transform="smooth"), ("int8_token",)),
        QuantizerRow("W4A4 RTN", "int4_row", activations=("int4_token",)),
        QuantizerRow(
            "W4A4 QuaRot, RTN", "int4_row", WeightRecipe(transform="quarot", fit="mse"), ("int4_token",)
        ),
        QuantizerRow("W4A4 QuaRot, GPTQ", "int4_row", replace(_GPTQ, transform="quarot"), ("int4_token",)),
    )
}


@dataclass(frozen=True)
class Claim:
    """Row and activations that should have the lower perplexity, and what they are compared with."""

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]


@dataclass(frozen=True)
class Bar:
    """A row's increase of perplexity over full precision is at most ``limit_frac``.

    Where ``of`` names another row, the limit is that share of the other's increase.
    """

    text: str
    row: tuple[str, str]
    limit_frac: float
    of: tuple[str, str] | None = None


CLAIMS: tuple[Claim, ...] = (
    Claim("GPTQ < RTN at 4 bits", ("4-bit GPTQ, mse", "bf16"), ("4-bit RTN", "bf16")),
    Claim("GPTQ < RTN at 3 bits", ("3-bit GPTQ, mse", "bf16"), ("3-bit RTN", "bf16")),
    Claim("AWQ < RTN at 4 bits", ("4-bit AWQ, clip", "bf16"), ("4-bit RTN", "bf16")),
    Claim("AWQ < RTN at 3 bits", ("3-bit AWQ, clip", "bf16"), ("3-bit RTN", "bf16")),
    Claim("range search < min-max at 4 bits", ("4-bit RTN, mse", "bf16"), ("4-bit RTN", "bf16")),
    Claim(
        "rotated < unrotated under GPTQ, 4 bits",
        ("4-bit rotation, GPTQ, mse", "bf16"),
        ("4-bit GPTQ, mse", "bf16"),
    ),
    Claim(
        "rotated < unrotated under GPTQ, 3 bits",
        ("3-bit rotation, GPTQ, mse", "bf16"),
        ("3-bit GPTQ, mse", "bf16"),
    ),
    Claim("outlier store < none at 3 bits", ("3-bit RTN, outliers", "bf16"), ("3-bit RTN", "bf16")),
    Claim("low rank < none at 3 bits", ("3-bit RTN, low rank", "bf16"), ("3-bit RTN", "bf16")),
    Claim("rotated < unrotated at W4A4", ("W4A4 QuaRot, RTN", "int4_token"), ("W4A4 RTN", "int4_token")),
    Claim(
        "GPTQ < RTN under rotation, W4A4",
        ("W4A4 QuaRot, GPTQ", "int4_token"),
        ("W4A4 QuaRot, RTN", "int4_token"),
    ),
    Claim("SmoothQuant < RTN at W8A8, token", ("W8A8 SmoothQuant", "int8_token"), ("W8A8 RTN", "int8_token")),
    Claim("SmoothQuant < RTN at W8A8, tensor", ("W8A8 SmoothQuant", "int8"), ("W8A8 RTN", "int8")),
    Claim("SmoothQuant < RTN at W4A8", ("W4A8 SmoothQuant", "int8_token"), ("4-bit RTN", "int8_token")),
)

BARS: tuple[Bar, ...] = (
    Bar("4-bit g64, best: at most +13 %", ("4-bit rotation, GPTQ, mse", "bf16"), 0.13),
    Bar("3-bit g64, best: at most +60 %", ("3-bit rotation, GPTQ, mse", "bf16"), 0.60),
    Bar(
        "W4A4 rotated: below half of RTN",
        ("W4A4 QuaRot, RTN", "int4_token"),
        0.5,
        ("W4A4 RTN", "int4_token"),
    ),
)


@dataclass(frozen=True)
class RowResult:
    """One row at one activation format and seed, measured.

    Attributes:
        increase_frac: of perplexity over full precision; kl_nats: mean KL(full || quantized) per token.
        linear_bits: effective bits of the linears' weights, with everything stored beside.
        time_s: of making the weights.
    """

    row: str
    weights: str
    activations: str
    seed: int
    perplexity: float
    baseline: float
    kl_nats: float
    linear_bits: float
    n_tokens: int
    time_s: float

    @property
    def increase_frac(self) -> float:
        """Perplexity over full precision, minus 1."""
        return self.perplexity / self.baseline - 1.0


def run_row(
    row: QuantizerRow,
    seed: int,
    source: ModelSource,
    graph: OperatorGraph,
    quality: QualitySpec,
    progress: Callable[[int, int], None] | None = None,
) -> list[RowResult]:
    """Return the results of a row; those on disk are not measured again.

    Args:
        row, seed: what to measure; a row that no seed changes is measured once, with seed 0.
        source, graph: the model; quality: tokens, length and dtype of the evaluation.
        progress: of the calibration walk, (blocks done, blocks in all).

    Raises:
        ConfigError: a recipe that the model cannot take.
    """
    actual = seed if row.is_seeded else 0
    units = units_of(graph, "block")
    evaluator = Bench.of(source, graph, units, quality, 0).finalist_evaluator()
    model = evaluator.model
    recipe = replace(row.recipe, seed=actual)
    key = content_hash(
        [evaluator.identity(), row.weights, row.activations, _changed(recipe), actual, CALIBRATION_TOKENS]
    )
    place = cache_dir() / "quantizers" / f"{key}.json"
    if place.is_file():
        return [_named(entry, row, seed) for entry in json.loads(place.read_text(encoding="utf-8"))]
    names = tuple(unit.name for unit in units)
    baseline = evaluator.measure(TensorFormats())  # before any transform: what every row is compared with
    calibration = Bench.of(source, graph, units, quality, actual).calibration_sample(CALIBRATION_TOKENS)
    began = time.monotonic()
    weight_formats = model.formats_of(Assignment.uniform(names, parse_precision(row.weights)))
    prepared = apply_recipe(model, weight_formats, recipe, calibration, progress)
    extra_bits = sum(prepared.extra_bits.values())
    time_s = time.monotonic() - began
    found = []
    for activations in row.activations:
        precision = parse_precision(f"{row.weights}/{activations}/bf16")
        assignment = Assignment.uniform(names, precision)
        measured = evaluator.measure(model.formats_of(assignment))
        found.append(
            RowResult(
                row=row.name,
                weights=row.weights,
                activations=activations,
                seed=actual,
                perplexity=measured.perplexity,
                baseline=baseline.perplexity,
                kl_nats=measured.kl_nats,
                linear_bits=effective_bits(graph, assignment, units, extra_bits)[1],
                n_tokens=measured.n_tokens,
                time_s=time_s,
            )
        )
    write_atomic(place, canonical_json([asdict(entry) for entry in found]))
    return [replace(entry, seed=seed) for entry in found]


def _changed(recipe: WeightRecipe) -> dict[str, Any]:
    """Return the fields that differ from the default, so that a new field leaves old results valid."""
    default = asdict(WeightRecipe())
    return {name: value for name, value in asdict(recipe).items() if value != default[name]}


def _named(entry: dict[str, Any], row: QuantizerRow, seed: int) -> RowResult:
    return replace(RowResult(**entry), row=row.name, seed=seed)


Results = dict[tuple[str, str], dict[int, RowResult]]
"""(row, activations) -> seed -> result."""


def by_row(results: list[RowResult]) -> Results:
    """Return the results sorted into rows."""
    found: Results = {}
    for entry in results:
        found.setdefault((entry.row, entry.activations), {})[entry.seed] = entry
    return found


def claim_holds(claim: Claim, results: Results) -> dict[int, bool]:
    """Return by seed whether a claim holds, for the seeds at which both rows were measured."""
    better, worse = results.get(claim.better, {}), results.get(claim.worse, {})
    return {seed: better[seed].perplexity < worse[seed].perplexity for seed in sorted({*better} & {*worse})}


def bar_margin(bar: Bar, results: Results) -> dict[int, tuple[float, float]]:
    """Return by seed (increase, limit), both as fractions, for the seeds that were measured."""
    rows = results.get(bar.row, {})
    if bar.of is None:
        return {seed: (entry.increase_frac, bar.limit_frac) for seed, entry in sorted(rows.items())}
    other = results.get(bar.of, {})
    return {
        seed: (rows[seed].increase_frac, bar.limit_frac * other[seed].increase_frac)
        for seed in sorted({*rows} & {*other})
    }


def default_quality() -> QualitySpec:
    """Return the protocol: 4096 tokens of the embedded corpus in sequences of 512, bfloat16."""
    return QualitySpec(tokens=EVALUATION_TOKENS)
