"""GPTQ's core and range fits, against exact identities and other factorisations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.quantize import fake_quantize
from dse.quantize.fit import FITS, NEEDS_IMPORTANCE, SALIENT_WEIGHTS, fitted_fake_quantize
from dse.quantize.gptq import Band, gptq, inverse_factor, obs_saliency


def _problem(rows: int = 24, columns: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A float64 weight and correlated second moments with outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64) * 0.3
    x = torch.randn(400, columns, generator=generator, dtype=torch.float64) @ (
        mix + torch.eye(columns).double()
    )
    x[:, :3] *= 6
    return w, 2 / 400 * x.t() @ x


def _error(w: Tensor, q: Tensor, h: Tensor) -> float:
    d = (w - q).double()
    return float(((d @ h) * d).sum())


@pytest.mark.parametrize(
    "name", ["int3_row_asym", "int4_g16", "mxfp4", "nvfp4", "nf4_b16_dq", "kmeans3_row", "bitmod3_g16"]
)
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_error_identity(name: str, order: str) -> None:
    """tr((W - Q) H (W - Q)^T) = ||E||_F^2 with the damped H, float64 (METHODS 1.2)."""
    w, h = _problem()
    result = gptq(w, h, parse_format(name), order=order)  # type: ignore[arg-type]
    _, damped = inverse_factor(h)
    assert _error(w, result.weight, damped) == pytest.approx(result.loss, rel=1e-9)


def test_error_identity_with_kept_columns_and_bands() -> None:
    """Kept columns have no error of their own, but take in those of all others; two widths side by side."""
    w, h = _problem(seed=6)
    _, damped = inverse_factor(h)
    bands = (Band(24, parse_format("int2_g8_asym")), Band(32, parse_format("int4_g16_asym")))
    result = gptq(w, h, bands, keep=[0, 1, 2, 10, 30, 40, 50, 63], order="activation")
    assert result.kept == (0, 1, 2, 10, 30, 40, 50, 63)
    assert _error(w, result.weight, damped) == pytest.approx(result.loss, rel=1e-9)


@pytest.mark.parametrize("j", [0, 5, 11])
def test_freezing_a_weight_costs_one_power_of_the_inverse(j: int) -> None:
    """min over the other weights of d H d^T at d_j = w_j - q is (w_j - q)^2 / [H^-1]_jj, solved directly."""
    _, h = _problem(columns=12, seed=7)
    change = 0.37
    others = [k for k in range(12) if k != j]
    d = torch.zeros(12, dtype=torch.float64)
    d[j] = change
    d[others] = -change * torch.linalg.solve(h[others][:, others], h[others, j])
    least = float(d @ h @ d)
    inverse = float(torch.linalg.inv(h)[j, j])
    assert least == pytest.approx(change**2 / inverse, rel=1e-9)
    assert least != pytest.approx(change**2 / inverse**2, rel=1e-2)


@pytest.mark.parametrize("name", ["int3_row_asym", "int4_g16_asym", "int4_g24", "mxfp4"])
def test_lazy_blocks_equal_columns(name: str) -> None:
    w, h = _problem(seed=1)
    lazy = gptq(w, h, parse_format(name), block_columns=32).weight
    assert torch.equal(lazy, gptq(w, h, parse_format(name), block_columns=1).weight) or torch.allclose(
        lazy, gptq(w, h, parse_format(name), block_columns=1).weight, atol=1e-12
    )


def _with_factor(w: Tensor, factor: Tensor, name: str) -> Tensor:
    """The textbook sweep with any matrix in place of U."""
    fmt, work, out = parse_format(name), w.clone(), torch.empty_like(w)
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**fmt.bits - 1)).half().double()
    zero = (-low / scale).round()
    for j in range(w.shape[1]):
        column = work[:, j : j + 1]
        q = scale * ((column / scale).round().add(zero).clamp(0, 2**fmt.bits - 1) - zero)
        work[:, j:] -= (column - q) / factor[j, j] * factor[j : j + 1, j:]
        out[:, j : j + 1] = q
    return out


def test_the_upper_factor_beats_the_full_inverse_and_the_lower_factor() -> None:
    """METHODS 1.2: median errors relative to rounding are about 0.56 (U), 0.82 (H^-1), 1.98 (L^-T)."""
    ratios: dict[str, list[float]] = {"u": [], "inverse": [], "lower": []}
    for seed in range(20):
        w, h = _problem(seed=seed)
        upper, damped = inverse_factor(h)
        rtn = _error(w, fake_quantize(w.float(), parse_format("int3_row_asym")).double(), damped)
        lower = torch.linalg.inv(torch.linalg.cholesky(damped)).t()
        for key, factor in (("u", upper), ("inverse", torch.linalg.inv(damped)), ("lower", lower)):
            ratios[key].append(_error(w, _with_factor(w, factor, "int3_row_asym"), damped) / rtn)
        ours = gptq(w, h, parse_format("int3_row_asym")).weight
        assert torch.allclose(ours, _with_factor(w, upper, "int3_row_asym"), atol=1e-9)
    median = {key: float(torch.tensor(values).median()) for key, values in ratios.items()}
    assert median["u"] < median["inverse"] < 1 < median["lower"]
    assert sum(value < 1 for value in ratios["u"]) >= 19


def test_factor_diagonal_is_the_conditional_inverse() -> None:
    """U_jj^2 = [(H_{j:,j:})^-1]_11, by inverting every trailing block."""
    _, h = _problem(columns=12)
    upper, damped = inverse_factor(h)
    assert torch.allclose(upper.t() @ upper, torch.linalg.inv(damped), rtol=1e-9)
    for j in range(12):
        assert float(upper[j, j] ** 2) == pytest.approx(
            float(torch.linalg.inv(damped[j:, j:])[0, 0]), rel=1e-9
        )
    w, _ = _problem(rows=2, columns=12)
    saliency = obs_saliency(w, h)
    # the best completion after zeroing the last weight costs w^2 / [H^-1]_jj: nothing is left to adjust
    assert torch.allclose(saliency[:, -1], w[:, -1].square() * damped[-1, -1])


def test_kept_columns_take_errors_and_stay_full_precision() -> None:
    """More kept columns, less error; choosing them by H_jj beats choosing the quietest."""
    w, h = _problem(seed=3)
    fmt = parse_format("int3_row_asym")
    loud = h.diagonal().argsort(descending=True).tolist()
    losses = [gptq(w, h, fmt, keep=loud[:k]).loss for k in (0, 3, 8)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[1] < gptq(w, h, fmt, keep=loud[-3:]).loss
    everything = gptq(w, h, (), keep=range(64))
    assert torch.equal(everything.weight, w)
    assert everything.loss == 0


def test_bands_dead_columns_and_wrong_bands() -> None:
    w, h = _problem(seed=4)
    h[5, :] = h[:, 5] = 0
    bands = (Band(32, parse_format("int2_g16_asym")), Band(32, parse_format("int8_g16_asym")))
    result = gptq(w, h, bands)
    assert not bool(result.weight[:, 5].any())
    assert result.loss < gptq(w, h, parse_format("int2_g16_asym")).loss
    for row in result.weight[:, 16:32].float():
        assert len(row.unique()) <= 4
    with pytest.raises(ConfigError, match="cover 32 columns, but 64"):
        gptq(w, h, bands[:1])
    with pytest.raises(ConfigError, match="positive definite"):
        gptq(w, h * torch.nan, parse_format("int4"))


@pytest.mark.parametrize("fit", sorted(set(FITS) - {"percentile"}))
@pytest.mark.parametrize("name", ["int3_g16_asym", "int4_row", "fp4_e2m1_g16", "mxfp4", "nf4_b16", "int4"])
def test_a_search_never_does_worse_by_its_own_measure(fit: str, name: str) -> None:
    """Ratio 1 is a candidate; errors are recomputed here from the weights."""
    if fit == "act_clip" and name == "int4":
        pytest.skip("one scale for the tensor has no single group of inputs")
    w, h = _problem(seed=5)
    w, h = w.float(), h.float()
    fmt = parse_format(name)
    importance = w.abs() ** 3 + 0.1
    y = fitted_fake_quantize(w, fmt, fit, moments=h, importance=importance)
    plain = fake_quantize(w, fmt)
    size = fmt.group_size or w.shape[1]
    if fit == "act_clip":
        blocks = torch.block_diag(*(h[i : i + size, i : i + size] for i in range(0, 64, size)))
        assert _error(w, y, blocks.double()) <= _error(w, plain, blocks.double()) * (1 + 1e-6)
        return
    weight = importance if fit == "importance" else torch.tensor(1.0)
    if fit in SALIENT_WEIGHTS:
        is_salient = importance > importance.mean() + 2 * importance.std()
        assert 0 < int(is_salient.sum()) < 0.1 * w.numel()
        weight = torch.where(is_salient, SALIENT_WEIGHTS[fit], 1.0)
    power = 2 if fit == "importance" else 2.4
    measure = [float(((z - w).abs().double() ** power * weight).sum()) for z in (y, plain)]
    assert measure[0] <= measure[1] * (1 + 1e-6)


def test_fits_say_what_they_need() -> None:
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="did you mean 'mse'"):
        fitted_fake_quantize(w, parse_format("int4_row"), "mze")
    with pytest.raises(ConfigError, match="second moments"):
        fitted_fake_quantize(w, parse_format("int4_row"), "act_clip")
    for fit in NEEDS_IMPORTANCE:
        with pytest.raises(ConfigError, match="importance"):
            fitted_fake_quantize(w, parse_format("int4_row"), fit)
    with pytest.raises(ConfigError, match="no range"):
        fitted_fake_quantize(w, parse_format("kmeans3_row"), "mse")
    clipped = fitted_fake_quantize(w, parse_format("int4_row"), "percentile")
    assert torch.equal(clipped, fake_quantize(w, parse_format("int4_row")))  # 64 elements: nothing to skip
