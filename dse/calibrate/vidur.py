"""Measured CSVs of Vidur (MIT licence): a source and a library that no constant was fitted to.

Timed with events around eager launches in steps of a microsecond: 12 to 14 % longer than the times of
CUDA graphs for the same product.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.collectives import library_all_reduce_s, p2p_time_s, profiles_of
from dse.calibrate.fidelity import FidelityRow, coverage_of, naive_s, score
from dse.calibrate.fit import predicted_s
from dse.calibrate.rows import Array, matmul_rows
from dse.calibrate.tables import A100, H100
from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from hardware_specs.loader import load_device
from hardware_specs.spec import HardwareSpec

DEVICES = {"a100": A100, "h100": H100}
LIBRARY = "Vidur profiles"
LARGE_BYTES = 1e6
"""Below it about 30 us of eager launches dominate a collective's time."""


def vidur_fidelity(folder: Path) -> Iterator[FidelityRow]:
    """Yield one line per device and kind of the CSVs in a folder.

    Raises:
        ConfigError: the folder has none of them.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ConfigError("has no CSV files", file=str(folder))
    for prefix, device in DEVICES.items():
        spec = load_device(device)
        mlp = [
            file for file in files if file.name.startswith(f"{prefix}_") and file.name.endswith("_mlp.csv")
        ]
        if mlp:
            yield _products(spec, mlp)
        for kind in ("all_reduce", "send_recv"):
            transfers = [file for file in files if file.name == f"network_{prefix}_dgx_{kind}.csv"]
            if transfers:
                yield _transfers(spec, transfers[0], kind)


def _products(spec: HardwareSpec, files: list[Path]) -> FidelityRow:
    import pandas as pd

    frames = [_product_table(pd.read_csv(file)) for file in files]
    m, n, k, seconds = np.concatenate(frames).T
    rows = matmul_rows("vidur", spec, parse_precision("fp16"), m, n, k, seconds)
    profile = spec.kernel(rows.work.profile)
    predicted = predicted_s(rows.work, spec, profile)
    return FidelityRow(
        *("gemm", spec.name, "fp16", LIBRARY, "other", len(rows)),
        score(predicted, seconds),
        score(naive_s(rows.work, spec), seconds),
        coverage_of(seconds / predicted, profile.interval),
        None,
    )


def _product_table(frame: Any) -> Array:
    """Return (4 N, 4) m, n, k and seconds of the four products of each row."""
    width, ffn = frame["n_embd"], frame["n_expanded_embd"]
    tp, tokens = frame["num_tensor_parallel_workers"], frame["num_tokens"]
    qkv = (frame["n_head"] + 2 * frame["n_kv_head"]) * (width // frame["n_head"])
    parts = [
        ("attn_pre_proj", qkv // tp, width),
        ("attn_post_proj", width, width // tp),
        ("mlp_up_proj", 2 * ffn // tp, width),
        ("mlp_down_proj", width, ffn // tp),
    ]
    tables = [
        np.stack([tokens, n, k, frame[f"time_stats.{name}.median"] * 1e-3], axis=1) for name, n, k in parts
    ]
    return np.concatenate(tables).astype(np.float64)


def _transfers(spec: HardwareSpec, file: Path, kind: str) -> FidelityRow:
    import pandas as pd

    frame = pd.read_csv(file)
    inside = frame["num_workers"] == frame["devices_per_node"]
    frame = frame[inside & (frame["size"] > LARGE_BYTES)]
    n, size = (np.asarray(frame[name], dtype=np.float64) for name in ("num_workers", "size"))
    seconds = np.asarray(frame[f"time_stats.{kind}.median"], dtype=np.float64) * 1e-3
    link = spec.link("scale_up")
    assert link is not None
    if kind == "all_reduce":
        nccl = next(entry for entry in profiles_of(link) if entry.name == "nccl")
        predicted = np.asarray(library_all_reduce_s(size, n, link, nccl))
        bare = 2 * (n - 1) / n * size / link.bandwidth_bytes_per_s
    else:
        predicted = np.asarray(p2p_time_s(size, link))
        bare = size / link.bandwidth_bytes_per_s
    return FidelityRow(
        *(kind, spec.name, "16 bit", LIBRARY, "other", len(seconds)),
        score(predicted, seconds),
        score(bare, seconds),
        None,
        None,
    )
