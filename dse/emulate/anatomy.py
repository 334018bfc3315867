"""The parts of a pre-norm transformer that transforms fold into, found by their usual names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError


@dataclass(frozen=True)
class BlockParts:
    """One transformer block: norm -> q, k, v -> attention -> o; norm -> gate, up -> down."""

    attention_norm: Any
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    ffn_norm: Any
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    attention: Any
    ffn: Any


@dataclass(frozen=True)
class Anatomy:
    """A whole model.

    Attributes:
        embedding, final_norm, head: outside of the blocks; blocks: in order.
        n_heads, n_kv_heads, head_dim: of the attention.
    """

    embedding: nn.Embedding
    blocks: tuple[BlockParts, ...]
    final_norm: Any
    head: nn.Linear
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return int(self.embedding.weight.shape[1])


def anatomy_of(model: EmulatedModel) -> Anatomy:
    """Return the parts of a model of the Llama family.

    Raises:
        ConfigError: a part is missing, or the norms are not plain RMS norms (rotations need those).
    """
    module = model.module
    try:
        blocks = tuple(
            BlockParts(
                layer.input_layernorm,
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.self_attn.o_proj,
                layer.post_attention_layernorm,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
                layer.mlp.down_proj,
                layer.self_attn,
                layer.mlp,
            )
            for layer in model.layers
        )
        head_dim = int(blocks[0].attention.head_dim)
        parts = (module.model.embed_tokens, module.model.norm, module.lm_head)
    except AttributeError as error:
        raise ConfigError(f"{model.folder.name} cannot be transformed: {error}") from None
    if any(hasattr(block.attention, name) for block in blocks for name in ("q_norm", "k_norm")):
        raise ConfigError(f"{model.folder.name} normalises queries and keys, which transforms do not handle")
    if getattr(parts[1], "bias", None) is not None:
        raise ConfigError(f"{model.folder.name} has norms with biases, which transforms do not handle")
    n_heads, n_kv_heads = (blocks[0].q.out_features // head_dim, blocks[0].k.out_features // head_dim)
    return Anatomy(parts[0], blocks, parts[1], parts[2], n_heads, n_kv_heads, head_dim)
