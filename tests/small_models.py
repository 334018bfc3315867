"""A small configuration of every architecture that must trace, by name."""

from __future__ import annotations

from typing import Any

GROUPED: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "pad_token_id": 0,
}
ROUTED: dict[str, Any] = {**GROUPED, "num_experts_per_tok": 2}
GPT: dict[str, Any] = {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 101}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 48,
    "num_attention_heads": 6,
    "ffn_dim": 96,
    "vocab_size": 101,
    "num_hidden_layers": 3,
}
FALCON: dict[str, Any] = {
    "model_type": "falcon",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 101,
}
LATENT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 101,
}
STATES: dict[str, Any] = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}
ENCODER: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "vocab_size": 101,
}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "model_type": "llama"},
    "llama-1": {**GROUPED, "model_type": "llama", "num_key_value_heads": 6},
    "llama-4": {
        **ROUTED,
        "model_type": "llama4_text",
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
        "use_qk_norm": True,
    },
    "llama-4-every-expert": {
        **ROUTED,
        "model_type": "llama4_text",
        "intermediate_size_mlp": 64,
        "num_local_experts": 3,
        "num_experts_per_tok": 3,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    },
    "mistral": {**GROUPED, "model_type": "mistral", "sliding_window": None},
    "mistral-sliding": {**GROUPED, "model_type": "mistral", "sliding_window": 12},
    "mixtral": {**ROUTED, "model_type": "mixtral", "num_local_experts": 4},
    "qwen2": {**GROUPED, "model_type": "qwen2"},
    "qwen2-half-sliding": {
        **GROUPED,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 3,
    },
    "qwen2-moe": {
        **ROUTED,
        "model_type": "qwen2_moe",
        "num_experts": 8,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3": {**GROUPED, "model_type": "qwen3", "head_dim": 16},
    "qwen3-moe": {**ROUTED, "model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 24},
    "deepseek-v2": {
        **LATENT,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    },
    "deepseek-v3": {
        **LATENT,
        "model_type": "deepseek_v3",
        "q_lora_rank": 32,
        "v_head_dim": 12,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 2,
    },
    "gemma": {**GROUPED, "model_type": "gemma"},
    "gemma-2": {**GROUPED, "model_type": "gemma2", "head_dim": 12, "sliding_window": 16},
    "gemma-3": {**GROUPED, "model_type": "gemma3_text", "sliding_window": 12, "num_hidden_layers": 7},
    "phi-2": {**GROUPED, "model_type": "phi"},
    "phi-3": {**GROUPED, "model_type": "phi3"},
    "opt": {**OPT, "word_embed_proj_dim": 48},
    "opt-projected": {**OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    "bloom": {"model_type": "bloom", "hidden_size": 48, "n_layer": 3, "n_head": 6, "vocab_size": 101},
    "bloom-odd-heads": {
        "model_type": "bloom",
        "hidden_size": 40,
        "n_layer": 3,
        "n_head": 5,
        "vocab_size": 11,
    },
    "gpt-2": {**GPT, "model_type": "gpt2"},
    "gpt-j": {**GPT, "model_type": "gptj", "rotary_dim": 4},
    "gpt-neox": {**GROUPED, "model_type": "gpt_neox"},
    "gpt-bigcode": {**GPT, "model_type": "gpt_bigcode"},
    "falcon-7b": FALCON,
    "falcon-40b": {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon-rw": {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "starcoder2": {**GROUPED, "model_type": "starcoder2", "sliding_window": 12},
    "gpt-oss": {**ROUTED, "model_type": "gpt_oss", "num_local_experts": 8, "sliding_window": 12},
    "granite": {**GROUPED, "model_type": "granite"},
    "granite-moe": {**ROUTED, "model_type": "granitemoe", "num_local_experts": 4},
    "olmo-2": {**GROUPED, "model_type": "olmo2"},
    "olmoe": {**ROUTED, "model_type": "olmoe", "num_experts": 8},
    "command-r": {**GROUPED, "model_type": "cohere"},
    "command-r7b": {**GROUPED, "model_type": "cohere2", "sliding_window": 12},
    "smollm3": {**GROUPED, "model_type": "smollm3"},
    "mamba": {
        "model_type": "mamba",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "state_size": 16,
        "vocab_size": 101,
    },
    "mamba-2": {
        "model_type": "mamba2",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_heads": 12,
        "head_dim": 8,
        "state_size": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "vocab_size": 101,
    },
    "jamba": {
        **ROUTED,
        "model_type": "jamba",
        "num_hidden_layers": 8,
        "num_experts": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "falcon-h1": {**GROUPED, **STATES, "model_type": "falcon_h1", "mamba_d_ssm": 96, "mamba_n_groups": 1},
    "bamba": {**GROUPED, **STATES, "model_type": "bamba", "attn_layer_indices": [1]},
    "granite-hybrid": {
        **ROUTED,
        **STATES,
        "model_type": "granitemoehybrid",
        "num_local_experts": 4,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
    },
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**ENCODER, "model_type": "bert"},
    "roberta": {**ENCODER, "model_type": "roberta", "max_position_embeddings": 130},
}
VISION: dict[str, dict[str, Any]] = {
    "vit": {**ENCODER, "model_type": "vit", "image_size": 32, "patch_size": 8},
}
ARCHITECTURES = {**DECODERS, **ENCODERS, **VISION}

NEAR_TWINS = frozenset(
    {
        *("llama-1", "qwen2-half-sliding", "opt-projected", "bloom-odd-heads", "falcon-rw", "gpt-bigcode"),
        *("granite-moe", "command-r7b", "bamba", "roberta"),
    }
)
"""Variants whose operators another architecture has too: their tests are marked slow."""
