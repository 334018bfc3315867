"""Attention over a cache of which some positions are quantized; see ``dse.policy.CachePolicy``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.policy import CachePolicy
from dse.quantize.fake import fake_quantize

if TYPE_CHECKING:
    from dse.emulate.model import EmulatedModel


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    fmt: NumberFormat | None,
    policy: CachePolicy,
) -> Tensor:
    """Return causal attention (batch, queries, heads, width) under a policy.

    Args:
        query: (batch, heads, n, width), the last n of all positions; key, value: (batch, kv heads, m, width).
        scaling: of the products of queries and keys.
        fmt: of the cache, None for full precision.
    """
    groups = query.shape[1] // key.shape[1]
    exact_key, exact_value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    n, m = query.shape[2], key.shape[2]
    if policy.queries is not None:
        query = fake_quantize(query, policy.queries)
    age = torch.arange(m - n, m, device=query.device)[:, None] - torch.arange(m, device=query.device)
    exact = (age < policy.window) | (torch.arange(m, device=query.device) < policy.sinks)
    scores = query @ exact_key.transpose(-1, -2)
    stored_value = exact_value
    if fmt is not None:
        stored_key = quantized_keys(key, fmt, policy).repeat_interleave(groups, dim=1)
        stored_value = fake_quantize(value, fmt).repeat_interleave(groups, dim=1)
        scores = torch.where(exact, scores, query @ stored_key.transpose(-1, -2))
    scores = (scores * scaling).masked_fill(age < 0, float("-inf"))
    p = torch.softmax(scores.float(), -1)
    if policy.softmax_bits is not None:
        p = power_of_two_probabilities(p, policy.softmax_bits)
    if policy.probabilities is not None:
        p = fake_quantize(p, policy.probabilities)
    p = p.to(value.dtype)
    mixed = p.masked_fill(~exact, 0) @ exact_value + p.masked_fill(exact, 0) @ stored_value
    return mixed.transpose(1, 2).contiguous()


def quantized_keys(key: Tensor, fmt: NumberFormat, policy: CachePolicy) -> Tensor:
    """Return keys (batch, heads, m, width) rounded per token, or per channel over groups of tokens."""
    if not policy.keys_per_channel:
        return fake_quantize(key, fmt)
    along = replace(fmt, granularity="group", group_size=policy.key_group)
    return fake_quantize(key.transpose(-1, -2), along).transpose(-1, -2)


def power_of_two_probabilities(p: Tensor, bits: int) -> Tensor:
    """Return probabilities (..., m) as powers of two, normalised again; 0 stays 0."""
    shift = (-p.clamp(min=2.0**-126).log2()).round_().clamp_(0, 2**bits - 1)
    powers = torch.exp2(-shift).masked_fill(p == 0, 0.0)
    return powers / powers.sum(-1, keepdim=True)


@contextmanager
def attended(model: EmulatedModel, policy: CachePolicy) -> Iterator[None]:
    """Attend under a policy in every block inside the context; causal attention over whole sequences only."""
    modules = [module for module in model.module.modules() if hasattr(module, "head_dim")]
    try:
        for module in modules:
            module.dse_policy = policy
        yield
    finally:
        for module in modules:
            module.__dict__.pop("dse_policy", None)
