"""The passes that replace torch's own, because those wake other threads."""

from __future__ import annotations

import torch

from dse.quantize.extremes import CHUNK, absmax_of, low_high_of
from dse.quantize.integer import round_even_


def test_whole_numbers_halves_and_neighbours_round_as_torch_does() -> None:
    halves = torch.arange(-2000, 2001).float() / 2
    beside = [torch.nextafter(halves, torch.tensor(side)) for side in (torch.inf, -torch.inf)]
    random = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 1e6
    x = torch.cat([halves, *beside, random, torch.tensor([2.0**22 - 0.5, -(2.0**22) + 0.5])])
    assert torch.equal(round_even_(x.clone()), torch.round(x))


def test_extremes_of_a_long_row_in_parts() -> None:
    x = torch.randn(1, 3 * CHUNK + 5, generator=torch.Generator().manual_seed(0))
    low, high = low_high_of(x)
    assert (low.shape, float(low), float(high)) == ((1, 1), float(x.min()), float(x.max()))
    assert float(absmax_of(x)) == float(x.abs().max())
    x[0, 2 * CHUNK] = torch.nan
    assert bool(torch.isnan(absmax_of(x)).all())
