"""Attention over a quantized cache, as an attention implementation that transformers' models can call.

Keys arrive after the rotary embedding, because that is what a cache stores. Every position is read back from
the cache, the newest included, as a kernel does that appends before it attends.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dse.emulate.cache_policy import attend
from dse.formats.precision import NumberFormat
from dse.quantize.fake import fake_quantize

IMPLEMENTATION = "dse_quantized_cache"


class CacheFormat:
    """Format of one attention module's cache. ``n_reads`` counts calls, which shows that the model obeys."""

    def __init__(self) -> None:
        """Start with full precision."""
        self.fmt: NumberFormat | None = None
        self.n_reads = 0


def register() -> None:
    """Make the implementation known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, quantized_cache_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def quantized_cache_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # the signature is transformers'
) -> tuple[Tensor, None]:
    """Round keys and values to the module's cache format, then attend.

    Args:
        module: the calling attention module; its ``dse_cache`` holds the format.
        query: (batch, heads, queries, width).
        key, value: (batch, key-value heads, positions, width).
        attention_mask: as transformers makes it for "sdpa".
        options: scaling, dropout and the like, passed on.

    Returns:
        (batch, queries, heads, width) and no attention weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rotation = getattr(module, "dse_rotation", None)
    if rotation is not None:  # the same turn of both leaves their products alone
        query, key = rotation.apply(query), rotation.apply(key)
    cache = getattr(module, "dse_cache", None)
    policy = getattr(module, "dse_policy", None)
    if policy is not None:
        if cache is not None:
            cache.n_reads += 1
        fmt = None if cache is None else cache.fmt
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query, key, value, scaling, fmt, policy), None
    if cache is not None and cache.fmt is not None:
        cache.n_reads += 1
        key, value = fake_quantize(key, cache.fmt), fake_quantize(value, cache.fmt)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
