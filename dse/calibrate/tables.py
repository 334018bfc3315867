"""The operator timings that come with ``aiconfigurator-core`` (Apache-2.0, extra ``bench``), as measurements.

One kernel library per device and class is named here: the same product takes 1 to 39 % longer in another
one. Products of weights below 2^20 elements are left out, which no linear of a language model has.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dse.calibrate.rows import Array, AttentionSizes, Measured, attention_rows, matmul_rows
from dse.errors import ConfigError
from dse.formats.grammar import parse_format, parse_precision
from hardware_specs.spec import HardwareSpec

WHEEL = "aiconfigurator-core 0.12.0"
PACKAGE = "aiconfigurator_core"
LEAST_WEIGHTS = 2.0**20
HALF_BYTES = 2.0
MAX_GROUP = 16
"""Query heads per KV head up to which decode kernels are the ones modelled; above it they are fallbacks."""

ON_CHIP_ROOF_FRAC = 0.97

Operator = Literal["gemm", "attention_prefill", "attention_decode", "all_reduce"]

PRECISIONS = {
    "bfloat16": "bf16",
    "fp8": "fp8_e4m3/fp8_e4m3/bf16",
    "nvfp4": "nvfp4/nvfp4/bf16",
    "int4_wo": "int4_row",
    "int8_wo": "int8_row",
    "sq": "int8_row/int8_token/bf16",
}
"""Names of the tables, as precisions. W4A16 and W8A16 scale per output channel."""

SHORT = {"bfloat16": "bf16", "int4_wo": "W4A16", "int8_wo": "W8A16", "sq": "W8A8"}


@dataclass(frozen=True)
class Series:
    """One table to compare with: operator class, device, format and kernel library.

    Attributes:
        device: name of the spec file; ``folder`` is the table's.
        dtype: of products and queries, as the table says; ``kv_dtype`` of the cache.
        library: framework and version.
        role: "fitted" (scored on held-out shapes), "never" fitted at all, or "other" kernel library.
    """

    operator: Operator
    device: str
    folder: str
    library: tuple[str, str]
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    role: Literal["fitted", "never", "other"] = "fitted"

    @property
    def format(self) -> str:
        """Short name of the format: "bf16", "fp8", "W4A16", "bf16/kv-fp8" ..."""
        name = SHORT.get(self.dtype, self.dtype)
        if self.operator in ("gemm", "all_reduce") or (self.dtype, self.kv_dtype) == ("bfloat16", "bfloat16"):
            return name
        return f"{name}/kv-{SHORT.get(self.kv_dtype, self.kv_dtype)}"

    @property
    def library_name(self) -> str:
        """Name of the kernel library, e.g. "TensorRT-LLM 1.0.0"."""
        names = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "sglang": "SGLang", "nccl": "NCCL"}
        return f"{names[self.library[0]]} {self.library[1]}"

    @cached_property
    def seed(self) -> int:
        """Seed of the row sample: a checksum of the series, the same everywhere."""
        return zlib.crc32(
            repr((self.operator, self.folder, self.library, self.dtype, self.kv_dtype)).encode()
        )


A100, H100 = "nvidia_a100_sxm_80gb", "nvidia_h100_sxm"
L40S, RTX = "nvidia_l40s", "nvidia_rtx_pro_6000_server"
H200, B200, B60 = "nvidia_h200_sxm", "nvidia_b200_sxm", "intel_arc_b60"
FOLDERS = {
    A100: "a100_sxm",
    H100: "h100_sxm",
    L40S: "l40s",
    RTX: "rtx_pro_6000_server",
    H200: "h200_sxm",
    B200: "b200_sxm",
    B60: "b60",
}
CALIBRATED = (A100, H100, L40S, RTX)
TRT = ("trtllm", "1.3.0rc20")
TRT_A100 = ("trtllm", "1.0.0")
LIBRARIES = {A100: TRT_A100, B60: ("vllm", "0.20.0")}
ATTENTION_LIBRARIES = {A100: ("vllm", "0.14.0"), B60: ("vllm", "0.20.0")}
NCCL = {A100: "2.27.3", H100: "2.27.3", H200: "2.29.2", B200: "2.29.2", L40S: "2.27.3", RTX: "2.29.2"}


def _series() -> tuple[Series, ...]:
    found: list[Series] = []

    def add(
        operator: Operator,
        device: str,
        library: tuple[str, str],
        dtype: str = "bfloat16",
        kv: str = "bfloat16",
    ) -> None:
        role: Literal["fitted", "never"] = "fitted" if device in CALIBRATED else "never"
        found.append(Series(operator, device, FOLDERS[device], library, dtype, kv, role))

    for device in FOLDERS:
        library = LIBRARIES.get(device, TRT)
        add("gemm", device, library)
        if device == A100:
            for dtype in ("int4_wo", "int8_wo", "sq"):
                add("gemm", device, library, dtype)
        else:
            add("gemm", device, library, "fp8")
        if device == H100:
            add("gemm", device, ("sglang", "0.5.6.post2"), "int8_wo")
        if device in (RTX, B200):
            add("gemm", device, library, "nvfp4")
        attention = ATTENTION_LIBRARIES.get(device, TRT)
        for operator in ("attention_prefill", "attention_decode"):
            add(operator, device, attention)
            if attention == TRT:
                add(operator, device, attention, "bfloat16", "fp8")
        if device in NCCL:
            add("all_reduce", device, ("nccl", NCCL[device]))
            add("all_reduce", device, library)
    return tuple(found)


SERIES = _series()


def data_folder() -> Path:
    """Return where the installed tables are.

    Raises:
        ConfigError: the extra ``bench`` is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"needs {WHEEL}: pip install 'precision-dse[bench]'", value=PACKAGE)
    return Path(found.submodule_search_locations[0]) / "systems" / "data"


def read_table(series: Series) -> Any:
    """Return the table of a series as a pandas frame.

    Raises:
        ConfigError: the extra ``bench`` is not installed, or its version has no such table.
    """
    import pandas as pd

    family, table = {
        "gemm": ("gemm", "gemm_perf"),
        "attention_prefill": ("attention", "context_attention_perf"),
        "attention_decode": ("attention", "generation_attention_perf"),
        "all_reduce": ("comm", "nccl_perf" if series.library[0] == "nccl" else "custom_allreduce_perf"),
    }[series.operator]
    path = data_folder() / series.folder / family / series.library[0] / series.library[1]
    file = path / f"{table}.parquet"
    if not file.exists():
        raise ConfigError(f"is not in the installed tables: this benchmark reads {WHEEL}", file=str(file))
    return pd.read_parquet(file)


def load(series: Series, spec: HardwareSpec, n_rows: int) -> Measured:
    """Return a sample of a series' rows: the same on every machine, in the order of the table."""
    frame = read_table(series)
    frame = frame[frame["latency"] > 0]
    if series.operator == "gemm":
        return _gemm(series, spec, frame, n_rows)
    return _attention(series, spec, frame, n_rows)


def _sampled(series: Series, frame: Any, n_rows: int) -> Any:
    order = np.random.default_rng(series.seed).permutation(len(frame))
    return frame.iloc[np.sort(order[:n_rows])]


def _column(frame: Any, name: str) -> Array:
    return np.asarray(frame[name], dtype=np.float64)


def _label(series: Series) -> str:
    return f"{series.operator} {series.format}"


def _gemm(series: Series, spec: HardwareSpec, frame: Any, n_rows: int) -> Measured:
    frame = frame[(frame["gemm_dtype"] == series.dtype) & (frame["n"] * frame["k"] >= LEAST_WEIGHTS)]
    frame = _sampled(series, frame, n_rows)
    m, n, k = (_column(frame, name) for name in ("m", "n", "k"))
    precision = parse_precision(PRECISIONS[series.dtype])
    rows = matmul_rows(_label(series), spec, precision, m, n, k, _column(frame, "latency") * 1e-3)
    return replace(rows, work=replace(rows.work, weights_return=True))


def _attention(series: Series, spec: HardwareSpec, frame: Any, n_rows: int) -> Measured:
    frame = frame[
        (frame["attn_dtype"] == series.dtype)
        & (frame["kv_cache_dtype"] == series.kv_dtype)
        & (frame["beam_width"] == 1)
    ]
    if "window_size" in frame:
        frame = frame[frame["window_size"].fillna(0) <= 0]
    heads = frame["num_heads"]
    kv_heads = frame["num_key_value_heads"].where(frame["num_key_value_heads"] > 0, heads)
    frame = frame.assign(kv_heads=kv_heads)
    frame = frame[(heads % kv_heads == 0) & (heads / kv_heads <= MAX_GROUP)]
    frame = _sampled(series, frame, n_rows)
    decode = series.operator == "attention_decode"
    query = np.ones(len(frame)) if decode else _column(frame, "isl")
    context = query + _column(frame, "step")
    sizes = AttentionSizes(
        _column(frame, "batch_size"),
        query,
        context,
        _column(frame, "num_heads"),
        _column(frame, "kv_heads"),
        _column(frame, "head_dim"),
    )
    kv = parse_format("fp8_e4m3" if series.kv_dtype == "fp8" else "bf16")
    seconds = _column(frame, "latency") * 1e-3
    rows = attention_rows(_label(series), spec, kv, "decode" if decode else "prefill", sizes, seconds)
    return off_chip(rows, spec) if decode else rows


def off_chip(rows: Measured, spec: HardwareSpec) -> Measured:
    """Leave out rows that are faster than the main memory: their cache of keys and values was on the chip.

    In a model's step the weights push it out between two uses.
    """
    bandwidth = spec.main_memory.bandwidth_bytes_per_s
    assert bandwidth is not None
    moved = np.asarray(rows.work.read_bytes + rows.work.write_bytes, dtype=np.float64)
    return rows.where(rows.seconds >= ON_CHIP_ROOF_FRAC * moved / bandwidth)


@dataclass(frozen=True)
class Transfers:
    """All-reduce rows: (N,) devices, message bytes and seconds."""

    n_devices: Array
    message_bytes: Array
    seconds: Array
    held_out: Any


def load_all_reduce(series: Series) -> Transfers:
    """Return all rows of 16-bit all-reduce; every third message size is held out."""
    frame = read_table(series)
    if series.library[0] == "nccl":
        frame = frame[(frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half")]
    elif "kernel_source" in frame:
        eager = frame["kernel_source"].astype(str).str.contains("eager")
        frame = frame[~eager]
    size = _column(frame, "message_size") * HALF_BYTES
    rank = np.searchsorted(np.unique(size), size)
    return Transfers(_column(frame, "num_gpus"), size, _column(frame, "latency") * 1e-3, rank % 3 == 1)


def series_of(operators: Sequence[str], devices: Sequence[str]) -> tuple[Series, ...]:
    """Return the series of some operators and devices; empty selects all."""
    return tuple(
        entry
        for entry in SERIES
        if (not operators or entry.operator in operators) and (not devices or entry.device in devices)
    )
