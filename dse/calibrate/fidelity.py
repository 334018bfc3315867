"""How far predictions are from measured kernels, beside a naive roofline on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cost_models.collectives import library_all_reduce_s, profiles_of
from cost_models.pricing import main_bandwidth_bytes_per_s
from cost_models.work import Work
from dse.calibrate.fit import predicted_s
from dse.calibrate.rows import Array, Measured
from dse.calibrate.tables import CALIBRATED, SERIES, Series, load, load_all_reduce
from dse.errors import UnsupportedOnDevice
from hardware_specs.kernels import Interval
from hardware_specs.loader import load_device
from hardware_specs.spec import HardwareSpec

ROWS = 2000
LOW_BIT = ("fp8", "W4A16", "W8A16", "W8A8", "nvfp4")
TIE = 0.05
"""Where two measured times differ by less, which of them is shorter changes with the serving framework."""

BARS: dict[tuple[str, str, str], float] = {
    ("gemm", "bf16", "nvidia_h100_sxm"): 0.05,
    ("gemm", "bf16", "nvidia_a100_sxm_80gb"): 0.065,
    ("gemm", "bf16", "nvidia_rtx_pro_6000_server"): 0.07,
    ("gemm", "bf16", "nvidia_l40s"): 0.13,
    ("gemm", "bf16", "nvidia_h200_sxm"): 0.10,
    ("gemm", "bf16", "nvidia_b200_sxm"): 0.12,
    ("gemm", "bf16", "intel_arc_b60"): 0.20,
    ("gemm", "fp8", "nvidia_h100_sxm"): 0.08,
    ("gemm", "fp8", "nvidia_l40s"): 0.10,
    ("gemm", "fp8", "nvidia_rtx_pro_6000_server"): 0.10,
    ("gemm", "fp8", "nvidia_h200_sxm"): 0.10,
    ("gemm", "fp8", "nvidia_b200_sxm"): 0.15,
    ("gemm", "W4A16", "nvidia_a100_sxm_80gb"): 0.09,
    ("gemm", "W8A16", "nvidia_a100_sxm_80gb"): 0.09,
    ("gemm", "W8A8", "nvidia_a100_sxm_80gb"): 0.09,
    ("attention_prefill", "bf16", "nvidia_a100_sxm_80gb"): 0.07,
    ("attention_prefill", "bf16", "nvidia_h100_sxm"): 0.07,
    ("attention_prefill", "bf16", "nvidia_l40s"): 0.13,
    ("attention_prefill", "bf16", "nvidia_rtx_pro_6000_server"): 0.13,
    ("attention_prefill", "bf16", "nvidia_h200_sxm"): 0.12,
    ("attention_prefill", "bf16", "nvidia_b200_sxm"): 0.17,
    ("attention_decode", "bf16", "nvidia_a100_sxm_80gb"): 0.11,
    ("attention_decode", "bf16", "nvidia_h100_sxm"): 0.14,
    ("attention_decode", "bf16", "nvidia_h200_sxm"): 0.20,
    ("all_reduce", "NCCL", "nvidia_h100_sxm"): 0.09,
    ("all_reduce", "NCCL", "nvidia_a100_sxm_80gb"): 0.12,
    ("all_reduce", "NCCL", "nvidia_h200_sxm"): 0.12,
}
"""Median errors that this project set itself, by class, format and device."""


@dataclass(frozen=True)
class Score:
    """Errors of predicted against measured times.

    Attributes:
        median_ape, mean_ape, weighted_ape: of |predicted / measured - 1|; weighted by measured time.
        spearman: rank correlation.
    """

    median_ape: float
    mean_ape: float
    weighted_ape: float
    spearman: float


@dataclass(frozen=True)
class FidelityRow:
    """One line of the benchmark: a class, a device, a format and a kernel library.

    Attributes:
        split: "held-out" shapes of a calibrated device, or "never" for a device that no fit has seen.
        n: rows scored. model, naive: their errors.
        coverage: share of measured times inside the 80 % interval, None where there is none.
        bar: median error to stay below, None where none was set.
    """

    operator: str
    device: str
    format: str
    library: str
    split: Literal["held-out", "never", "other"]
    n: int
    model: Score
    naive: Score
    coverage: float | None
    bar: float | None

    @property
    def passes(self) -> bool | None:
        """Whether the median error is within the bar, None without one."""
        return None if self.bar is None else self.model.median_ape <= self.bar

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return {**asdict(self), "passes": self.passes}


@dataclass(frozen=True)
class SignRow:
    """How often the sign of (low-bit time - bf16 time) is right on one device.

    Attributes:
        n: products measured in both formats. right: share of them with the right sign.
        n_clear, right_clear: of those whose measured times differ by more than 5 %.
        lower_is_faster: what "fewer bits are faster" gets right, for comparison.
    """

    device: str
    format: str
    split: Literal["held-out", "never", "other"]
    n: int
    right: float
    n_clear: int
    right_clear: float
    lower_is_faster: float

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return asdict(self)


def score(predicted: Array, measured: Array) -> Score:
    """Return the errors of (N,) predictions."""
    from scipy.stats import spearmanr

    error = np.abs(predicted / measured - 1.0)
    rank = float(spearmanr(predicted, measured).statistic) if len(measured) > 1 else 1.0
    return Score(
        float(np.median(error)),
        float(error.mean()),
        float((error * measured).sum() / measured.sum()),
        rank,
    )


def naive_s(work: Work, spec: HardwareSpec) -> Array:
    """Return the bare roofline: the larger of work over peak and bytes over bandwidth."""
    moved = np.asarray(work.read_bytes + work.write_bytes, dtype=np.float64)
    flop_s = np.asarray(work.flop, dtype=np.float64) / spec.rate_flop_per_s(work.compute)
    return np.maximum(flop_s, moved / main_bandwidth_bytes_per_s(spec))


def coverage_of(ratios: Array, interval: Interval | None) -> float | None:
    """Return the share of measured over predicted times inside an interval."""
    if interval is None:
        return None
    return float(((ratios >= interval.low) & (ratios <= interval.high)).mean())


def scored_rows(series: Series, spec: HardwareSpec, n_rows: int) -> Measured:
    """Return the rows that are scored: shapes held out of the fit, or all of a device never fitted."""
    rows = load(series, spec, n_rows if series.role != "fitted" else 3 * n_rows)
    return rows.where(rows.held_out) if series.role == "fitted" else rows


def _split(series: Series) -> Literal["held-out", "never", "other"]:
    return "held-out" if series.role == "fitted" else series.role


def fidelity(
    series: Sequence[Series] = SERIES, n_rows: int = ROWS, progress: Callable[[str], None] | None = None
) -> Iterator[FidelityRow]:
    """Yield one line per series that the device has a kernel for; the rows are the same in every run."""
    for entry in series:
        if progress is not None:
            progress(f"{entry.operator} {entry.format} on {entry.device}")
        spec = load_device(entry.device)
        if entry.operator == "all_reduce":
            yield _all_reduce(entry, spec)
            continue
        try:
            rows = scored_rows(entry, spec, n_rows)
        except UnsupportedOnDevice:
            continue
        profile = spec.kernel(rows.work.profile)
        predicted = predicted_s(rows.work, spec, profile)
        yield FidelityRow(
            entry.operator,
            entry.device,
            entry.format,
            entry.library_name,
            _split(entry),
            len(rows),
            score(predicted, rows.seconds),
            score(naive_s(rows.work, spec), rows.seconds),
            coverage_of(rows.seconds / predicted, profile.interval),
            BARS.get((entry.operator, entry.format, entry.device)),
        )


def _all_reduce(series: Series, spec: HardwareSpec) -> FidelityRow:
    link = spec.link("scale_up") or spec.link("host")
    assert link is not None
    library = "nccl" if series.library[0] == "nccl" else "one_shot"
    profile = next(entry for entry in profiles_of(link) if entry.name == library)
    transfers = load_all_reduce(series)
    chosen = transfers.held_out if series.role == "fitted" else np.ones(len(transfers.seconds), dtype=bool)
    n_devices, message = transfers.n_devices[chosen], transfers.message_bytes[chosen]
    seconds = transfers.seconds[chosen]
    predicted = np.asarray(library_all_reduce_s(message, n_devices, link, profile))
    bare = 2 * (n_devices - 1) / n_devices * message / link.bandwidth_bytes_per_s
    name = "NCCL" if library == "nccl" else "one-shot"
    return FidelityRow(
        series.operator,
        series.device,
        name,
        series.library_name,
        _split(series),
        len(seconds),
        score(predicted, seconds),
        score(bare, seconds),
        coverage_of(seconds / predicted, profile.interval),
        BARS.get((series.operator, name, series.device)),
    )


def signs(series: Sequence[Series] = SERIES) -> Iterator[SignRow]:
    """Yield how often the faster of two formats is predicted, over all products measured in both."""
    products = [entry for entry in series if entry.operator == "gemm"]
    dense = {entry.device: entry for entry in products if entry.format == "bf16"}
    for entry in products:
        if entry.format not in LOW_BIT or entry.device not in dense:
            continue
        spec = load_device(entry.device)
        try:
            low, wide = (_all_products(each, spec) for each in (entry, dense[entry.device]))
        except UnsupportedOnDevice:
            continue
        _, first, second = np.intersect1d(_keys(low), _keys(wide), return_indices=True)
        measured = np.log(low.seconds[first] / wide.seconds[second])
        predicted = np.log(_times(low, spec)[first] / _times(wide, spec)[second])
        right = np.sign(measured) == np.sign(predicted)
        clear = np.abs(measured) > np.log1p(TIE)
        yield SignRow(
            entry.device,
            entry.format,
            "held-out" if entry.device in CALIBRATED else "never",
            len(right),
            float(right.mean()),
            int(clear.sum()),
            float(right[clear].mean()),
            float((measured < 0).mean()),
        )


def _all_products(series: Series, spec: HardwareSpec) -> Measured:
    rows = load(series, spec, 10**9)
    return rows.where(rows.held_out) if series.role == "fitted" else rows


def _keys(rows: Measured) -> Any:
    m, n, k = rows.sizes.T.astype(np.int64)
    return (m << 42) | (n << 21) | k


def _times(rows: Measured, spec: HardwareSpec) -> Array:
    return predicted_s(rows.work, spec, spec.kernel(rows.work.profile))
