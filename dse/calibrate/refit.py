"""The shipped constants: fitted again from the tables, for the calibration devices and the families.

Only the rows of shapes that are not held out are seen, and only the four calibration devices. Every fit
starts from the same neutral constants, so that the result does not depend on what was shipped before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.collectives import library_all_reduce_s
from dse.calibrate.fit import fit_profile, interval_of, log_ratios
from dse.calibrate.rows import Array, Mask, Measured
from dse.calibrate.tables import (
    A100,
    CALIBRATED,
    H100,
    L40S,
    RTX,
    SERIES,
    WHEEL,
    Series,
    Transfers,
    load,
    load_all_reduce,
)
from hardware_specs.kernels import CollectiveProfile, Interval, KernelProfile
from hardware_specs.loader import load_device
from hardware_specs.spec import HardwareSpec, Link

FIT_ROWS = 8000
START_FLOP, START_BYTE, START_FLOOR_S, START_EXPONENT = 0.75, 0.85, 6e-6, 1.8
LONE_SPREAD = 1.25
"""Widens the interval of a family's constants that only one device could be measured for: about the ratio
that other kernels differ by between devices."""

FOLDS = ((3, 4), (5, 6), (7, 8, 9))
"""Tenths of the shapes that are left out in turn to see how far constants are off on shapes not fitted."""

FAMILIES = {"datacenter_gpu": (A100, H100), "desktop_gpu": (A100, H100, L40S, RTX)}
"""Devices whose measurements a family's constants are fitted to. The two desktop cards alone are too few, and
too unlike each other."""


@dataclass(frozen=True)
class Part:
    """The fitted rows of one series on its device."""

    series: Series
    spec: HardwareSpec
    rows: Measured


def neutral(name: str) -> KernelProfile:
    """Return the constants that every fit starts from."""
    return KernelProfile(
        name, START_FLOP, START_BYTE, START_FLOOR_S, START_EXPONENT, "analytic", "start of a fit"
    )


def fitted_parts(n_rows: int = FIT_ROWS) -> list[Part]:
    """Return the rows that may be fitted: those of calibration devices whose shapes are not held out."""
    parts: list[Part] = []
    for series in SERIES:
        if series.device not in CALIBRATED or series.operator == "all_reduce" or series.role != "fitted":
            continue
        spec = load_device(series.device)
        rows = load(series, spec, n_rows)
        parts.append(Part(series, spec, rows.where(~rows.held_out)))
    return parts


def fit_devices(parts: Sequence[Part]) -> dict[str, dict[str, tuple[KernelProfile, str]]]:
    """Return device -> profile name -> (constants with their interval, where they come from)."""
    found: dict[str, dict[str, tuple[KernelProfile, str]]] = {}
    groups: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.series.device, part.rows.work.profile), []).append(part)
    for (device, name), mine in groups.items():
        profile = _shared(mine, name)
        source = f"dse bench fit: {mine[0].series.library_name} kernels, {WHEEL} (Apache-2.0)"
        if _is_slow_path(mine[0]):
            source = f"{source}; torchao, slower than bf16 at every size"
        interval = interval_of(_unseen(mine, name))
        found.setdefault(device, {})[name] = (replace(profile, interval=interval), source)
    return found


def _shared(parts: Sequence[Part], name: str) -> KernelProfile:
    return fit_profile([(part.spec, part.rows) for part in parts], neutral(name)).profile


def _unseen(parts: Sequence[Part], name: str) -> Array:
    """Return ln(measured / predicted) of every fitted row under constants fitted to other shapes only.

    Constants look better on the shapes that they were fitted to than on those a user will ask for.
    """
    ratios: list[Array] = []
    for fold in FOLDS:
        inside = [np.isin(part.rows.tenth, fold) for part in parts]
        if not all(mask.any() and not mask.all() for mask in inside):
            continue
        others = [
            replace(part, rows=part.rows.where(~mask)) for part, mask in zip(parts, inside, strict=True)
        ]
        left_out = [
            replace(part, rows=part.rows.where(mask)) for part, mask in zip(parts, inside, strict=True)
        ]
        ratios.append(_pooled(left_out, _shared(others, name)))
    return np.concatenate(ratios) if ratios else _pooled(parts, _shared(parts, name))


def _is_slow_path(part: Part) -> bool:
    """Whether it is the torchao kernel on H100, which no other device is expected to take."""
    return part.series.device == H100 and part.series.format == "W8A16"


def _pooled(parts: Sequence[Part], profile: KernelProfile) -> Array:
    """Return ln(measured / predicted) of equally many rows of each part."""
    generator = np.random.default_rng(0)
    ratios = [generator.permutation(log_ratios(part.spec, part.rows, profile)) for part in parts]
    least = min(len(part) for part in ratios)
    return np.concatenate([part[:least] for part in ratios])


def fit_family(parts: Sequence[Part], devices: Sequence[str]) -> dict[str, tuple[KernelProfile, str]]:
    """Return profile name -> (constants shared by devices, source).

    The interval is that of each device under constants fitted to the others; where one device alone was
    measured it is that device's own, widened.
    """
    found: dict[str, tuple[KernelProfile, str]] = {}
    for name in sorted({part.rows.work.profile for part in parts}):
        known = [part for part in parts if part.rows.work.profile == name and not _is_slow_path(part)]
        mine = [part for part in known if part.series.device in devices] or known
        profile = _shared(mine, name)
        kernels = sorted({f"{part.series.device} ({part.series.library_name})" for part in mine})
        source = f"dse bench fit: shared by {', '.join(kernels)}, {WHEEL} (Apache-2.0)"
        interval = _family_interval(mine, profile)
        found[name] = (replace(profile, provenance="analytic", interval=interval), source)
    return found


def _family_interval(parts: Sequence[Part], profile: KernelProfile) -> Interval:
    names = sorted({part.series.device for part in parts})
    if len(names) == 1:
        own = interval_of(_pooled(parts, profile))
        return Interval(own.low / LONE_SPREAD, own.high * LONE_SPREAD)
    ratios: list[Array] = []
    for name in names:
        others = [part for part in parts if part.series.device != name]
        left_out = [part for part in parts if part.series.device == name]
        ratios.append(_pooled(left_out, _shared(others, profile.name)))
    least = min(len(part) for part in ratios)
    return interval_of(np.concatenate([part[:least] for part in ratios]))


def fit_collective(parts: Sequence[tuple[Link, Transfers]], name: str, source: str) -> CollectiveProfile:
    """Return the constants of one library's all-reduce over links of one kind."""
    from scipy.optimize import least_squares

    def profile_of(logs: Array) -> CollectiveProfile:
        start, hop, eff, half = np.exp(logs).tolist()
        return CollectiveProfile(name, start, hop, eff, half, "calibrated", source)

    def errors(logs: Array) -> Array:
        profile = profile_of(logs)
        return np.concatenate(
            [
                np.log(
                    np.asarray(library_all_reduce_s(t.message_bytes, t.n_devices, link, profile)) / t.seconds
                )[~t.held_out]
                for link, t in parts
            ]
        )

    sizes = np.concatenate([t.message_bytes[~t.held_out] for _, t in parts])

    def fitted(kept: Mask) -> Array:
        origin = np.log([5e-6, 1.5e-6, 0.7, 5e6])
        bounds = (np.log([1e-7, 1e-8, 0.05, 1e3]), np.log([1e-4, 1e-4, 1.0, 1e9]))
        found = least_squares(
            lambda logs: errors(logs)[kept], origin, bounds=bounds, loss="cauchy", f_scale=0.1, max_nfev=500
        )
        return np.asarray(found.x)

    unseen = np.empty(len(sizes))
    for size in np.unique(sizes):
        left_out = sizes == size
        unseen[left_out] = -errors(fitted(~left_out))[left_out]
    return replace(profile_of(fitted(np.ones(len(sizes), dtype=bool))), interval=interval_of(unseen))


def fit_collectives() -> tuple[dict[str, list[CollectiveProfile]], dict[str, list[CollectiveProfile]]]:
    """Return (device -> constants of its link, kind of link -> shared constants)."""
    rows: dict[tuple[str, str], tuple[Link, Transfers, Series]] = {}
    for series in SERIES:
        if series.operator == "all_reduce" and series.device in CALIBRATED:
            spec = load_device(series.device)
            link = spec.link("scale_up") or spec.link("host")
            assert link is not None
            library = "nccl" if series.library[0] == "nccl" else "one_shot"
            rows[series.device, library] = (link, load_all_reduce(series), series)
    devices: dict[str, list[CollectiveProfile]] = {}
    for (device, library), (link, transfers, series) in rows.items():
        source = f"dse bench fit: {series.library_name}, {WHEEL} (Apache-2.0)"
        devices.setdefault(device, []).append(fit_collective([(link, transfers)], library, source))
    kinds: dict[str, list[CollectiveProfile]] = {}
    for kind, members in (("scale_up", (A100, H100)), ("host", (L40S, RTX))):
        for library in ("nccl", "one_shot"):
            shared = [rows[device, library][:2] for device in members]
            source = f"dse bench fit: shared by {' and '.join(members)}, {WHEEL} (Apache-2.0)"
            profile = replace(fit_collective(shared, library, source), provenance="analytic")
            kinds.setdefault(kind, []).append(profile)
    return devices, kinds
