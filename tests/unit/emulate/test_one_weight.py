"""Outlier and low-rank stores as options of a recipe, against closed forms and the packed sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.emulate.calibrate import InputStatistics
from dse.emulate.one_weight import OneWeight, OutlierStore, compress
from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.formats.storage import stored_bits
from dse.quantize import fake_quantize
from dse.quantize.gptq import inverse_factor
from dse.quantize.outliers import low_rank_factors

FMT = parse_format("int3_g32_asym")
ROWS, COLUMNS = 48, 128


@pytest.fixture(scope="module")
def weight() -> Tensor:
    w = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    w[5, 7], w[20, 100] = 9.0, -8.0
    return w


@pytest.fixture(scope="module")
def inputs() -> InputStatistics:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    x[:, 11] *= 30
    statistics = InputStatistics.empty(COLUMNS, x.device)
    statistics.add(x)
    return statistics


def _loss(weight: Tensor, value: Tensor, inputs: InputStatistics) -> float:
    delta = (weight - value).double()
    return float(((delta @ inputs.moments.double()) * delta).sum())


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_columns(quantizer: str, weight: Tensor, inputs: InputStatistics) -> None:
    store = OutlierStore("columns", 4 / COLUMNS, "absmax", exact_inputs=True)
    made = compress(weight, FMT, OneWeight(quantizer, outliers=store), inputs)
    assert made.exact_columns == tuple(sorted(inputs.absmax.topk(4).indices.tolist()))
    assert 11 in made.exact_columns
    kept = made.weight[:, list(made.exact_columns)]
    assert torch.equal(kept, kept.half().float())
    if quantizer == "rtn":
        assert torch.equal(kept, weight[:, list(made.exact_columns)].half().float())
    total = stored_bits(FMT, ROWS, COLUMNS) + made.extra_bits
    assert total == stored_bits(FMT, ROWS, COLUMNS - 4) + 4 * (16 * ROWS + 16)
    plain = compress(weight, FMT, OneWeight(quantizer), inputs)
    assert _loss(weight, made.weight, inputs) < _loss(weight, plain.weight, inputs)


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_columns_of_another_width(quantizer: str, weight: Tensor, inputs: InputStatistics) -> None:
    """Two widths side by side: the bits of both matrices, and an error between those of either alone."""
    high = parse_format("int8_row_full")
    store = OutlierStore("columns", 1 / 8, "activation", format="int8_row_full")
    made = compress(weight, FMT, OneWeight(quantizer, outliers=store), inputs)
    keep = sorted(inputs.moments.diagonal().topk(16).indices.tolist())
    total = stored_bits(FMT, ROWS, COLUMNS) + made.extra_bits
    assert total == stored_bits(FMT, ROWS, 112) + stored_bits(high, ROWS, 16) + 16 * 16
    kept = made.weight[:, keep]
    assert torch.allclose(kept, fake_quantize(kept, high), rtol=1e-6)
    if quantizer == "rtn":
        assert torch.equal(kept, fake_quantize(weight[:, keep], high))
    alone = compress(weight, FMT, OneWeight(quantizer), inputs)
    best = compress(weight, high, OneWeight(quantizer), inputs)
    losses = [_loss(weight, entry.weight, inputs) for entry in (best, made, alone)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("kind", ["csr", "bitmap"])
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_elements(quantizer: str, kind: str, weight: Tensor, inputs: InputStatistics) -> None:
    """The two planted outliers are kept as they are, where GPTQ does not move them to take in errors."""
    store = OutlierStore(kind, 0.01, "magnitude")  # type: ignore[arg-type]
    made = compress(weight, FMT, OneWeight(quantizer, outliers=store), inputs)
    n = round(0.01 * weight.numel())
    pointers = (ROWS + 1) * 32 if kind == "csr" else ROWS * COLUMNS
    assert made.extra_bits == n * (32 if kind == "csr" else 16) + pointers
    if quantizer == "rtn":
        assert made.weight[5, 7] == 9.0
        assert made.weight[20, 100] == -8.0
    plain = compress(weight, FMT, OneWeight(quantizer), inputs)
    assert _loss(weight, made.weight, inputs) < _loss(weight, plain.weight, inputs)


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_low_rank_takes_the_largest_parts_of_the_output_error(
    quantizer: str, weight: Tensor, inputs: InputStatistics
) -> None:
    """Oracle (Eckart-Young): the rest is the sum of the other squared singular values of (W - Q) H^1/2."""
    plain = compress(weight, FMT, OneWeight(quantizer), inputs)
    made = compress(weight, FMT, OneWeight(quantizer, low_rank=6), inputs)
    assert made.extra_bits == 6 * (ROWS + COLUMNS) * 16
    damped = inverse_factor(inputs.hessian)[1].double()
    values, vectors = torch.linalg.eigh(damped)
    root = vectors * values.sqrt()
    singular = torch.linalg.svdvals((weight - plain.weight).double() @ root)
    left = torch.linalg.norm((weight - made.weight).double() @ root) ** 2
    assert float(left) == pytest.approx(float(singular[6:].square().sum()), rel=1e-3)


def test_plain_low_rank_is_the_truncated_decomposition(weight: Tensor) -> None:
    left, right = low_rank_factors(weight, 5)
    singular = torch.linalg.svdvals(weight.double())
    lost = float((weight - left @ right).square().sum())
    assert lost == pytest.approx(float(singular[5:].square().sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "rows", "share_frac": 0.1}, "unknown outlier store"),
        ({"kind": "csr", "share_frac": 0.0}, "share_frac: must be between"),
        ({"kind": "csr", "share_frac": 0.1, "score": "absmax"}, "cannot be chosen by"),
        ({"kind": "csr", "share_frac": 0.1, "exact_inputs": True}, "whole columns"),
        ({"kind": "csr", "share_frac": 0.1, "format": "int8_row"}, "whole columns"),
        ({"kind": "columns", "share_frac": 0.1, "format": "int8_rwo"}, "did you mean 'int8_row'"),
    ],
)
def test_stores_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OutlierStore(**fields)  # type: ignore[arg-type]
