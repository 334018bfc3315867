"""One weight under a recipe: transform aside, everything that turns a matrix into what is stored for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dse.emulate.calibrate import InputStatistics
from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.formats.precision import NumberFormat
from dse.formats.storage import stored_bits
from dse.quantize.fake import fake_quantize
from dse.quantize.fit import FITS, NEEDS_IMPORTANCE, NEEDS_MOMENTS, fitted_fake_quantize
from dse.quantize.gptq import DAMPING_FRAC, Order, gptq, inverse_factor, obs_saliency
from dse.quantize.outliers import (
    INDEX_BITS,
    VALUE_BITS,
    Store,
    low_rank_factors,
    sparse_bits,
    top_elements,
    with_columns,
    with_elements,
)

Quantizer = Literal["rtn", "gptq"]
StoreKind = Literal["columns", "csr", "bitmap"]
Score = Literal["magnitude", "activation", "absmax", "sensitivity", "obs"]
QUANTIZER_NAMES: tuple[Quantizer, ...] = get_args(Quantizer)
COLUMN_SCORES: tuple[Score, ...] = ("magnitude", "activation", "absmax", "sensitivity")
ELEMENT_SCORES: tuple[Score, ...] = ("magnitude", "obs")


@dataclass(frozen=True)
class OutlierStore:
    """What is kept beside the low-bit matrix, in float16 or, for columns, in any format.

    Attributes:
        kind: "columns" (dense), "csr" or "bitmap" (single elements).
        share_frac: of the columns, or of the elements.
        score: what is kept. Columns: "magnitude" (squared norm of the weights), "activation" (diagonal of H,
            Atom), "absmax" (largest input, QUIK), "sensitivity" (H_jj ||W_j - Q(W_j)||^2, OWQ). Elements:
            "magnitude", or "obs" (w^2 / U_jj^2, SpQR and PB-LLM).
        exact_inputs: the kept columns' inputs stay in full precision too (QUIK).
        format: of kept columns, "fp16" or e.g. "int8_row" (Atom, ResQ: two widths side by side).
    """

    kind: StoreKind
    share_frac: float
    score: Score = "magnitude"
    exact_inputs: bool = False
    format: str = "fp16"

    def __post_init__(self) -> None:
        if self.kind not in get_args(StoreKind):
            raise ConfigError(
                f"unknown outlier store '{self.kind}'", value=self.kind, allowed=get_args(StoreKind)
            )
        if not 0 < self.share_frac < 1:
            raise ConfigError(f"must be between 0 and 1, but is {self.share_frac}", path="share_frac")
        scores = COLUMN_SCORES if self.kind == "columns" else ELEMENT_SCORES
        if self.score not in scores:
            raise ConfigError(
                f"{self.kind} cannot be chosen by '{self.score}'", value=self.score, allowed=scores
            )
        if self.exact_inputs and self.kind != "columns":
            raise ConfigError("only whole columns have inputs of their own", path="exact_inputs")
        if self.format != "fp16" and self.kind != "columns":
            raise ConfigError("only whole columns have a format of their own", path="format")
        parse_format(self.format)

    @property
    def needs_calibration(self) -> bool:
        """Whether the score looks at inputs."""
        return self.score != "magnitude"


@dataclass(frozen=True)
class OneWeight:
    """How one weight is quantized.

    Attributes:
        quantizer: "rtn" or "gptq"; fit: range fit; order, damping_frac: of GPTQ.
        outliers: what is kept in float16, else None.
        low_rank: rank of a float16 correction of what rounding lost, 0 for none.
    """

    quantizer: str = "rtn"
    fit: str = "minmax"
    order: Order = "natural"
    damping_frac: float = DAMPING_FRAC
    outliers: OutlierStore | None = None
    low_rank: int = 0

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZER_NAMES:
            raise ConfigError(
                f"unknown quantizer '{self.quantizer}'", value=self.quantizer, allowed=QUANTIZER_NAMES
            )
        if self.order not in get_args(Order):
            raise ConfigError(
                f"unknown order '{self.order}' of columns", value=self.order, allowed=get_args(Order)
            )
        if self.low_rank < 0:
            raise ConfigError(f"must be 0 or more, but is {self.low_rank}", path="low_rank")
        FITS.get(self.fit)

    @property
    def is_plain(self) -> bool:
        """Whether this is round to nearest with min-max scales and nothing beside."""
        beside = self.outliers is not None or self.low_rank
        return self.quantizer == "rtn" and self.fit == "minmax" and not beside

    @property
    def weights_need_calibration(self) -> bool:
        """Whether quantizing a weight looks at its inputs."""
        scored = self.outliers is not None and self.outliers.needs_calibration
        fitted = self.fit in NEEDS_MOMENTS | NEEDS_IMPORTANCE
        return scored or fitted or self.quantizer == "gptq" or self.low_rank > 0


@dataclass(frozen=True)
class Compressed:
    """What is stored for one weight.

    Attributes:
        weight: (R, C) float32, everything together.
        extra_bits: what is stored beyond the format's own bits of the whole matrix.
        exact_columns: columns whose inputs stay in full precision.
    """

    weight: Tensor
    extra_bits: int = 0
    exact_columns: tuple[int, ...] = ()


def compress(
    weight: Tensor, fmt: NumberFormat, how: OneWeight, inputs: InputStatistics | None = None
) -> Compressed:
    """Return what a recipe makes of a weight.

    Args:
        weight: (R, C) float32; fmt: its format.
        how: the recipe; inputs: what the linear reads, None where the recipe needs no calibration.

    Raises:
        ConfigError: a format that a step cannot take.
    """
    hessian = None if inputs is None else inputs.hessian
    store = how.outliers
    if store is None:
        dense = Compressed(_rounded(weight, fmt, how, hessian))
    elif store.kind == "columns":
        dense = _with_columns(weight, fmt, how, store, inputs)
    else:
        dense = _with_elements(weight, fmt, how, store.kind, hessian)
    return _corrected(weight, dense, how.low_rank, hessian) if how.low_rank else dense


def _rounded(
    weight: Tensor,
    fmt: NumberFormat,
    how: OneWeight,
    hessian: Tensor | None,
    *,
    keep: list[int] | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """Return the values (R, C) under quantizer and fit."""
    importance = None
    if how.fit in NEEDS_IMPORTANCE:
        assert hessian is not None
        importance = obs_saliency(weight, hessian)
    if how.quantizer == "rtn":
        moments = hessian if how.fit in NEEDS_MOMENTS else None
        return fitted_fake_quantize(weight, fmt, how.fit, moments=moments, importance=importance)
    assert hessian is not None
    return gptq(
        weight,
        hessian,
        fmt,
        fit=how.fit,
        order=how.order,
        damping_frac=how.damping_frac,
        keep=keep or (),
        importance=importance,
        exact=exact,
    ).weight


def _with_columns(
    weight: Tensor, fmt: NumberFormat, how: OneWeight, store: OutlierStore, inputs: InputStatistics | None
) -> Compressed:
    rows, columns = weight.shape
    count = max(1, round(store.share_frac * columns))
    keep = sorted(_column_scores(weight, fmt, store, inputs).topk(count).indices.tolist())
    high = parse_format(store.format)
    extra = stored_bits(high, rows, count) + count * INDEX_BITS
    extra += stored_bits(fmt, rows, columns - count) - stored_bits(fmt, rows, columns)
    if how.quantizer == "rtn":
        values = with_columns(weight, fmt, keep, how.fit).weight
        values[:, keep] = fake_quantize(weight[:, keep], high)
    else:
        assert inputs is not None
        values = _rounded(weight, fmt, how, inputs.hessian, keep=keep)
        values[:, keep] = fake_quantize(values[:, keep], high)
    return Compressed(values, extra, tuple(keep) if store.exact_inputs else ())


def _with_elements(
    weight: Tensor, fmt: NumberFormat, how: OneWeight, kind: Store, hessian: Tensor | None
) -> Compressed:
    assert how.outliers is not None
    if how.outliers.score == "obs":
        assert hessian is not None
        score = obs_saliency(weight, hessian)
    else:
        score = weight.abs()
    mask = top_elements(score, how.outliers.share_frac)
    extra = sparse_bits(kind, weight.shape[0], weight.shape[1], int(mask.sum()))
    if how.quantizer == "rtn":
        return Compressed(with_elements(weight, fmt, mask, kind, how.fit).weight, extra)
    return Compressed(_rounded(weight, fmt, how, hessian, exact=mask), extra)


def _corrected(weight: Tensor, dense: Compressed, rank: int, hessian: Tensor | None) -> Compressed:
    """Add the low-rank part of what was lost that lowers the error of the outputs most."""
    metric = None if hessian is None else inverse_factor(hessian)[1]
    left, right = low_rank_factors(weight - dense.weight, rank, metric)
    extra = dense.extra_bits + rank * sum(weight.shape) * VALUE_BITS
    return Compressed(dense.weight + left @ right, extra, dense.exact_columns)


def _column_scores(
    weight: Tensor, fmt: NumberFormat, store: OutlierStore, inputs: InputStatistics | None
) -> Tensor:
    if store.score == "magnitude":
        return weight.square().sum(0)
    assert inputs is not None
    if store.score == "absmax":
        return inputs.absmax
    if store.score == "activation":
        return inputs.moments.diagonal()
    lost = (fake_quantize(weight, fmt) - weight).square().sum(0)
    return inputs.moments.diagonal() * lost
