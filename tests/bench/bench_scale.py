"""An 8B-shaped checkpoint on disk, calibrated, quantized and evaluated block by block: peak memory and time.

Run by name: ``pytest tests/bench/bench_scale.py -m slow -s``. It writes 16 GB of random bfloat16 weights into
the temporary folder (needs 20 GB there) and removes them.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAX_PEAK_BYTES = 10e9
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
}
N_TOKENS, LENGTH = 64, 32


def write_checkpoint(folder: Path) -> int:
    """Write one safetensors file per block, and an index; return the bytes."""
    import torch
    from safetensors.torch import save_file

    hidden, ffn, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 8 * 128
    vocab = CONFIG["vocab_size"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    folder.mkdir(parents=True)
    pool = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    used = 0

    def values(m: int, n: int) -> torch.Tensor:
        nonlocal used
        used += 1  # other parts of one pool of random numbers, so that writing is what takes the time
        return pool.roll(used * 7919).repeat(-(-m * n // len(pool)))[: m * n].view(m, n)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    file_of: dict[str, str] = {}
    total = 0

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        save_file(tensors, folder / file)
        file_of.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())

    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": values(m, n) for name, (m, n) in shapes.items()}
        tensors |= {
            f"{prefix}{name}.weight": ones.clone() for name in ("input_layernorm", "post_attention_layernorm")
        }
        save(f"block-{layer:02d}.safetensors", tensors)
    save("embedding.safetensors", {"model.embed_tokens.weight": values(vocab, hidden)})
    save("head.safetensors", {"lm_head.weight": values(vocab, hidden), "model.norm.weight": ones})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return total


def run(folder: Path) -> dict[str, float]:
    """Quantize in this process and return times, quality and peak memory."""
    import numpy as np

    from dse.emulate.compensate import WeightRecipe
    from dse.emulate.corpus import TokenSample
    from dse.emulate.one_weight import OutlierStore
    from dse.emulate.streamed import StreamedModel
    from dse.evaluate.block_by_block import quantize_block_by_block
    from dse.formats.grammar import parse_precision
    from dse.graph.source import load_source
    from dse.graph.trace import trace_model
    from dse.graph.units import units_of
    from dse.plan import Assignment

    graph = trace_model(load_source(folder))
    units = units_of(graph, "block")
    start_s = time.perf_counter()
    model = StreamedModel.open(folder, graph, units)
    opened_s = time.perf_counter() - start_s
    precision = parse_precision("int4_g64_asym")
    formats = model.formats_of(Assignment(tuple((unit.name, precision) for unit in units)))
    how = WeightRecipe(outliers=OutlierStore("columns", 0.01, "activation"))  # looks at every linear's inputs
    ids = np.random.default_rng(0).integers(0, 128000, (2, N_TOKENS // LENGTH, LENGTH)).astype(np.int32)
    evaluation = TokenSample(ids[0], "random", "0", "evaluation", 0, "a")
    calibration = TokenSample(ids[1], "random", "0", "calibration", 0, "b")
    start_s = time.perf_counter()
    done = quantize_block_by_block(
        model,
        formats,
        how,
        evaluation,
        calibration=calibration,
        progress=lambda i, n: sys.stderr.write(f"{i}/{n} {time.perf_counter() - start_s:.0f} s\n"),
    )
    return {
        "opened_s": opened_s,
        "time_s": time.perf_counter() - start_s,
        "kl_nats": done.measured.kl_nats,
        "perplexity": done.baseline.perplexity,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


@pytest.mark.slow
def test_8b_shaped_checkpoint_stays_under_10_gb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk")
    folder = tmp_path / "llama-8b-shaped"
    try:
        size_bytes = write_checkpoint(folder)
        code = "import json, sys; from pathlib import Path; from tests.bench.bench_scale import run; "
        code += f"print(json.dumps(run(Path({str(folder)!r}))))"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        sys.stdout.write(f"\n{size_bytes / 1e9:.1f} GB of weights: {found}\n")
    assert size_bytes > 15e9
    assert found["kl_nats"] > 0
    assert found["peak_bytes"] < MAX_PEAK_BYTES
