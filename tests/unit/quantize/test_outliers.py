"""Outlier stores: exact where they keep, sized as their arrays, better with more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.formats.storage import stored_bits
from dse.quantize import fake_quantize
from dse.quantize.outliers import (
    sparse_bits,
    top_elements,
    with_columns,
    with_elements,
    with_low_rank,
)

FMT = parse_format("int3_g32_asym")


def _weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(48, 128, generator=generator)
    w[:, [3, 77]] *= 8
    w[torch.rand(48, 128, generator=generator) < 0.005] *= 10
    return w


def _error(w: Tensor, q: Tensor) -> float:
    return float((w - q).square().sum())


@pytest.mark.parametrize("store", ["csr", "bitmap"])
def test_elements_are_exact_and_sizes_are_those_of_the_arrays(store: str) -> None:
    w = _weight()
    mask = top_elements(w.abs(), 0.01)
    assert int(mask.sum()) == round(0.01 * w.numel())
    kept = with_elements(w, FMT, mask, store)  # type: ignore[arg-type]
    assert torch.equal(kept.weight[mask], w[mask].half().float())
    assert sum(array.nbytes for array in kept.arrays) * 8 == kept.extra_bits
    assert kept.extra_bits == sparse_bits(store, 48, 128, int(mask.sum()))  # type: ignore[arg-type]
    assert kept.bits == kept.extra_bits + stored_bits(FMT, 48, 128)
    rebuilt = kept.weight.clone()
    if store == "csr":
        values, columns, pointers = kept.arrays
        rows = np.repeat(np.arange(48), np.diff(pointers))
        rebuilt[rows, columns.astype(np.int64)] = torch.from_numpy(values).float()
    else:
        bits = np.unpackbits(kept.arrays[1])[: w.numel()].reshape(48, 128).astype(bool)
        rebuilt[torch.from_numpy(bits)] = torch.from_numpy(kept.arrays[0]).float()
    assert torch.equal(rebuilt, kept.weight)


def test_errors_fall_with_what_is_kept() -> None:
    w = _weight()
    plain = _error(w, fake_quantize(w, FMT))
    by_share = [_error(w, with_elements(w, FMT, top_elements(w.abs(), f)).weight) for f in (0.0, 0.005, 0.02)]
    assert by_share[0] == pytest.approx(plain)
    assert by_share[0] > by_share[1] > by_share[2]
    assert _error(w, with_columns(w, FMT, [3, 77]).weight) < plain
    ranks = [_error(w, with_low_rank(w, FMT, rank).weight) for rank in (0, 4, 16)]
    assert ranks[0] == pytest.approx(plain)
    assert ranks[0] > ranks[1] > ranks[2]
    with pytest.raises(ConfigError, match="did you mean 'csr'"):
        sparse_bits("csr2", 2, 2, 1)  # type: ignore[arg-type]


def test_columns_and_low_rank() -> None:
    """All columns kept is float16; the low-rank error is the tail of singular values (Eckart-Young)."""
    w = _weight()
    everything = with_columns(w, FMT, list(range(128)))
    assert torch.equal(everything.weight, w.half().float())
    some = with_columns(w, FMT, [3, 77])
    for stored in (everything, some, with_low_rank(w, FMT, 5)):
        assert sum(array.nbytes for array in stored.arrays) * 8 == stored.extra_bits
    assert torch.equal(some.weight[:, 3], w[:, 3].half().float())
    tail = torch.linalg.svdvals((w - fake_quantize(w, FMT)).double())[5:]
    assert _error(w, with_low_rank(w, FMT, 5).weight) == pytest.approx(float(tail.square().sum()), rel=1e-2)
