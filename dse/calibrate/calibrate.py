"""Calibrating a device to a user's measurements: constants, held-out errors, and a spec overlay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dse.calibrate.documents import flow, kernel_document
from dse.calibrate.fit import Fit, fit_profile, interval_of, log_ratios
from dse.calibrate.rows import Array, Mask, Measured
from dse.errors import ConfigError
from hardware_specs.kernels import Interval, KernelProfile
from hardware_specs.spec import HardwareSpec

LEAST_ROWS = 6
LEAST_SHAPES = 3
LEAST_SPAN = 2.0
FOLDS = 4
PRIOR_ROWS = 8.0
"""Measurements that the prior's interval counts as when it is mixed with the residuals of the user's own."""


@dataclass(frozen=True)
class Calibration:
    """What a fit of one kernel profile found.

    Attributes:
        profile: the constants, fitted to all rows, with an interval.
        n_rows, n_shapes: measurements, and distinct shapes among them.
        before, after: median error on rows left out of the fit in turn, with the old and the new constants.
        determined, undetermined: constants that the measurements narrow, and those that stay near the prior.
    """

    profile: KernelProfile
    n_rows: int
    n_shapes: int
    before: float
    after: float
    determined: tuple[str, ...]
    undetermined: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def calibrate(spec: HardwareSpec, name: str, parts: Sequence[Measured], source: str) -> Calibration:
    """Fit one kernel profile of a device to measurements, starting from and staying near its present one.

    Args:
        spec: the device; its profile is the prior.
        name: of the profile.
        parts: its measurements, one entry per precision.
        source: what the numbers come from, for the spec file.

    Raises:
        ConfigError: too few measurements, too few shapes, or times too alike to tell constants apart.
    """
    prior = spec.kernel(name)
    n_rows = sum(len(part) for part in parts)
    n_shapes = len(np.unique(np.concatenate([part.sizes for part in parts]), axis=0))
    _check(name, parts, n_rows, n_shapes)
    fit = fit_profile([(spec, part) for part in parts], prior)
    if not fit.determined:
        raise ConfigError(
            f"the {n_rows} measurements of {name} determine none of its constants: vary the sizes more, from "
            "few rows (bound by memory) to thousands (bound by arithmetic)",
            path=name,
        )
    left_out = _left_out(spec, parts, prior)
    before = np.concatenate([log_ratios(spec, part, prior) for part in parts])
    interval = _interval(left_out, prior.interval)
    profile = replace(fit.profile, source=source, interval=interval)
    return Calibration(
        profile, n_rows, n_shapes, _error(before), _error(left_out), fit.determined, fit.undetermined
    )


def _check(name: str, parts: Sequence[Measured], n_rows: int, n_shapes: int) -> None:
    seconds = np.concatenate([part.seconds for part in parts])
    span = float(seconds.max() / seconds.min()) if len(seconds) else 1.0
    for found, least, what in (
        (n_rows, LEAST_ROWS, "measurements"),
        (n_shapes, LEAST_SHAPES, "different shapes"),
        (span, LEAST_SPAN, "times the shortest time as the longest"),
    ):
        if found < least:
            raise ConfigError(
                f"is under-determined: needs at least {least:g} {what}, but there are {found:.3g}",
                path=name,
            )


def _left_out(spec: HardwareSpec, parts: Sequence[Measured], prior: KernelProfile) -> Array:
    """Return ln(measured / predicted) of every row under constants fitted without its fold."""
    found: list[Array] = []
    for fold in range(FOLDS):
        kept = [(spec, part.where(_outside(part, fold))) for part in parts]
        kept = [(device, part) for device, part in kept if len(part)]
        tested = [part.where(~_outside(part, fold)) for part in parts]
        if not kept or not sum(len(part) for part in tested):
            continue
        fit: Fit = fit_profile(kept, prior)
        found += [log_ratios(spec, part, fit.profile) for part in tested if len(part)]
    return np.concatenate(found)


def _outside(part: Measured, fold: int) -> Mask:
    """Return the rows that are not in a fold; rows of one size are in the same fold."""
    _, index = np.unique(part.sizes, axis=0, return_inverse=True)
    outside: Mask = index.ravel() % FOLDS != fold
    return outside


def _interval(ratios: Array, prior: Interval | None) -> Interval:
    own = interval_of(ratios)
    if prior is None:
        return own
    share = len(ratios) / (len(ratios) + PRIOR_ROWS)

    def mixed(mine: float, before: float) -> float:
        return float(np.exp(share * np.log(mine) + (1 - share) * np.log(before)))

    return Interval(mixed(own.low, prior.low), mixed(own.high, prior.high))


def _error(ratios: Array) -> float:
    return float(np.median(np.abs(np.expm1(-ratios))))


def overlay_text(spec: HardwareSpec, name: str, found: Sequence[Calibration], note: str) -> str:
    """Return a device file that extends ``spec`` with calibrated kernels.

    ``note`` says where the measurements come from; it is the source of every number.
    """
    lines = [
        f"# Constants fitted by `dse calibrate`; everything else is that of {spec.name}.",
        f"extends: {spec.name}",
        f"name: {name}",
        f"sources: {{calibration: {_quoted(note)}}}",
        "kernels:",
    ]
    lines += [flow(entry.profile.name, kernel_document(entry.profile, "calibration"), 2) for entry in found]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
