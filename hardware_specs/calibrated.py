"""Fitted constants of a device file: kernel profiles and collectives."""

from __future__ import annotations

from collections.abc import Callable

from dse.errors import ConfigError
from hardware_specs.document import CollectiveDocument, IntervalDocument, KernelDocument, Quantity
from hardware_specs.kernels import (
    KERNEL_NAMES,
    CollectiveProfile,
    Depth,
    Interval,
    KernelProfile,
    QueryTiles,
    Returning,
    SmallBatch,
    Tiling,
)
from hardware_specs.reader import Reader
from hardware_specs.units import parse_number, to_si

MAX_EFFICIENCY = 2.0
"""Fitted efficiencies above 1 exist (operands in a cache); one above this bound is a slip."""

MAX_EXPONENT = 20.0
MAX_EXPONENTIALS = 50.0
MAX_SPEEDUP = 20.0

Number = Callable[..., float]


def kernel_of(name: str, entry: KernelDocument, read: Reader) -> KernelProfile:
    """Return one kernel profile of a file; its numbers share one source."""
    read.known_key(name, "kernels", KERNEL_NAMES)
    path = f"kernels.{name}"
    number = _numbers(path, read)

    def maybe(value: object, key: str, upper: float) -> float | None:
        return None if value is None else number(value, key, upper)

    def seconds(quantity: Quantity | None, key: str) -> float | None:
        return None if quantity is None else read.seconds(quantity, f"{path}.{key}")

    return KernelProfile(
        name=name,
        flop_eff_frac=number(entry.flop_efficiency, "flop_efficiency", MAX_EFFICIENCY),
        byte_eff_frac=number(entry.byte_efficiency, "byte_efficiency", MAX_EFFICIENCY),
        floor_s=read.seconds(entry.floor, f"{path}.floor"),
        exponent=number(entry.exponent, "exponent", MAX_EXPONENT),
        provenance=entry.provenance,
        source=read.source(entry.source, f"{path}.source"),
        context_log_s=seconds(entry.context_log, "context_log"),
        wave_s=seconds(entry.wave, "wave"),
        wave_frac=maybe(entry.wave_share, "wave_share", 1.0) or 0.0,
        activation_eff_frac=maybe(entry.activation_efficiency, "activation_efficiency", MAX_EFFICIENCY),
        tiling=_tiling(entry, number),
        depth=_depth(entry, path, number, read),
        returning=_returning(entry, path, number, read),
        quantize_eff_frac=maybe(entry.quantize_efficiency, "quantize_efficiency", MAX_EXPONENTIALS),
        small_batch=_small_batch(entry, path, number, read),
        dense_fallback=entry.dense_fallback,
        exp_eff_frac=maybe(entry.exp_efficiency, "exp_efficiency", MAX_EXPONENTIALS) or 1.0,
        query_tiles=_query_tiles(entry, path, number, read),
        interval=_interval(entry.interval, path, read),
    )


def collective_of(name: str, entry: CollectiveDocument, link_path: str, read: Reader) -> CollectiveProfile:
    """Return the all-reduce of one library over a link."""
    path = f"{link_path}.collectives.{name}"
    half = to_si(entry.half.value, entry.half.unit, "bytes", zero=True, file=read.file, path=f"{path}.half")
    return CollectiveProfile(
        name,
        read.seconds(entry.start, f"{path}.start"),
        read.seconds(entry.hop, f"{path}.hop"),
        _numbers(path, read)(entry.efficiency, "efficiency", MAX_EFFICIENCY),
        half,
        entry.provenance,
        read.source(entry.source, f"{path}.source"),
        _interval(entry.interval, path, read),
    )


def _numbers(path: str, read: Reader) -> Number:
    """Return a reader of numbers in (0, upper], or [0, upper] with ``zero``."""

    def number(value: object, key: str, upper: float, *, zero: bool = False) -> float:
        found = parse_number(value, file=read.file, path=f"{path}.{key}")
        if not (0 < found <= upper or (zero and found == 0)):
            least = "at least 0" if zero else "above 0"
            raise ConfigError(
                f"must be {least} and at most {upper:g}, but is {found:g}",
                file=read.file,
                path=f"{path}.{key}",
            )
        return found

    return number


def _tiling(entry: KernelDocument, number: Number) -> Tiling | None:
    if entry.tiling is None:
        return None
    return Tiling(
        number(entry.tiling.wave, "tiling.wave", 1.0, zero=True),
        number(entry.tiling.small_loss, "tiling.small_loss", 4.0),
        number(entry.tiling.split_loss, "tiling.split_loss", 4.0, zero=True),
    )


def _depth(entry: KernelDocument, path: str, number: Number, read: Reader) -> Depth | None:
    if entry.depth is None:
        return None
    return Depth(
        read.seconds(entry.depth.time, f"{path}.depth.time"),
        number(entry.depth.exponent, "depth.exponent", MAX_EXPONENT),
    )


def _returning(entry: KernelDocument, path: str, number: Number, read: Reader) -> Returning | None:
    if entry.returning is None:
        return None
    half = entry.returning.half
    return Returning(
        to_si(half.value, half.unit, "bytes", file=read.file, path=f"{path}.returning.half"),
        number(entry.returning.speedup, "returning.speedup", MAX_SPEEDUP),
    )


def _small_batch(entry: KernelDocument, path: str, number: Number, read: Reader) -> SmallBatch | None:
    if entry.small_batch is None:
        return None
    return SmallBatch(
        number(entry.small_batch.flop_efficiency, "small_batch.flop_efficiency", MAX_EFFICIENCY),
        number(entry.small_batch.byte_efficiency, "small_batch.byte_efficiency", MAX_EFFICIENCY),
        read.seconds(entry.small_batch.floor, f"{path}.small_batch.floor"),
    )


def _query_tiles(entry: KernelDocument, path: str, number: Number, read: Reader) -> QueryTiles | None:
    tiles = entry.query_tiles
    if tiles is None:
        return None
    return QueryTiles(
        tiles.rows,
        tiles.least_rows,
        number(tiles.longest, "query_tiles.longest", 10.0, zero=True),
        0.0 if tiles.tile is None else read.seconds(tiles.tile, f"{path}.query_tiles.tile"),
        number(tiles.width_power, "query_tiles.width_power", 2.0, zero=True),
    )


def _interval(entry: IntervalDocument | None, path: str, read: Reader) -> Interval | None:
    if entry is None:
        return None
    number = _numbers(f"{path}.interval", read)
    low, high = number(entry.low, "low", 1e3), number(entry.high, "high", 1e3)
    if low > high:
        raise ConfigError(f"low {low:g} is above high {high:g}", file=read.file, path=f"{path}.interval")
    return Interval(low, high)
