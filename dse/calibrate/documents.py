"""Fitted constants as the YAML of spec files."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from hardware_specs.kernels import CollectiveProfile, Interval, KernelProfile

DIGITS = 4
MICRO = 1e6


def rounded(value: float, digits: int = DIGITS) -> float:
    """Return a number with a few significant digits."""
    return float(f"{value:.{digits}g}")


def _time(seconds: float) -> dict[str, Any]:
    return {"value": rounded(seconds * MICRO), "unit": "us"}


def _interval(interval: Interval) -> dict[str, float]:
    return {"low": rounded(interval.low, 3), "high": rounded(interval.high, 3)}


def kernel_document(profile: KernelProfile, source: str) -> dict[str, Any]:
    """Return the entry of ``kernels`` in a device file; what is neutral is left out."""
    entry: dict[str, Any] = {
        "flop_efficiency": rounded(profile.flop_eff_frac),
        "byte_efficiency": rounded(profile.byte_eff_frac),
        "floor": _time(profile.floor_s),
        "exponent": rounded(profile.exponent),
    }
    if profile.activation_eff_frac is not None:
        entry["activation_efficiency"] = rounded(profile.activation_eff_frac)
    if profile.tiling is not None:
        entry["tiling"] = {
            "wave": rounded(profile.tiling.wave_frac),
            "small_loss": rounded(profile.tiling.small_loss),
            "split_loss": rounded(profile.tiling.split_loss),
        }
    if profile.depth is not None:
        entry["depth"] = {"time": _time(profile.depth.time_s), "exponent": rounded(profile.depth.exponent)}
    if profile.returning is not None:
        entry["returning"] = {
            "half": {"value": rounded(profile.returning.half_bytes / 1e6), "unit": "MB"},
            "speedup": rounded(profile.returning.speedup),
        }
    if profile.quantize_eff_frac is not None:
        entry["quantize_efficiency"] = rounded(profile.quantize_eff_frac)
    if profile.small_batch is not None:
        entry["small_batch"] = {
            "flop_efficiency": rounded(profile.small_batch.flop_eff_frac),
            "byte_efficiency": rounded(profile.small_batch.byte_eff_frac),
            "floor": _time(profile.small_batch.floor_s),
        }
    entry |= _attention(profile)
    if profile.dense_fallback:
        entry["dense_fallback"] = True
    if profile.interval is not None:
        entry["interval"] = _interval(profile.interval)
    if profile.provenance != "calibrated":
        entry["provenance"] = profile.provenance
    entry["source"] = source
    return entry


def _attention(profile: KernelProfile) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if profile.exp_eff_frac != 1.0:
        entry["exp_efficiency"] = rounded(profile.exp_eff_frac)
    tiles = profile.query_tiles
    if tiles is not None:
        entry["query_tiles"] = {
            "rows": tiles.rows,
            "least_rows": tiles.least_rows,
            "longest": rounded(tiles.longest_frac),
            "tile": _time(tiles.tile_s),
            "width_power": rounded(tiles.width_power),
        }
    if profile.context_log_s is not None:
        entry["context_log"] = _time(profile.context_log_s)
    if profile.wave_s is not None:
        entry["wave"] = _time(profile.wave_s)
    if profile.wave_frac:
        entry["wave_share"] = rounded(profile.wave_frac)
    return entry


def collective_document(profile: CollectiveProfile, source: str) -> dict[str, Any]:
    """Return the entry of a link's ``collectives``."""
    entry: dict[str, Any] = {
        "start": _time(profile.start_s),
        "hop": _time(profile.hop_s),
        "efficiency": rounded(profile.eff_frac),
        "half": {"value": rounded(profile.half_bytes * 1e-6), "unit": "MB"},
    }
    if profile.interval is not None:
        entry["interval"] = _interval(profile.interval)
    if profile.provenance != "calibrated":
        entry["provenance"] = profile.provenance
    entry["source"] = source
    return entry


def flow(key: str, entry: dict[str, Any], indent: int) -> str:
    """Return ``key: {...}`` on lines of at most 110 characters."""
    text = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    pad = " " * indent
    return textwrap.fill(
        f"{pad}{key}: {text.strip()}",
        width=110,
        subsequent_indent=f"{pad}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
