"""Weights that do not fit the device: kept in host memory or on an SSD and fetched while layers compute.

Layers share the device's memory evenly: of each, the same share stays (FlexGen, arXiv 2303.06865). The rest
is fetched layer by layer into two buffers. Of a mixture of experts only those in use are fetched; of
experts or neurons with caches (HOBBIT, arXiv 2411.01433; M2Cache, arXiv 2410.14740) only what the caches
miss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cost_models.memory import MemoryUse
from cost_models.offload import CacheLevel, chained_bandwidth_bytes_per_s, hierarchy_s, streamed_layers_s
from dse.errors import ConfigError
from hardware_specs.spec import HardwareSpec
from hardware_specs.units import to_si

LevelName = Literal["host", "ssd"]
LEVEL_NAMES: tuple[LevelName, ...] = get_args(LevelName)

SSD_BYTES_PER_S = 7.0e9
"""One NVMe Gen4 drive, reading."""

SSD_J_PER_BIT = 130e-12
"""Derived: 6 to 8.5 W of a drive that reads 7 GB/s."""

N_BUFFERS = 2
_LEVEL = re.compile(r"(?P<name>[a-z]+)(:(?P<value>[0-9.eE+]+)\s*(?P<unit>[A-Za-z]+/s))?")


@dataclass(frozen=True)
class OffloadLevel:
    """Where weights lie outside the device, and the way from there to it."""

    name: LevelName
    bandwidth_bytes_per_s: float
    latency_s: float
    energy_j_per_bit: float


@dataclass(frozen=True)
class Offload:
    """How weights outside the device are fetched.

    Attributes:
        levels: near to far.
        hit_frac: of the device, then of each level but the last: the share of requests that it answers, as
            measured on traces. () takes the share of the weights that fit the device, as for uniform
            requests.
        overlap_frac: of the transfers that may run beside the computation of other layers.
    """

    levels: tuple[OffloadLevel, ...]
    hit_frac: tuple[float, ...] = ()
    overlap_frac: float = 1.0

    def cache_levels(self, share_frac: float) -> tuple[CacheLevel, ...]:
        """Return the device, which costs nothing more, and the levels behind it.

        Args:
            share_frac: of the weights that lie outside the device.
        """
        hits = (*(self.hit_frac or (1.0 - share_frac,)), 1.0)
        ways = ((np.inf, 0.0), *((entry.bandwidth_bytes_per_s, entry.latency_s) for entry in self.levels))
        return tuple(
            CacheLevel(hit, float(bandwidth), latency)
            for hit, (bandwidth, latency) in zip(hits, ways, strict=True)
        )

    def energy_j(self, requested_bytes: float, share_frac: float) -> float:
        """Return the energy of fetching what the device misses of the requested bytes."""
        total, reach = 0.0, requested_bytes
        energies = (0.0, *(level.energy_j_per_bit for level in self.levels))
        for level, j_per_bit in zip(self.cache_levels(share_frac), energies, strict=True):
            total += reach * level.hit_frac * 8.0 * j_per_bit
            reach *= 1.0 - level.hit_frac
        return total


@dataclass(frozen=True)
class LayerRequests:
    """What a pass asks of one layer's weights: ``n_requests`` equal parts (matrices) of ``part_bytes``."""

    n_requests: float
    part_bytes: float


def parse_offload(
    spec: HardwareSpec, texts: Sequence[str], hits: str = "", overlap_frac: float = 1.0
) -> Offload | None:
    """Return the way of weights of e.g. ``host``, ``host:25GB/s``, ``ssd:3.5GB/s``; None without any.

    Args:
        spec: its host link is the way where no bandwidth is given.
        texts: levels, near to far.
        hits: hit rates of the device and of the levels but the last, as "0.8" or "80%,95%".
        overlap_frac: share of the transfers that may run beside other layers.

    Raises:
        ConfigError: an unknown level, no host link, or hit rates of another number than levels.
    """
    if not texts:
        if hits:
            raise ConfigError("hit rates need --offload", path="--hits", value=hits)
        return None
    levels = tuple(_level(spec, text) for text in texts)
    rates = tuple(_rate(part) for part in hits.split(",")) if hits else ()
    if len(levels) != len({level.name for level in levels}):
        raise ConfigError("a level is given twice", path="--offload", value=list(texts))
    if (rates or len(levels) > 1) and len(rates) != len(levels):
        raise ConfigError(
            f"{len(levels)} levels behind the device need {len(levels)} hit rates (of the device, then of "
            f"each level but the last), but got {len(rates)}",
            path="--hits",
            value=hits,
        )
    return Offload(levels, rates, overlap_frac)


def _level(spec: HardwareSpec, text: str) -> OffloadLevel:
    match = _LEVEL.fullmatch(text.strip())
    name = next((known for known in LEVEL_NAMES if match is not None and known == match["name"]), None)
    if match is None or name is None:
        raise ConfigError(
            f"an offload level is host or ssd, with a bandwidth as in host:25GB/s, but got '{text}'",
            path="--offload",
            value=text.partition(":")[0],
            allowed=LEVEL_NAMES,
        )
    given = None
    if match["value"] is not None:
        given = to_si(match["value"], match["unit"], "bytes_per_s", path="--offload")
    link = spec.link("host")
    if link is None and given is None:
        raise ConfigError(
            f"{spec.name} has no host link: give the bandwidth, as in {name}:25GB/s",
            path="--offload",
            value=text,
        )
    way = given or (0.0 if link is None else link.bandwidth_bytes_per_s)
    latency_s = 0.0 if link is None else link.latency_s
    j_per_bit = 0.0 if link is None else link.energy_j_per_bit or 0.0
    if name == "ssd":
        drive = SSD_BYTES_PER_S if given is None else given
        path = drive if link is None else link.bandwidth_bytes_per_s
        way = chained_bandwidth_bytes_per_s(drive, path)
        j_per_bit += SSD_J_PER_BIT
    return OffloadLevel(name, way, latency_s, j_per_bit)


def _rate(text: str) -> float:
    """Return a hit rate in [0, 1] of "0.8" or "80%"."""
    digits = text.strip().removesuffix("%")
    try:
        rate = float(digits) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"a hit rate lies in 0 to 1, but got '{text}'", path="--hits", value=text)
    return rate


def outside_frac(memory: MemoryUse, layer_bytes: Sequence[float], capacity_bytes: float) -> float:
    """Return the share of every layer that must lie outside the device, 0 where all fit.

    What stays is (1 - s) W, and two buffers hold the fetched share of a layer: with R bytes left for layers,
    ``s = (W - R) / (W - 2 w)``, w the largest layer. At most all of it.
    """
    whole = sum(layer_bytes)
    room = capacity_bytes - (memory.total - whole)
    if whole <= room or whole == 0:
        return 0.0
    buffers = N_BUFFERS * max(layer_bytes)
    return 1.0 if whole <= buffers else min(1.0, (whole - room) / (whole - buffers))


def pass_s(
    layer_s: Sequence[float], requests: Sequence[LayerRequests], offload: Offload, share_frac: float
) -> tuple[float, float]:
    """Return seconds of one pass over the layers while weights are fetched, and of the transfers alone.

    Args:
        layer_s: (L,) computation of each layer.
        requests: (L,) what each asks of its weights.
        offload, share_frac: where the weights are, and which share of them lies outside the device.
    """
    levels = offload.cache_levels(share_frac)
    moved_s = [
        float(hierarchy_s(entry.n_requests, entry.part_bytes, levels)) if entry.n_requests else 0.0
        for entry in requests
    ]
    beside_s = [offload.overlap_frac * each_s for each_s in moved_s]
    alone_s = (1.0 - offload.overlap_frac) * sum(moved_s)
    return streamed_layers_s(layer_s, beside_s, N_BUFFERS) + alone_s, sum(moved_s)
