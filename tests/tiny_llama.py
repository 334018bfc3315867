"""A random Llama of two blocks with a tokenizer of bytes, written to a folder like a real checkpoint."""

from __future__ import annotations

from pathlib import Path

from dse.graph.extent import Extent
from dse.graph.operator import Attention, Block, Op, OperatorGraph

N_LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 64, 96, 4, 2, 16, 320

LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}


def write_tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """Write config.json, model.safetensors (bfloat16) and the tokenizer; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        initializer_range=0.25,  # spreads the logits, so that quantization shows
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def tiny_graph() -> OperatorGraph:
    """Return the operators that units and paths need; sizes are not filled in."""
    attention = Op("self_attn.attention", "attention", attention=Attention(HEADS, KV_HEADS, HEAD_DIM))
    linears = [Op(name, "linear", parameters=m * n, weight_shape=(m, n)) for name, (m, n) in LINEARS.items()]
    block = Block("model.layers.{layer}", tuple(range(N_LAYERS)), (*linears[:3], attention, *linears[3:]))
    embedding = Op("model.embed_tokens", "embedding", parameters=VOCAB * HIDDEN, weight_shape=(VOCAB, HIDDEN))
    head = Op("lm_head", "linear", weight_shape=(VOCAB, HIDDEN), tied_to="model.embed_tokens", flop=Extent())
    return OperatorGraph(
        model="tiny-llama",
        config_hash="0" * 16,
        prologue=Block("", (), (embedding,)),
        blocks=(block,),
        epilogue=Block("", (), (head,)),
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        parameters=VOCAB * HIDDEN + N_LAYERS * sum(m * n for m, n in LINEARS.values()),
    )
