"""Robust fits of kernel constants, pulled towards a prior: a few measurements update it, many replace it.

Minimised over the logarithms x of the constants:
``sum rho(ln(predicted / measured)) + sum (s (x - x0) / t)^2`` with Cauchy's rho, the prior's constants x0 and
their spreads t, and the noise s of one measurement: the maximum a posteriori estimate for heavy tails.
Cauchy's loss grows with the logarithm of the error, so a table's odd kernels (fallbacks, timer steps) do not
decide the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.pricing import KERNEL_MODELS, main_bandwidth_bytes_per_s
from cost_models.work import Work
from dse.calibrate.constants import Constant, completed, constants_of, values_of, with_values
from dse.calibrate.rows import Array, Measured
from hardware_specs.kernels import Interval, KernelProfile
from hardware_specs.spec import HardwareSpec

ROBUST_SCALE = 0.05
NOISE = 0.1
"""Spread of the logarithm of one measurement around a perfect model: the same product in two serving
frameworks differs by 1-8 % (bf16) to 14-39 % (fp8)."""

DETERMINED = 0.5
"""A constant counts as determined by the data if they narrow its prior to less than half."""


@dataclass(frozen=True)
class Fit:
    """A fitted profile, and which of its constants the data determined (the others kept near the prior)."""

    profile: KernelProfile
    determined: tuple[str, ...]
    undetermined: tuple[str, ...]


def predicted_s(work: Work, spec: HardwareSpec, profile: KernelProfile) -> Array:
    """Return the times of a work on a device with the given constants."""
    model = KERNEL_MODELS.get(work.kernel)
    times = model(work, spec, profile, spec.rate_flop_per_s(work.compute), main_bandwidth_bytes_per_s(spec))
    return np.asarray(times.time_s, dtype=np.float64)


def fit_profile(
    parts: Sequence[tuple[HardwareSpec, Measured]], prior: KernelProfile, *, noise: float = NOISE
) -> Fit:
    """Fit one profile to the measurements of one device, or of several that are to share it.

    Args:
        parts: devices with their rows; each part weighs the same however many rows it has.
        prior: constants to start from and to stay near.
        noise: spread of one measurement, which sets how much the prior counts.
    """
    from scipy.optimize import least_squares

    returns = any(rows.work.weights_return for _, rows in parts)
    constants = constants_of(parts[0][0], prior.name, weights_return=returns)
    start = completed(prior, constants)
    origin = np.log(values_of(start, constants))
    spreads = np.array([constant.spread for constant in constants])
    mean_rows = sum(len(rows) for _, rows in parts) / len(parts)

    def errors(logs: Array) -> list[Array]:
        profile = with_values(start, constants, np.exp(logs))
        return [np.log(predicted_s(rows.work, spec, profile) / rows.seconds) for spec, rows in parts]

    def residuals(logs: Array) -> Array:
        robust = [
            np.sign(error)
            * ROBUST_SCALE
            * np.sqrt(np.log1p((error / ROBUST_SCALE) ** 2) * (mean_rows / len(error)))
            for error in errors(logs)
        ]
        return np.concatenate([*robust, noise * (logs - origin) / spreads])

    low = np.log([constant.low for constant in constants])
    high = np.log([constant.high for constant in constants])
    found = least_squares(residuals, origin, bounds=(low, high), max_nfev=200)
    profile = with_values(start, constants, np.exp(found.x))
    known = _known(found.jac, constants, noise)
    return Fit(
        replace(profile, provenance="calibrated"),
        tuple(c.path for c, fixed in zip(constants, known, strict=True) if fixed),
        tuple(c.path for c, fixed in zip(constants, known, strict=True) if not fixed),
    )


def _known(jacobian: Array, constants: Sequence[Constant], noise: float) -> list[bool]:
    """Return which constants the data narrow enough, by Laplace's approximation of the posterior."""
    covariance = noise**2 * np.linalg.inv(jacobian.T @ jacobian)
    deviations = np.sqrt(np.diag(covariance))
    return [
        bool(deviation < DETERMINED * constant.spread)
        for deviation, constant in zip(deviations, constants, strict=True)
    ]


def interval_of(log_ratios: Array) -> Interval:
    """Return the ratios of measured to predicted time that a tenth of the rows lies below and above."""
    low, high = np.exp(np.quantile(log_ratios, [0.1, 0.9]))
    return Interval(float(low), float(high))


def log_ratios(spec: HardwareSpec, rows: Measured, profile: KernelProfile) -> Array:
    """Return (N,) ln(measured / predicted)."""
    return np.log(rows.seconds / predicted_s(rows.work, spec, profile))
