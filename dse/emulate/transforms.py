"""Changes of basis that leave the full-precision model as it is, and make it easier to quantize.

All of them edit the weights of a loaded model, in float64, and are exact there. What no weight can absorb
runs online: a product before a linear (a hook, ahead of activation rounding), or on queries and keys after
the rotary embedding. Row vectors: an activation x becomes x M, a weight W (outputs, inputs) that reads it
becomes W M, and one that writes it M^T W, for orthogonal M.

Sources: QuaRot, arXiv 2404.00456 (without its subtraction of the embedding's mean, which is exact only for
layer norms); SmoothQuant, arXiv 2211.10438; AWQ, arXiv 2306.00978; ResQ, arXiv 2412.14363 (PCA bases).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dse.content import content_hash
from dse.emulate.anatomy import Anatomy, BlockParts, anatomy_of
from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.quantize.rotations import (
    Rotation,
    cosine,
    hadamard_rotation,
    permutation_matrix,
    random_orthogonal,
    randomised,
)

ROWS = 8192


def fuse_norms(model: EmulatedModel) -> None:
    """Fold the gains of all norms into the linears behind them; a tied head gets its own weights."""
    anatomy = anatomy_of(model)
    untie(anatomy, model)
    for block in anatomy.blocks:
        fuse_block(block)
    fuse_head(anatomy)
    model.became("fuse_norms")


def fuse_block(block: BlockParts) -> None:
    """Fold the gains of a block's norms."""
    _fold_gain(block.attention_norm, (block.q, block.k, block.v))
    _fold_gain(block.ffn_norm, (block.gate, block.up))


def fuse_head(anatomy: Anatomy) -> None:
    """Fold the gain of the last norm."""
    _fold_gain(anatomy.final_norm, (anatomy.head,))


def untie(anatomy: Anatomy, model: EmulatedModel) -> None:
    """Give the output head its own copy of the embedding."""
    if anatomy.head.weight is anatomy.embedding.weight:
        anatomy.head.weight = nn.Parameter(anatomy.embedding.weight.detach().clone(), requires_grad=False)
        model.module.config.tie_word_embeddings = False


def rotate_residual(model: EmulatedModel, basis: Tensor) -> None:
    """Turn the residual stream by an orthogonal ``basis`` (width, width); gains must be fused before.

    Raises:
        ConfigError: norms with gains, which do not commute with a rotation.
    """
    anatomy = anatomy_of(model)
    for norm in _norms(anatomy):
        if not bool((norm.weight == 1).all()):
            raise ConfigError("norm gains must be fused before the residual stream is rotated")
    rotate_embedding(anatomy, basis)
    for block in anatomy.blocks:
        rotate_block(block, basis)
    rotate_head(anatomy, basis)
    model.became(["rotate_residual", content_hash(basis.cpu().numpy().round(9).tobytes().hex())])


def rotate_embedding(anatomy: Anatomy, basis: Tensor) -> None:
    """Turn what the embedding writes."""
    _turn_rows(anatomy.embedding, basis)


def rotate_block(block: BlockParts, basis: Tensor) -> None:
    """Turn what a block reads from the residual stream, and what it writes there."""
    for linear in (block.q, block.k, block.v, block.gate, block.up):
        _turn_rows(linear, basis)
    for linear in (block.o, block.down):
        here = basis.to(linear.weight.device)
        _set(linear, here.t() @ linear.weight.double())
        if linear.bias is not None:
            linear.bias.data = (linear.bias.double() @ here).to(linear.bias.dtype)


def rotate_head(anatomy: Anatomy, basis: Tensor) -> None:
    """Turn what the output head reads."""
    _turn_rows(anatomy.head, basis)


def rotate_ffn(model: EmulatedModel) -> None:
    """Turn the input of every down projection by a Hadamard matrix, online."""
    for block in anatomy_of(model).blocks:
        turn_ffn(block)
    model.became("rotate_ffn")


def turn_ffn(block: BlockParts) -> RemovableHandle:
    """Do it for one block; the handle takes the online part away."""
    rotation = hadamard_rotation(block.down.in_features)
    _set(block.down, rotation.apply_exact(block.down.weight.double()))
    return block.down.register_forward_pre_hook(partial(_turn_input, rotation))


def rotate_values(model: EmulatedModel, *, across_heads: bool = True) -> None:
    """Turn values within each head, offline, and the attention's output across heads, online.

    Across heads a Hadamard matrix is used where one exists, else the cosine transform of that order (9
    heads).
    """
    anatomy = anatomy_of(model)
    for block in anatomy.blocks:
        turn_within_heads(block, anatomy)
        if across_heads:
            turn_across_heads(block, anatomy)
    model.became(["rotate_values", across_heads])


def turn_within_heads(block: BlockParts, anatomy: Anatomy) -> None:
    """Turn one block's values within each head."""
    within = hadamard_rotation(anatomy.head_dim).matrix().to(block.v.weight.device)
    heads = block.v.weight.double().unflatten(0, (anatomy.n_kv_heads, anatomy.head_dim))
    _set(block.v, (within.t() @ heads).flatten(0, 1))
    if block.v.bias is not None:
        bias = block.v.bias.double().view(anatomy.n_kv_heads, -1) @ within
        block.v.bias.data = bias.flatten().to(block.v.bias.dtype)
    columns = block.o.weight.double().unflatten(1, (anatomy.n_heads, anatomy.head_dim)) @ within
    _set(block.o, columns.flatten(1))


def turn_across_heads(block: BlockParts, anatomy: Anatomy) -> RemovableHandle:
    """Turn one block's attention output across heads; the handle takes the online part away."""
    identity = torch.eye(anatomy.head_dim, dtype=torch.float64, device="cpu")
    across = Rotation(_across(anatomy.n_heads), identity)
    _set(block.o, across.apply_exact(block.o.weight.double()))
    return block.o.register_forward_pre_hook(partial(_turn_input, across))


def rotate_queries_keys(model: EmulatedModel) -> None:
    """Turn queries and keys after the rotary embedding, online: their products stay the same."""
    anatomy = anatomy_of(model)
    for block in anatomy.blocks:
        turn_queries_keys(block, anatomy)
    model.became("rotate_queries_keys")


def turn_queries_keys(block: BlockParts, anatomy: Anatomy) -> None:
    """Do it for one block."""
    block.attention.dse_rotation = hadamard_rotation(anatomy.head_dim)


def quarot(model: EmulatedModel, seed: int = 0, *, online: bool = True) -> None:
    """Apply QuaRot: fused norms, a randomised residual rotation and, online, all other rotations."""
    fuse_norms(model)
    rotate_residual(model, residual_rotation(anatomy_of(model).width, seed))
    if online:
        rotate_ffn(model)
        rotate_values(model)
        rotate_queries_keys(model)


def residual_rotation(width: int, seed: int) -> Tensor:
    """Return a randomised Hadamard matrix, or a random orthogonal one where none of that order is known."""
    try:
        return randomised(hadamard_rotation(width), seed)
    except ConfigError:
        return random_orthogonal(width, seed)


def permute_residual(model: EmulatedModel, order: Tensor) -> None:
    """Put the channels of the residual stream into ``order`` (width,); norm gains follow."""
    anatomy = anatomy_of(model)
    gains = [norm.weight.detach().clone() for norm in _norms(anatomy)]
    for norm in _norms(anatomy):
        norm.weight.data.fill_(1.0)
    untie(anatomy, model)
    rotate_residual(model, permutation_matrix(order))
    for norm, gain in zip(_norms(anatomy), gains, strict=True):
        norm.weight.data = gain[order].contiguous()


def permute_ffn(model: EmulatedModel, orders: list[Tensor]) -> None:
    """Put the neurons of each block's feed-forward part into an order (neurons,)."""
    for block, order in zip(anatomy_of(model).blocks, orders, strict=True):
        for linear in (block.gate, block.up):
            linear.weight.data = linear.weight.data[order].contiguous()
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[order].contiguous()
        block.down.weight.data = block.down.weight.data[:, order].contiguous()
    model.became(["permute_ffn", [order.tolist() for order in orders]])


def scale_site(norm_or_linear: Any, linears: tuple[nn.Linear, ...], scale: Tensor) -> None:
    """Divide what a norm (or a linear) gives by ``scale`` (channels,), multiply the columns after it."""
    source = norm_or_linear
    factor = scale.double()
    if isinstance(source, nn.Linear):
        _set(source, source.weight.double() / factor[:, None])
        if source.bias is not None:
            source.bias.data = (source.bias.double() / factor).to(source.bias.dtype)
    else:
        _set(source, source.weight.double() / factor)
    for linear in linears:
        _set(linear, linear.weight.double() * factor)


def sites(block: BlockParts, *, with_down: bool) -> dict[str, tuple[Any, tuple[nn.Linear, ...]]]:
    """Return {name: (what writes the channels, linears that read them)}: where a scale folds away."""
    found: dict[str, tuple[Any, tuple[nn.Linear, ...]]] = {
        "qkv": (block.attention_norm, (block.q, block.k, block.v)),
        "gate_up": (block.ffn_norm, (block.gate, block.up)),
    }
    if with_down:
        found["down"] = (block.up, (block.down,))
    if block.v.out_features == block.o.in_features:  # not with grouped queries
        found["o"] = (block.v, (block.o,))
    return found


def smooth_scale(absmax: Tensor, linears: tuple[nn.Linear, ...], alpha: float) -> Tensor:
    """Return SmoothQuant's s_j = max|x_j|^alpha / max_i|W_ij|^(1 - alpha), (channels,); floors 1e-5."""
    weight = torch.stack([linear.weight.double().abs().amax(0) for linear in linears]).amax(0)
    top = absmax.double().clamp(min=1e-5) ** alpha
    return (top / weight.clamp(min=1e-5) ** (1 - alpha)).clamp(min=1e-5)


def awq_scale(mean_abs: Tensor, alpha: float) -> Tensor:
    """Return AWQ's s = mean|x_j|^alpha / sqrt(max s min s), (channels,); floor 1e-4."""
    s = (mean_abs.double() ** alpha).clamp(min=1e-4)
    return s / (s.max() * s.min()).sqrt()


def _across(n_heads: int) -> Tensor:
    try:
        return hadamard_rotation(n_heads).matrix()
    except ConfigError:
        return cosine(n_heads)


def _norms(anatomy: Anatomy) -> list[Any]:
    inner = [norm for block in anatomy.blocks for norm in (block.attention_norm, block.ffn_norm)]
    return [*inner, anatomy.final_norm]


def _fold_gain(norm: Any, linears: tuple[nn.Linear, ...]) -> None:
    gain = norm.weight.double()
    for linear in linears:
        _set_by_rows(linear, lambda rows: rows * gain)
    norm.weight.data = torch.ones_like(norm.weight)


def _turn_rows(module: Any, basis: Tensor) -> None:
    here = basis.to(module.weight.device)
    _set_by_rows(module, lambda rows: rows @ here)


def _set_by_rows(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Change a weight in float64, some rows at a time: a vocabulary of 128256 x 4096 would be 4 GB."""
    weight = module.weight
    _set(module, torch.cat([change(rows.double()).to(weight.dtype) for rows in weight.split(ROWS)]))


def _set(module: Any, weight: Tensor) -> None:
    module.weight.data = weight.to(module.weight.dtype).contiguous()


def _turn_input(rotation: Rotation, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rotation.apply(args[0]), *args[1:])
