"""Formats with tables of levels, against enumerations, quantiles and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from dse.formats.codebooks import NF4_LEVELS, bitmod_base, codebooks, dialects
from dse.formats.grammar import parse_format
from dse.formats.storage import bits_per_element
from dse.quantize import dequantize, fake_quantize, quantize_codes
from dse.quantize.kmeans import exact_levels, grid_levels, lloyd, look_up, nearest
from dse.quantize.nested import nested_codes, nested_tables
from dse.quantize.scale_codec import dynamic_levels


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sse(x: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    error = (x.double() - look_up(nearest(x.double(), levels), levels)).square()
    return (error if weights is None else error * weights).sum(1)


def _brute(x: Tensor, levels: tuple[float, ...], scale: Tensor) -> Tensor:
    """Nearest level by looking at every one."""
    table = torch.tensor(levels)
    return table[(x[..., None] / scale[..., None] - table).abs().argmin(-1)] * scale


def test_nf4_levels_are_normal_quantiles() -> None:
    """Oracle: QLoRA's construction with scipy's normal quantiles, offset 0.9677083."""
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0.0], negative]))
    levels /= np.abs(levels).max()
    assert np.allclose(levels, NF4_LEVELS, atol=1e-6)


def test_nf4_is_nearest_level_and_beats_int4_on_gaussians() -> None:
    x = _gaussian(64, 64)
    scale = x.abs().amax(1, keepdim=True).half().float()
    assert torch.equal(fake_quantize(x, parse_format("nf4_b64")), _brute(x, NF4_LEVELS, scale))
    big = _gaussian(512, 512)
    errors = {n: (fake_quantize(big, parse_format(n)) - big).square().mean() for n in ("nf4_b64", "int4_g64")}
    assert errors["nf4_b64"] < errors["int4_g64"]


def test_double_quantization_costs_what_qlora_says() -> None:
    """4 + 8/64 + 32/(64 * 256) bits and one float32 mean; the error of the scales is small."""
    fmt = parse_format("nf4_b64_dq")
    assert bits_per_element(fmt, 512, 512) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256) + 32 / 512**2)
    x = _gaussian(512, 512)
    plain, double = (fake_quantize(x, parse_format(n)) for n in ("nf4_b64", "nf4_b64_dq"))
    assert (double - x).square().mean() < 1.02 * (plain - x).square().mean()


def test_dynamic_levels() -> None:
    """Dettmers 2015: 256 levels, symmetric but for 1, all decades down to 1e-6."""
    levels = dynamic_levels(torch.device("cpu"))
    assert len(levels) == len(set(levels.tolist())) == 256
    inner = levels[:-1]
    assert torch.allclose(inner, -inner.flip(0))
    assert levels[-1] == 1.0
    assert float(levels[levels > 0][0]) == pytest.approx(0.55e-6)


@pytest.mark.parametrize("element", ["bitmod3", "bitmod4"])
def test_bitmod_is_the_best_of_four_and_never_above_its_base(element: str) -> None:
    """Oracle: every table by brute force (METHODS 7.6: the ER tables contain the base at the same scale)."""
    x = _gaussian(200, 64, seed=1)
    y = fake_quantize(x, parse_format(f"{element}_g64"))
    error = (y - x).square().sum(1)
    top = x.abs().amax(1, keepdim=True)
    candidates = []
    for levels in codebooks(element):
        scale = (top / max(abs(v) for v in levels)).half().float()
        candidates.append((_brute(x, levels, scale) - x).square().sum(1))
    assert torch.allclose(error, torch.stack(candidates).amin(0))
    base = bitmod_base(element)
    scale = (top / max(base)).half().float()
    assert bool((error <= (_brute(x, base, scale) - x).square().sum(1) + 1e-9).all())
    chosen = quantize_codes(x, parse_format(f"{element}_g64")).zero
    assert chosen is not None
    assert len(chosen.unique()) == 4


def test_dialects_are_a_family_around_e2m1() -> None:
    """Maxima 7.5 ... 4 in pairs, one value differs in a pair, dialect 7 is E2M1 (METHODS 4.3)."""
    tables = dialects()
    assert tables[7] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    for pair, (first, second) in enumerate(zip(tables[::2], tables[1::2], strict=True)):
        assert first[-1] == second[-1] == 7.5 - 0.5 * pair
        assert len(set(first) - set(second)) == len(set(second) - set(first)) == 1
        assert all(value * 2 == int(value * 2) for value in (*first, *second))


def test_dialect_by_error_is_the_best_of_all_and_online_is_close() -> None:
    x = _gaussian(500, 32, seed=2)
    y = fake_quantize(x, parse_format("dialectfp4_b32"))
    scale = torch.exp2(torch.floor(torch.log2(x.abs().amax(1, keepdim=True))) - 2)
    magnitude, one = x.abs() / scale, torch.ones_like(scale)
    errors = [(_brute(magnitude, levels, one) - magnitude).square().sum(1) for levels in dialects()]
    best = torch.stack(errors).amin(0)
    assert torch.allclose(((y - x) / scale).square().sum(1), best, rtol=1e-4)
    assert bool((best <= errors[7] + 1e-6).all())
    mse = {
        name: float((fake_quantize(x, parse_format(name)) - x).square().mean())
        for name in ("dialectfp4_b32", "dialectfp4_b32_online", "mxfp4")
    }
    assert mse["dialectfp4_b32"] < mse["dialectfp4_b32_online"] < mse["mxfp4"]
    assert mse["dialectfp4_b32_online"] < 1.25 * mse["dialectfp4_b32"]


def test_mxint_with_eight_exponent_bits_is_ocp_mxint8() -> None:
    x = _gaussian(64, 96) * torch.exp2(_gaussian(64, 1) * 8)
    assert torch.equal(
        fake_quantize(x, parse_format("mxint8_e8_b32")), fake_quantize(x, parse_format("mxint8"))
    )


def test_mxint_narrow_exponent_clamps() -> None:
    """By definition: exponents -7 ... 8, so a block near 2^-12 keeps the unit 2^(-7 - 4) of 6 bits."""
    x = torch.full((1, 16), 2.0**-12)
    x[0, 0] = 1.6 * 2.0**-12
    y = fake_quantize(x, parse_format("mxint6_e4_b16"))
    unit = 2.0**-11
    assert torch.equal(y, torch.round(x / unit) * unit)


def test_binary_magnitude_is_the_least_squares_one() -> None:
    """Grid search around alpha; for fixed signs the error is a parabola in alpha with its minimum there."""
    x = _gaussian(1, 64, seed=3)
    fmt = parse_format("binary_g64")
    codes = quantize_codes(x, fmt)
    assert torch.equal(dequantize(codes), fake_quantize(x, fmt))
    mean = float(x.mean())
    signs = torch.where(x >= mean, 1.0, -1.0)
    alphas = [float(codes.scale) + step for step in np.linspace(-0.2, 0.2, 41)]
    errors = [float((mean + signs * alpha - x).square().sum()) for alpha in alphas]
    assert abs(int(np.argmin(errors)) - 20) <= 1


def test_exact_levels_against_all_partitions() -> None:
    """Oracle: every way to cut 9 sorted values into 3 or 4 intervals."""
    generator = np.random.default_rng(0)
    for n_levels in (3, 4):
        for _ in range(10):
            x = np.sort(generator.standard_normal(9))
            w = generator.uniform(0.1, 2.0, 9)

            def cost(cuts: tuple[int, ...], x: np.ndarray = x, w: np.ndarray = w) -> float:
                edges = (0, *cuts, len(x))
                parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
                return sum(float((w[p] * (x[p] - np.average(x[p], weights=w[p])) ** 2).sum()) for p in parts)

            brute = min(cost(cuts) for cuts in itertools.combinations(range(1, 9), n_levels - 1))
            levels = exact_levels(x, n_levels, w)
            found = float((w * ((x[:, None] - levels) ** 2).min(1)).sum())
            assert found == pytest.approx(brute, rel=1e-9)


def test_lloyd_never_ends_above_rtn_nor_below_the_optimum() -> None:
    """METHODS 7.4, unweighted and weighted."""
    x = _gaussian(40, 200, seed=4)
    weights = torch.rand(40, 200, generator=torch.Generator().manual_seed(5)).double() ** 4
    for w in (None, weights):
        start = grid_levels(x, 8)
        ended, rtn = _sse(x, lloyd(x, start, w), w), _sse(x, start, w)
        assert bool((ended <= rtn).all())
        for row in range(5):
            row_weights = None if w is None else w[row].numpy()
            optimum = exact_levels(x[row].double().numpy(), 8, row_weights)
            best = _sse(
                x[row : row + 1], torch.tensor(optimum)[None], None if w is None else w[row : row + 1]
            )
            assert float(best) <= float(ended[row]) * (1 + 1e-9)


def test_nested_codes_shift_and_errors_fall() -> None:
    """METHODS 7.5: the code of b bits is the widest one shifted; each width has its own table."""
    x = _gaussian(16, 400, seed=6)
    previous = None
    codes = {}
    for read in range(3, 7):
        fmt = parse_format(f"any{read}of6_row")
        quantized = quantize_codes(x, fmt)
        codes[read] = quantized.codes
        error = (dequantize(quantized) - x).square().sum(1)
        if previous is not None:
            assert bool((error <= previous * (1 + 1e-3)).all())
        previous = error
        optimum = torch.tensor(exact_levels(x[0].double().numpy(), 1 << read))[None]
        assert float(error[0]) >= float(_sse(x[:1], optimum)) * (1 - 1e-3)
    assert all(torch.equal(codes[3], other) for other in codes.values())
    tables = nested_tables(x.double(), 3, 6)
    wide = nested_codes(x.double(), tables)
    for drop, table in enumerate(reversed(tables)):
        narrow = nested_codes(x.double(), tables[: len(tables) - drop])
        assert torch.equal(wide >> drop, narrow)
        assert int(narrow.max()) < table.shape[1]


def test_nested_split_is_the_best_cut() -> None:
    """Oracle: every cut of one cluster."""
    x = _gaussian(1, 30, seed=7).double()
    tables = nested_tables(x, 1, 2)
    low, high = tables[0][0].tolist()
    for parent, half in ((low, tables[1][0, :2]), (high, tables[1][0, 2:])):
        members = torch.stack([v for v in x[0] if abs(v - parent) == min(abs(v - low), abs(v - high))])
        members = members.sort().values
        best = min(
            float(
                (members[:cut].var(correction=0) * cut)
                + members[cut:].var(correction=0) * (len(members) - cut)
            )
            for cut in range(1, len(members))
        )
        found = float((members[:, None] - half).square().amin(1).sum())
        assert found == pytest.approx(best, rel=1e-2)


def test_blocks_columns_and_two_levels_against_loops() -> None:
    x = _gaussian(70, 100, seed=8)
    y = fake_quantize(x, parse_format("int4_b32x48"))
    for i in range(0, 70, 32):
        for j in range(0, 100, 48):
            block = x[i : i + 32, j : j + 48]
            expected = fake_quantize(block.reshape(1, -1), parse_format("int4")).view(block.shape)
            assert torch.equal(y[i : i + 32, j : j + 48], expected)
    columns = fake_quantize(x, parse_format("int4_column_asym"))
    assert torch.equal(columns, fake_quantize(x.t(), parse_format("int4_row_asym")).t())
    two = quantize_codes(x, parse_format("int4_g32_s8"))
    assert two.second is not None
    plain = quantize_codes(x, parse_format("int4_g32")).scale
    assert bool(((two.scale - plain).abs() <= two.second[:, None] * 0.51).all())


def test_scales_and_zero_points_of_few_bits_against_a_loop() -> None:
    """SpQR's two levels, written out for one block of 16 rows and one group of columns."""
    x = _gaussian(40, 48, seed=9)
    quantized = quantize_codes(x, parse_format("int3_g16_asym_s3"))

    def stored(values: list[float]) -> list[float]:
        low = torch.tensor(min(values)).half().float()
        step = torch.tensor((max(values) - min(values)) / 7).half().float()
        codes = ((torch.tensor(values) - low) / step).round().clamp(0, 7)
        return (low + codes * step).tolist()

    rows, columns = range(32, 40), slice(16, 32)  # the last block has only 8 rows
    ranges = [(min(0.0, float(x[r, columns].min())), max(0.0, float(x[r, columns].max()))) for r in rows]
    steps = [float(torch.tensor((high - low) / 7).half()) for low, high in ranges]
    zeros = stored([-low / step for (low, _), step in zip(ranges, steps, strict=True)])
    for row, step, zero in zip(rows, stored(steps), zeros, strict=True):
        expected = ((x[row, columns] / step + zero).round().clamp(0, 7) - zero) * step
        assert torch.allclose(dequantize(quantized)[row, columns], expected, atol=1e-5)


def test_few_bits_of_scale_cost_little_accuracy() -> None:
    """Near float16 scales at 0.56 bits less: fractions of zero points give back what 3-bit scales lose."""
    x = _gaussian(64, 256, seed=10)
    error = {
        name: float((fake_quantize(x, parse_format(name)) - x).norm() / x.norm())
        for name in ("int3_g16_asym", "int3_g16_asym_s3", "int3_g64_asym")
    }
    assert error["int3_g16_asym_s3"] == pytest.approx(error["int3_g16_asym"], rel=0.1)
    assert error["int3_g16_asym_s3"] < error["int3_g64_asym"]
