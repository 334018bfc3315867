"""Parts of a model that a serving runtime runs as one kernel, recorded as such instead of step by step.

Attention, the grouped products of a mixture of experts, causal convolutions and state-space scans have
closed-form costs, and transformers computes some of them in ways that no runtime does (a loop over experts, a
scan padded to whole chunks). Here each is one node with its arithmetic, and tensors of the right shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dse.graph.operator import Attention, Experts

if TYPE_CHECKING:
    from dse.graph.lifetimes import Lifetimes
    from dse.graph.record import Recorder

ATTENTION_NAME = "dse_traced_attention"
EXPERTS_NAME = "dse_traced_experts"

RECORDER: ContextVar[Recorder | Lifetimes] = ContextVar("recorder")

SOFTMAX_PER_SCORE = 6  # scale, maximum, subtract, exponential, sum, divide
SOFTCAP_PER_SCORE = 3  # divide, tanh, multiply
SCAN_PER_CHANNEL = 9  # step size: add, softplus 4; times the input; skip connection 2; cast


def traced_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  (transformers' attention interface)
    scaling: float | None = None,  # noqa: ARG001
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    **settings: Any,  # noqa: ARG001  (dropout, window and the like change no size)
) -> tuple[torch.Tensor, None]:
    """Softmax(q kT / sqrt(d)) v with full products, as transformers' attention interface asks.

    Args:
        module: the calling attention module.
        query: (batch, heads, query length, width).
        key, value: (batch, key-value heads, context, width).
        attention_mask, scaling: ignored; sizes do not depend on them.
        softcap: bound s of the scores, s tanh(x / s) (Gemma 2, arXiv 2408.00118, section 2).
        position_bias: (1, heads, query length, context), added to the scores (T5, arXiv 1910.10683, 2.1).
        s_aux: (heads,) attention sinks, one more column of the softmax (arXiv 2508.10925, section 2.2).
        settings: other settings that families pass, which change no size.

    Returns:
        (batch, query length, heads, width) and no attention weights.
    """
    batch, heads, length, width = query.shape
    context, value_width = key.shape[2], value.shape[3]
    scores = batch * heads * length * context
    per_score = SOFTMAX_PER_SCORE + (SOFTCAP_PER_SCORE if softcap is not None else 0)
    per_score += 1 if position_bias is not None else 0
    inputs = [query, key, value]
    inputs += [t for t in (position_bias, s_aux) if t is not None]
    result = RECORDER.get().kernel(
        "attention",
        "attention",
        inputs,
        [(batch, length, heads, value_width)],
        flop=2 * scores * (width + value_width),
        vector_flop=per_score * scores + (2 * batch * heads * length if s_aux is not None else 0),
        detail=Attention(
            n_heads=heads,
            n_kv_heads=key.shape[1],
            head_dim=width,
            value_dim=None if value_width == width else value_width,
            causal=getattr(module, "is_causal", True) is not False,
        ),
    )
    return result[0], None


def experts_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    chosen: torch.Tensor,
    *,
    transposed: bool,
) -> torch.Tensor:
    """Multiply each token's row with the matrices of its experts.

    Args:
        x: (tokens, inputs), or (tokens * top k, inputs) where each expert has a row of its own.
        weight: (experts, outputs, inputs), or (experts, inputs, outputs) if ``transposed``.
        bias: (experts, outputs) or None.
        chosen: (tokens, top k) indices of experts.

    Returns:
        (tokens * top k, outputs).
    """
    n_experts = weight.shape[0]
    outputs = weight.shape[2] if transposed else weight.shape[1]
    rows, inputs = chosen.numel(), x.shape[-1]
    return RECORDER.get().kernel(
        "experts",
        "product",
        [x, weight] + ([bias] if bias is not None else []),
        [(rows, outputs)],
        flop=2 * rows * inputs * outputs,
        vector_flop=rows * outputs if bias is not None else 0,
        detail=Experts(n_experts=n_experts, top_k=chosen.shape[-1]),
    )[0]


def routed_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Feed-forward of a mixture of experts, as transformers' experts interface asks.

    Args:
        module: holds ``gate_up_proj`` or ``up_proj`` and ``down_proj`` of all experts.
        hidden_states: (tokens, width).
        top_k_index, top_k_weights: (tokens, top k), experts of each token and their weights.

    Returns:
        (tokens, width).
    """
    shape = hidden_states.shape
    tokens = hidden_states.reshape(-1, shape[-1])
    transposed = getattr(module, "is_transposed", True)
    first = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    biased = getattr(module, "has_bias", False)
    gathered = RECORDER.get().scratch((top_k_index.numel(), tokens.shape[-1]), tokens)
    bias = getattr(module, f"{first}_bias", None) if biased else None
    bias_rows = (
        None if bias is None else RECORDER.get().scratch((top_k_index.numel(), bias.shape[-1]), tokens)
    )
    rows = experts_linear(
        tokens,
        getattr(module, first),
        bias,
        top_k_index,
        transposed=transposed,
    )
    rows = _gate(module, rows)
    del bias_rows  # one row for each token and expert, held while the gate is applied
    rows = experts_linear(
        rows,
        module.down_proj,
        module.down_proj_bias if biased else None,
        top_k_index,
        transposed=transposed,
    )
    if getattr(module, "has_post_expert_norm", False):
        rows = module.post_expert_norm(rows)
    weighted = RECORDER.get().scratch(tuple(rows.shape), rows)
    ordered = RECORDER.get().scratch(tuple(rows.shape), rows)
    del weighted  # both exist while the rows go back to the order of their tokens
    mixed = RECORDER.get().kernel(
        "combine", "pointwise", [rows, top_k_weights], [tuple(tokens.shape)], vector_flop=2 * rows.numel()
    )
    del (
        ordered,
        gathered,
    )  # the rows in the order of their experts, which the grouped product holds to the end
    return mixed[0].reshape(shape)


def _gate(module: Any, rows: torch.Tensor) -> torch.Tensor:
    if not getattr(module, "has_gate", True):
        return module.act_fn(rows)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(rows)  # noqa: SLF001  (part of transformers' experts interface)
    gate, up = rows.chunk(2, dim=-1)
    return up * module.act_fn(gate)


def route_then_multiply(module: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Llama 4's mixture with its chosen experts only (transformers runs all of them on every token).

    Otherwise step by step as the module: a row for each token and expert, scaled before the products.

    Args:
        module: has ``router``, ``experts`` and ``shared_expert``.
        hidden_states: (batch, length, width).

    Returns:
        (tokens, width) and the router's logits.
    """
    width, top_k = hidden_states.shape[-1], module.top_k
    tokens = hidden_states.reshape(-1, width)
    scores, logits = module.router(tokens)
    chosen = torch.empty(tokens.shape[0], top_k, dtype=torch.long, device=tokens.device)
    rows = tokens.repeat(top_k, 1)
    rows = rows * scores[:, :top_k].transpose(0, 1).reshape(-1, 1)
    routed = module.experts(rows, chosen)
    out = module.shared_expert(tokens)
    out.add_(routed.reshape(top_k, -1, width).sum(dim=0))
    return out, logits


def scaled_experts(module: Any, rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Feed-forward of Llama 4's experts on rows that carry their weights already.

    Args:
        module: holds ``gate_up_proj`` and ``down_proj`` of all experts.
        rows: (tokens * top k, width).
        chosen: (tokens, top k) indices of experts.

    Returns:
        (tokens * top k, width).
    """
    gate_up = experts_linear(rows, module.gate_up_proj, None, chosen, transposed=True)
    gate, up = gate_up.chunk(2, dim=-1)
    return experts_linear(up * module.act_fn(gate), module.down_proj, None, chosen, transposed=True)


def convolution(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **settings: Any,  # noqa: ARG001
) -> torch.Tensor:
    """Depthwise causal convolution over the sequence: (batch, channels, length) in and out.

    Its state is the last ``kernel width`` inputs of each channel.
    """
    batch, channels, length = hidden_states.shape
    kernel = weight.shape[-1]
    count = hidden_states.numel()
    return RECORDER.get().kernel(
        "convolution",
        "scan",
        [hidden_states, weight] + ([bias] if bias is not None else []),
        [(batch, channels, length)],
        flop=2 * kernel * count,
        vector_flop=((1 if bias is not None else 0) + (4 if activation is not None else 0)) * count,
        state_elements=batch * channels * kernel,
    )[0]


def convolution_step(
    hidden_states: torch.Tensor,
    state: torch.Tensor,  # noqa: ARG001  (its size is known from the weight)
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **settings: Any,  # noqa: ARG001
) -> torch.Tensor:
    """One step of ``convolution``; (batch, channels, 1) or (batch, channels)."""
    rows = hidden_states if hidden_states.dim() == 3 else hidden_states.unsqueeze(-1)
    return convolution(rows, weight, bias, activation).reshape(hidden_states.shape)


def _scan(hidden_states: torch.Tensor, width: int, inputs: list[Any]) -> torch.Tensor:
    """Record h = exp(dt A) h + dt B x, y = C h + D x over all positions (Mamba, arXiv 2312.00752, eq. 2).

    Per channel, state element and position: a multiply-add for the input, one for the output, and a
    multiplication for the decay (Mamba 2, arXiv 2405.21060, has one decay per head; its exponentials are
    counted with the step sizes).
    """
    count = hidden_states.numel()
    positions = hidden_states.shape[1] if hidden_states.dim() == 4 else hidden_states.shape[-1]
    return RECORDER.get().kernel(
        "scan",
        "scan",
        [t for t in (hidden_states, *inputs) if isinstance(t, torch.Tensor)],
        [tuple(hidden_states.shape)],
        flop=4 * count * width,
        vector_flop=count * width + SCAN_PER_CHANNEL * count,
        state_elements=count // positions * width,
    )[0]


def scan_heads(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803  (names of the replaced function)
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    *arguments: Any,  # noqa: ARG001
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    return_final_states: bool = False,
    **settings: Any,  # noqa: ARG001
) -> Any:
    """Mamba 2's scan: (batch, length, heads, width) in and out, state (batch, heads, width, state width)."""
    batch, _, heads, head_dim = hidden_states.shape
    result = _scan(hidden_states, B.shape[-1], [dt, A, B, C, D, dt_bias])
    if not return_final_states:
        return result
    return result, _state(result, batch, heads, head_dim, B.shape[-1])


def scan_heads_step(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    **settings: Any,  # noqa: ARG001
) -> torch.Tensor:
    """One position of ``scan_heads``, gated by z: (batch, heads, width) in and out."""
    rows = hidden_states.unsqueeze(1)
    once = [dt[..., 0], A[:, 0, 0]]  # the caller repeats them over the width of a head
    flat = (rows.shape[0], 1, -1)
    result = _scan(rows, state.shape[-1], [*once, B, C, D, dt_bias]).reshape(flat)
    if z is not None:
        with RECORDER.get().inside():  # prefills gate after the scan, so that it is an operator of its own
            result = result * nn.functional.silu(z.reshape(flat))
    return result.reshape(hidden_states.shape)


def scan_channels(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    return_last_state: bool = False,
    **settings: Any,  # noqa: ARG001
) -> Any:
    """Mamba's scan: (batch, channels, length) in and out, state (batch, channels, state width)."""
    batch, channels, _ = hidden_states.shape
    result = _scan(hidden_states, A.shape[-1], [dt, A, B, C, D, z, delta_bias])
    return (result, _state(result, batch, channels, A.shape[-1])) if return_last_state else result


def scan_channels_step(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    **settings: Any,  # noqa: ARG001
) -> torch.Tensor:
    """One position of ``scan_channels``: (batch, channels) in and out."""
    rows = hidden_states.unsqueeze(-1)
    return _scan(rows, state.shape[-1], [dt, A, B, C, D, z, dt_bias]).reshape(hidden_states.shape)


def _state(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return a final state, which the module holds until it returns while the cache keeps a copy."""
    held = RECORDER.get().scratch(shape, like)
    if held is not None:
        return held
    with RECORDER.get().paused():
        return torch.empty(shape, dtype=torch.float32, device="meta")


REPLACED: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": convolution,
    "causal_conv1d_update": convolution_step,
    "mamba2_chunk_scan": scan_heads,
    "mamba2_selective_state_update": scan_heads_step,
    "mamba_selective_scan": scan_channels,
    "mamba_selective_state_update": scan_channels_step,
}
"""Functions of transformers' modelling files, by name, that are recorded as kernels."""


@contextmanager
def kernels_in(model: nn.Module, recorder: Recorder | Lifetimes) -> Iterator[None]:
    """Let the modules of ``model`` record kernels while inside."""
    files = {type(module).__module__ for module in model.modules()}
    undo: list[tuple[Any, str, Any]] = []
    token = RECORDER.set(recorder)
    try:
        for file in sorted(files):
            namespace = sys.modules[file]
            for name in REPLACED.keys() & vars(namespace).keys():
                undo.append((namespace, name, getattr(namespace, name)))
                setattr(namespace, name, REPLACED[name])
        yield
    finally:
        for namespace, name, original in undo:
            setattr(namespace, name, original)
        RECORDER.reset(token)


def replace_dense_experts(model: nn.Module) -> None:
    """Give modules that run every expert on every token the forward pass of their chosen experts."""
    for module in model.modules():
        if type(module).__name__ == "Llama4TextMoe":
            module.forward = route_then_multiply.__get__(module)
            module.experts.forward = scaled_experts.__get__(module.experts)
