"""Work of grouped products, compressed caches and scans. Oracles: hand counts from the papers' sizes."""

from __future__ import annotations

import numpy as np
import pytest

from dse.evaluate.footprint import kv_bytes_per_token
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.extent import Extent
from dse.graph.operator import Attention, Experts, Op
from hardware_specs.loader import load_device

BF16 = parse_precision("bf16/bf16/bf16")
H, F, E, K = 64, 32, 8, 2


def routed() -> Op:
    return Op(
        name="experts.up",
        kind="linear",
        parameters=E * F * H,
        weight_shape=(E * F, H),
        flop=Extent.of({(1, 1, 0): 2.0 * K * F * H}),
        experts=Experts(E, K),
    )


@pytest.mark.parametrize("tokens", [1, 3, 500])
def test_a_grouped_product_reads_the_experts_in_use(tokens: int) -> None:
    work = lower(routed(), BF16, load_device("nvidia_a100_sxm_80gb"), "decode", tokens, 1, 10)
    used = E * (1 - (1 - K / E) ** tokens)
    assert work.flop == pytest.approx(2 * K * F * H * tokens)
    assert work.read_bytes == pytest.approx(2 * (used * F * H + tokens * K * H))
    assert work.write_bytes == pytest.approx(2 * tokens * K * F)
    assert work.rows == pytest.approx(tokens * K / used)


def test_many_tokens_read_every_expert_once_and_sizes_broadcast() -> None:
    batch = np.array([1.0, 10_000.0])
    work = lower(routed(), BF16, load_device("nvidia_a100_sxm_80gb"), "decode", batch, 1.0, 10.0)
    weights = work.read_bytes - 2 * batch * K * H
    np.testing.assert_allclose(weights, [2 * K * F * H, 2 * E * F * H])


def test_a_compressed_cache_is_read_once_for_all_heads() -> None:
    """DeepSeek-V3, arXiv 2412.19437, section 4.2: 512 latent and 64 rotary elements for 128 heads."""
    latent = Attention(128, 128, 192, value_dim=128, latent_dim=576)
    assert kv_bytes_per_token(latent, parse_format("bf16"), 1000) == 2 * 576
    op = Op(name="attention", kind="attention", attention=latent)
    work = lower(op, BF16, load_device("nvidia_a100_sxm_80gb"), "decode", 1, 1, 1000)
    assert work.flop == 2 * 128 * (192 + 128) * 1000
    assert work.read_bytes == pytest.approx(2 * 576 * 1000 + 2 * 128 * 160)


def test_encoders_attend_in_both_directions() -> None:
    device = load_device("nvidia_a100_sxm_80gb")
    op = Op(name="attention", kind="attention", attention=Attention(4, 4, 16, causal=False))
    assert lower(op, BF16, device, "prefill", 2, 10, 10).flop == 2 * 4 * 4 * 16 * 100


def test_a_scan_counts_its_multiply_adds_as_vector_work() -> None:
    op = Op(
        name="scan",
        kind="scan",
        flop=Extent.of({(1, 1, 0): 40.0}),
        vector_flop=Extent.of({(1, 1, 0): 2.0}),
        read_elements=Extent.of({(1, 0, 0): 7.0}),
    )
    work = lower(op, BF16, load_device("nvidia_a100_sxm_80gb"), "decode", 3, 1, 9)
    assert (work.vector_flop, work.read_bytes) == (3 * 42, 2 * 21)
