"""Small floats against ml_dtypes: every code, every midpoint between neighbours, and beside each midpoint."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from dse.formats.elements import ELEMENTS
from dse.formats.grammar import parse_format
from dse.quantize import fake_quantize, quantize_codes
from dse.quantize.minifloat import decode_minifloat, encode_minifloat, round_minifloat_

ORACLES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
# METHODS section 8: the largest value, its exponent, and how many magnitudes are finite.
LIMITS = {"e2m1": (6, 2, 8), "e2m3": (7.5, 2, 32), "e3m2": (28, 4, 32), "e4m3": (448, 8, 127)}
LIMITS["e5m2"] = (57344, 15, 124)


def _probes(name: str) -> np.ndarray:
    """All values, all midpoints, their float32 neighbours on both sides, and random values; both signs."""
    table = np.array(ELEMENTS[name].magnitudes, dtype=np.float32)
    midpoints = (table[1:] + table[:-1]) / 2
    points = np.concatenate([table, midpoints])
    beside = [np.nextafter(points, np.float32(side)) for side in (-np.inf, np.inf)]
    random = np.random.default_rng(0).normal(size=2000).astype(np.float32) * table[-1] / 3
    points = np.concatenate([points, *beside, np.abs(random)]).astype(np.float32)
    points = points[points <= table[-1]]
    return np.concatenate([points, -points])


@pytest.mark.parametrize("name", ELEMENTS)
def test_tables(name: str) -> None:
    spec = ELEMENTS[name]
    assert (spec.max_value, spec.max_exponent, len(spec.magnitudes)) == LIMITS[name]
    codes = np.arange(len(spec.magnitudes), dtype=np.uint8)
    assert codes.view(ORACLES[name]).astype(np.float32).tolist() == list(spec.magnitudes)


def test_tables_of_the_method_sheet() -> None:
    """METHODS section 8, written out."""
    assert ELEMENTS["e2m1"].magnitudes == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    e2m3 = [k / 8 for k in range(16)] + [2 + k / 4 for k in range(8)] + [4 + k / 2 for k in range(8)]
    assert list(ELEMENTS["e2m3"].magnitudes) == e2m3
    assert ELEMENTS["e3m2"].magnitudes[:8] == tuple(k / 16 for k in range(8))
    assert ELEMENTS["e3m2"].magnitudes[-8:] == (8, 10, 12, 14, 16, 20, 24, 28)
    assert ELEMENTS["e4m3"].magnitudes[:8] == tuple(k * 2.0**-9 for k in range(8))
    assert ELEMENTS["e5m2"].magnitudes[:4] == tuple(k * 2.0**-16 for k in range(4))


@pytest.mark.parametrize("name", ELEMENTS)
def test_rounding_and_codes_are_bit_exact(name: str) -> None:
    spec, probes = ELEMENTS[name], _probes(name)
    expected = probes.astype(ORACLES[name])
    x = torch.from_numpy(probes)
    rounded = round_minifloat_(x.clone(), spec)
    assert np.array_equal(rounded.numpy(), expected.astype(np.float32))
    codes = encode_minifloat(x, spec)
    assert np.array_equal(codes.numpy().astype(np.uint8), expected.view(np.uint8))
    assert torch.equal(decode_minifloat(codes, spec), rounded)


@pytest.mark.parametrize("name", ELEMENTS)
def test_saturation_and_nan(name: str) -> None:
    spec = ELEMENTS[name]
    top = spec.max_value
    x = torch.tensor([top * 1.01, top * 100, torch.inf, -torch.inf, torch.nan, 1e-30, -1e-30, 0.0])
    rounded = round_minifloat_(x.clone(), spec)
    assert rounded[:4].tolist() == [top, top, top, -top]
    assert bool(torch.isnan(rounded[4]))
    assert rounded[5:].tolist() == [0, 0, 0]


def test_ties_go_to_the_even_code() -> None:
    """METHODS section 8: 2.5->2, 5->4, 3.5->4, .25->0, .75->1, 1.25->1, 1.75->2."""
    x = torch.tensor([2.5, 5.0, 3.5, 0.25, 0.75, 1.25, 1.75])
    assert round_minifloat_(x, ELEMENTS["e2m1"]).tolist() == [2, 4, 4, 0, 1, 1, 2]


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("scope", ["", "_row"])
def test_fp8_is_the_scaled_cast_of_torch(name: str, dtype: torch.dtype, scope: str) -> None:
    x = torch.randn((16, 96), generator=torch.Generator().manual_seed(1)) * 30
    absmax = x.abs().amax() if scope == "" else x.abs().amax(1, keepdim=True)
    scale = absmax / ELEMENTS[name].max_value
    clamped = (x / scale).clamp(-ELEMENTS[name].max_value, ELEMENTS[name].max_value)
    fmt = parse_format(f"fp8_{name}{scope}")
    assert torch.equal(fake_quantize(x, fmt), clamped.to(dtype).float() * scale)
    codes = clamped.to(dtype).view(torch.uint8).to(torch.int16)
    assert torch.equal(quantize_codes(x, fmt).codes, codes)


def test_tiny_rows_do_not_divide_by_zero() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-42, -1e-42], [2.0**-126, 0.0]])
    y = fake_quantize(x, parse_format("fp8_e4m3_row"))
    assert bool(torch.isfinite(y).all())
    assert y[0].tolist() == [0, 0]
