"""Look-ups of levels are the same as searches, bit for bit; choices of tables are those of brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.formats.codebooks import codebooks, dialects
from dse.formats.grammar import parse_format
from dse.quantize import fake_quantize
from dse.quantize.cells import cells, cells_by_row, midpoints
from dse.quantize.extremes import absmax_of
from dse.quantize.half import half_scale
from dse.quantize.kmeans import nearest

TABLES = [*codebooks("nf4"), *codebooks("bitmod3"), *codebooks("bitmod4")]


def _weights(rows: int = 400, columns: int = 576) -> Tensor:
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    w[3], w[4, :64], w[5] = 0.0, 0.25, w[5].bfloat16().float()
    return w


@pytest.mark.parametrize("table", TABLES)
def test_cells_are_those_of_a_search(table: tuple[float, ...]) -> None:
    """Also on the bounds themselves, their neighbours, zeros of both signs, infinities and subnormals."""
    bounds = torch.tensor(midpoints(table))
    near = [bounds, *(torch.nextafter(bounds, torch.tensor(to)) for to in (-torch.inf, torch.inf))]
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 1e38])
    x = torch.cat([*near, odd, torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 3])
    assert torch.equal(cells(x, midpoints(table)).long(), torch.bucketize(x, bounds))


def test_bounds_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="upper 16 bits"):
        cells(torch.zeros(1), (1.0, 1.0001))


def test_cells_by_row_are_those_of_a_search() -> None:
    x = _weights()
    levels = x.view(400, 36, 16).mean(1).sort(dim=1).values
    middle = (levels[:, 1:] + levels[:, :-1]) / 2
    expected = torch.searchsorted(middle.contiguous(), x)
    assert torch.equal(cells_by_row(x, middle).long(), expected)
    assert torch.equal(nearest(x, levels), expected)
    many = torch.linspace(-1, 1, 40)[None]
    assert torch.equal(nearest(x, many), torch.bucketize(x, (many[0, 1:] + many[0, :-1]) / 2))


def _searched(groups: Tensor, element: str) -> Tensor:
    """Every table tried with a search per element, the first of the least squared error kept."""
    absmax, best, out = absmax_of(groups), None, groups.clone()
    for table in codebooks(element):
        levels = torch.tensor(table)
        scale = half_scale(absmax / float(levels.abs().max()))
        value = levels[torch.bucketize(groups / scale, (levels[1:] + levels[:-1]) / 2)] * scale
        error = (value - groups).square().sum(-1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best
        best = error if best is None else torch.where(better, error, best)
        out = torch.where(better, value, out)
    return out


@pytest.mark.parametrize("name", ["nf4_b64", "bitmod3_g64", "bitmod4_g64"])
def test_codebooks_against_a_search(name: str) -> None:
    fmt, w = parse_format(name), _weights()
    expected = _searched(w.view(-1, 64), fmt.element).view(w.shape)
    assert torch.equal(fake_quantize(w, fmt), expected)


def test_dialects_against_brute_force() -> None:
    """Errors of all 16 dialects summed in float64 element by element; the first of the least is taken."""
    w = _weights()
    groups = w.view(-1, 32)
    absmax = absmax_of(groups)
    exponent = torch.frexp(absmax.clamp(min=2.0**-126)).exponent - 1
    scale = torch.ldexp(torch.ones_like(absmax), exponent.clamp(-16, 15) - 2)
    magnitude = groups.abs() / scale
    values = []
    for table in dialects():
        levels = torch.tensor(table)
        bounds = (levels[1:] + levels[:-1]) / 2
        values.append(levels[torch.bucketize(magnitude, bounds, right=True)])
    errors = torch.stack([(v.double() - magnitude.double()).square().sum(-1) for v in values], -1)
    best = torch.stack(values, -1).gather(-1, errors.argmin(-1)[:, None, None].expand(-1, 32, 1))[..., 0]
    expected = torch.where(torch.signbit(groups), -best, best) * scale
    assert torch.equal(fake_quantize(w, parse_format("dialectfp4_b32")), expected.view(w.shape))
