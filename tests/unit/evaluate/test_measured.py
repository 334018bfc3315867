"""Predictions against published measurements: loose bounds, so that a change of the models is noticed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cost_models.pricing import price
from cost_models.work import Work
from dse.evaluate.cost_document import cost_document
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_precision
from dse.graph.operator import Op, OperatorGraph
from dse.graph.workload import Workload
from hardware_specs.loader import load_device
from tests.factories import make_graph, tokens

BF16 = parse_precision("bf16")


def llama_8b() -> OperatorGraph:
    """Llama-3.1-8B by its published sizes (arXiv 2407.21783, table 3): 8.03e9 parameters."""
    return make_graph(32, 4096, 14336, 32, 8, 128256)


def gemm_rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 3) m, n, k and (N,) seconds of the four matrix products of every row."""
    shapes, times_s = [], []
    with path.open() as handle:
        for row in csv.DictReader(handle):
            width, ffn = int(row["n_embd"]), int(row["n_expanded_embd"])
            heads, kv_heads = int(row["n_head"]), int(row["n_kv_head"])
            tp = int(row["num_tensor_parallel_workers"])
            qkv = (heads + 2 * kv_heads) * (width // heads)
            for name, n, k in (
                ("attn_pre_proj", qkv // tp, width),
                ("attn_post_proj", width, width // tp),
                ("mlp_up_proj", 2 * ffn // tp, width),
                ("mlp_down_proj", width, ffn // tp),
            ):
                shapes.append((int(row["num_tokens"]), n, k))
                times_s.append(float(row[f"time_stats.{name}.median"]) * 1e-3)
    return np.array(shapes, dtype=np.float64), np.array(times_s)


@pytest.mark.parametrize(
    ("device", "prefix", "bound"), [("nvidia_a100_sxm_80gb", "a100", 0.15), ("nvidia_h100_sxm", "h100", 0.27)]
)
@pytest.mark.parametrize("model", ["Llama-2-7b-hf", "Llama-2-70b-hf"])
def test_calibrated_gemm_on_measured_products(shared_data, device, prefix, bound, model):
    """Oracle: float16 products of Llama 2 layers, measured with events by the Vidur authors (MIT licence).

    Found, median error of 4176 products each: A100 9 % (7B) and 10 % (70B), H100 24 % and 18 %; the spec
    sheet alone 32 to 43 %. The kernel profiles were fitted to another source and another library, which is
    itself 12 to 14 % faster for the same product (CUDA graphs instead of events).
    """
    shapes, measured_s = gemm_rows(shared_data / "measured" / "vidur" / f"{prefix}_{model}_mlp.csv")
    spec = load_device(device)
    m, n, k = shapes.T
    work = Work(
        *("matmul", "gemm", "fp16", 2 * m * n * k, 0, 2 * (m * k + n * k), 2 * m * n, m),
        weight_bytes=2 * n * k,
        shape=(n, k),
    )
    predicted_s = np.asarray(price(work, spec).time_s)
    error = float(np.median(np.abs(predicted_s / measured_s - 1)))
    bandwidth = spec.main_memory.bandwidth_bytes_per_s
    assert bandwidth is not None
    bare_s = np.maximum(2 * m * n * k / spec.rate_flop_per_s("fp16"), 2 * (m * k + n * k + m * n) / bandwidth)
    naive = float(np.median(np.abs(bare_s / measured_s - 1)))
    assert error < bound, (
        f"median error {error:.1%} over {len(measured_s)} products (spec sheet: {naive:.1%})"
    )
    assert error < naive


def test_decode_is_bound_by_bandwidth():
    """An H100 cannot pass 3.35 TB/s over the weights it reads: 223 tokens/s for 7.5e9 bf16 parameters."""
    graph = llama_8b()
    document = cost_document(graph, load_device("nvidia_h100_sxm"), BF16, Workload(1, 128, 128))
    read_bytes = 2 * (graph.parameters - 128256 * 4096)
    assert 3.35e12 / read_bytes == pytest.approx(223, abs=1)
    rate = 1 / document["tpot_s"]
    assert 223 * 0.5 < rate < 223


ROWS = (1, 6, 24, 48, 96, 192, 384, 768, 2048, 8192)
"""One number of rows in each of the measured classes 1, 2-16, 17-32, ... above 4096."""

MEASURED_RATIOS = {
    ("nvidia_a100_sxm_80gb", "int4_g128"): (0.49, 0.55, 0.59, 0.80, 0.96, 1.03, 1.10, 1.10, 1.06, 1.03),
    ("nvidia_a100_sxm_80gb", "int8_row"): (0.61, 0.66, 0.70, 0.78, 0.89, 0.98, 1.05, 1.05, 1.03, 1.00),
    ("nvidia_a100_sxm_80gb", "int8_row/int8_token/bf16"): (
        0.55,
        0.58,
        0.62,
        0.65,
        0.69,
        0.67,
        0.68,
        0.59,
        0.53,
        0.50,
    ),
    ("nvidia_h100_sxm", "fp8_e4m3_row/fp8_e4m3_token/bf16"): (
        0.79,
        0.80,
        0.81,
        0.82,
        0.83,
        0.85,
        0.84,
        0.79,
        0.72,
        0.69,
    ),
    ("nvidia_h100_sxm", "int8_row"): (1.15, 1.26, 1.44, 1.51, 1.73, 1.99, 2.09, 1.66, 1.69, 1.57),
    ("nvidia_l40s", "fp8_e4m3_row/fp8_e4m3_token/bf16"): (
        0.59,
        0.57,
        0.57,
        0.56,
        0.58,
        0.62,
        0.69,
        0.73,
        0.69,
        0.67,
    ),
}


@pytest.mark.parametrize(("device", "precision"), list(MEASURED_RATIOS))
def test_speed_of_low_precision(device, precision):
    """Oracle: median time ratio of low-precision products to bf16 by rows (aiconfigurator-core 0.12 tables).

    A regression test and not a validation: the kernel profiles were fitted to the same tables. The (n, k)
    shapes behind the medians are not given; six common ones stand in. Low bits are not always faster, and
    that sign decides what a search finds. Where the measured ratio is clearly not 1 the predicted one must
    lie on the same side; the slow W8A16 kernel of H100 scatters more from shape to shape.
    """
    spec = load_device(device)
    shapes = ((4096, 4096), (8192, 8192), (14336, 4096), (4096, 14336), (28672, 8192), (8192, 28672))
    ratios = []
    for rows in ROWS:
        each = []
        for n, k in shapes:
            op = Op("x", "linear", n * k, (n, k), flop=tokens(2 * n * k))
            low, dense = (
                price(lower(op, entry, spec, "prefill", 1, rows, rows), spec).time_s
                for entry in (parse_precision(precision), BF16)
            )
            each.append(float(low) / float(dense))
        ratios.append(np.median(each))
    measured = np.array(MEASURED_RATIOS[device, precision])
    error = np.abs(np.array(ratios) / measured - 1)
    slow = measured[0] > 1
    assert np.median(error) < (0.2 if slow else 0.12), f"{np.round(ratios, 2)} against {measured}"
    clear = np.abs(measured - 1) > (0.2 if slow else 0.04)
    assert (np.sign(np.array(ratios) - 1) == np.sign(measured - 1))[clear].all(), np.round(ratios, 2)


def test_energy_of_llama_8b_on_one_h100():
    """ML.ENERGY, Llama-3.1-8B bf16 on one H100 at batch 8: 0.455 J per generated token. A consistency check.

    Not out of sample: the static power, J/bit and J/flop of this device were fitted to ML.ENERGY's H100 runs.
    The request lengths behind the figure are not known here; 512 in and 512 out are assumed. Lengths from
    64/256 to 1024/512 move the prediction from -7 % to +7 %, 2048/256 gives +30 %. Larger batches (0.165 J at
    32, 0.095 at 128, 0.070 at 512) are not tested: there the assumed lengths move it by -61 % to +176 %.
    """
    document = cost_document(llama_8b(), load_device("nvidia_h100_sxm"), BF16, Workload(8, 512, 512))
    assert document["energy_j_per_token"] == pytest.approx(0.455, rel=0.15)


def test_step_of_llama_8b_on_one_h100():
    """Oracle: ML.ENERGY, 7.3 ms per decode step at batch 8; 7.0 to 7.9 ms for contexts of 64 to 2304.

    The measured step holds host time, which is not modelled, and fused q/k/v and gate/up products, which are
    priced as separate launches here. The two deviations have opposite signs, so a close match is partly luck.
    """
    document = cost_document(llama_8b(), load_device("nvidia_h100_sxm"), BF16, Workload(8, 512, 512))
    assert document["tpot_s"] == pytest.approx(7.3e-3, rel=0.15)
