"""What fusion saves, against hand counts of launches and bytes on a traced block and on the toy model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.evaluate.build import build_cost_table
from dse.evaluate.fusion import launch_shares, with_fused_norms
from dse.formats.grammar import parse_precision
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.graph.workload import Workload
from hardware_specs.loader import load_runtime
from hardware_specs.spec import RuntimeProfile
from tests.factories import make_spec
from tests.small_models import DECODERS

TIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
FUSING = RuntimeProfile("fusing", "made up", ties=TIES, fuses_ties=True, fuses_norm_and_add=True)


@pytest.fixture(scope="module")
def llama() -> OperatorGraph:
    return trace_model(ModelSource("llama", DECODERS["llama"]))


def test_tied_linears_of_one_tensor_share_a_launch(llama: OperatorGraph) -> None:
    shares = launch_shares(llama.blocks[0], FUSING)
    assert sum(shares.values()) == pytest.approx(4)
    assert shares["self_attn.q_proj"] == shares["self_attn.v_proj"] == pytest.approx(1 / 3)
    assert shares["mlp.up_proj"] == 0.5
    assert shares["mlp.down_proj"] == shares["self_attn.o_proj"] == 1
    alone = launch_shares(llama.blocks[0], replace(FUSING, fuses_ties=False))
    assert set(alone.values()) == {1.0}


def test_linears_of_unlike_tensors_share_nothing() -> None:
    """Cross-attention's keys and values read the encoder, its queries the decoder."""
    config = {"model_type": "t5", "d_model": 48, "d_kv": 8, "num_heads": 6, "d_ff": 96, "num_layers": 2}
    graph = trace_model(ModelSource("t5", {**config, "vocab_size": 101, "decoder_start_token_id": 0}))
    runtime = replace(FUSING, ties=(("q", "k", "v"),))
    shares = launch_shares(graph.blocks[-1], runtime)
    crossing = [share for name, share in shares.items() if "EncDecAttention" in name and name[-1] in "qkv"]
    assert sorted(crossing) == [0.5, 0.5, 1.0]


def test_a_fused_norm_reads_its_sum_from_the_addition(llama: OperatorGraph) -> None:
    """Of a block, two norms save one reading of the stream each: 2 x batch x tokens x width."""
    fused = with_fused_norms(llama, FUSING)
    saved = llama.blocks[0].sum("read_elements")(3, 7, 7) - fused.blocks[0].sum("read_elements")(3, 7, 7)
    assert saved == 2 * 3 * 7 * 48
    assert fused.blocks[0].sum("write_elements") == llama.blocks[0].sum("write_elements")
    assert with_fused_norms(llama, replace(FUSING, fuses_norm_and_add=False)) is llama


def test_the_cost_table_charges_what_is_left(llama: OperatorGraph) -> None:
    """On a device that is only memory, times are bytes over bandwidth: 2 norms and 3 inputs less a layer."""
    spec = make_spec(floor_s=0.0, exponent=20.0, device_class="npu")
    bf16, workload = parse_precision("bf16"), Workload(1, 64, 2)
    plain, fused = (
        build_cost_table(
            llama, units_of(llama, "block"), (bf16,), {"toy": spec}, workload, (4,), runtime=runtime
        )
        for runtime in (None, FUSING)
    )
    profile, bandwidth = spec.kernel("elementwise"), spec.main_memory.bandwidth_bytes_per_s
    for phase, tokens in enumerate((64, 1)):
        stream_bytes = 4 * tokens * 48 * 2
        saved = plain.layer_time_s[phase] - fused.layer_time_s[phase]
        np.testing.assert_allclose(saved, 2 * stream_bytes / (bandwidth * profile.byte_eff_frac), rtol=1e-9)
    assert (fused.unit_time_s <= plain.unit_time_s).all()
    assert (fused.unit_energy_j < plain.unit_energy_j).all()


def test_the_profile_of_vllm_names_its_source() -> None:
    runtime = load_runtime("vllm")
    assert runtime.fuses_norm_and_add
    assert "fused_add_rms_norm" in runtime.source
    assert not load_runtime("generic").fuses_norm_and_add
