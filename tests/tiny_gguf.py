"""A random Llama of two blocks as a GGUF file, every role of its linears in another of llama.cpp's types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 256, 4, 2, 64, 320
TYPES = {
    "attn_q": "Q4_K",
    "attn_k": "Q4_1",
    "attn_v": "Q5_0",
    "attn_output": "Q6_K",
    "ffn_gate": "Q4_0",
    "ffn_up": "BF16",
    "ffn_down": "F16",
}
_SUPER_BLOCKS = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}  # bytes, and where float16 scales are


def write_tiny_gguf(path: Path, *, seed: int = 0) -> Path:
    """Write the file, with a tokenizer of bytes; return its path."""
    import gguf
    from tokenizers import pre_tokenizers

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "th", *(f"<{index}>" for index in range(VOCAB - len(letters) - 1))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_bos_token_id(VOCAB - 1)
    _add(writer, "token_embd.weight", "Q8_0", rng.standard_normal((VOCAB, WIDTH)), rng)
    for layer in range(N_LAYERS):
        for role, kind in TYPES.items():
            rows = KV_HEADS * HEAD_DIM if role in ("attn_k", "attn_v") else WIDTH
            _add(writer, f"blk.{layer}.{role}.weight", kind, rng.standard_normal((rows, WIDTH)) * 0.1, rng)
        for name in ("attn_norm", "ffn_norm"):
            _add(writer, f"blk.{layer}.{name}.weight", "F32", 1 + 0.2 * rng.standard_normal(WIDTH), rng)
    _add(writer, "output_norm.weight", "F32", 1 + 0.2 * rng.standard_normal(WIDTH), rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, kind: str, values: NDArray[np.float64], rng: np.random.Generator) -> None:
    import gguf

    stored = gguf.GGMLQuantizationType[kind]
    if kind in _SUPER_BLOCKS:
        writer.add_tensor(name, _super_blocks(kind, values, rng), raw_dtype=stored)
    elif kind == "F32":
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, gguf.quantize(values.astype(np.float32), stored), raw_dtype=stored)


def _super_blocks(kind: str, values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return random codes with small scales: package gguf expands these types, but does not write them."""
    size, scales = _SUPER_BLOCKS[kind]
    rows, columns = values.shape
    blocks = rng.integers(0, 256, (rows, columns // 256, size)).astype(np.uint8)
    for at in scales:
        blocks[..., at : at + 2] = np.full((*blocks.shape[:2], 1), 2e-4, np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
