"""What is stored beside a low-bit matrix: kept columns, single elements, or a low-rank residual.

Every store has a size formula (METHODS section 0) that equals the bytes of its arrays. Values are float16.

- dense columns: k columns, k int16 numbers.
- CSR: a float16 and an int16 column per element, rows + 1 int32 pointers.
- bitmap: a float16 per element and one bit per position of the matrix.
- low rank: A (R, r) and B (r, C), the best rank-r approximation of the residual (Eckart-Young).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.formats.storage import stored_bits
from dse.quantize.fit import fitted_fake_quantize
from dse.quantize.half import half_value

VALUE_BITS, INDEX_BITS, POINTER_BITS = 16, 16, 32
Store = Literal["csr", "bitmap"]


@dataclass(frozen=True)
class StoredResidual:
    """A matrix as low-bit values plus what is stored beside them.

    Attributes:
        weight: (R, C) float32, both together.
        extra_bits: of what is stored beside; ``bits``: of everything.
        arrays: what is stored beside, as it lies in memory.
    """

    weight: Tensor
    extra_bits: int
    bits: int
    arrays: tuple[np.ndarray, ...]


def sparse_bits(store: Store, rows: int, columns: int, n_elements: int) -> int:
    """Return the bits of ``n_elements`` single elements of a (rows, columns) matrix.

    Raises:
        ConfigError: unknown store.
    """
    if store == "csr":
        return n_elements * (VALUE_BITS + INDEX_BITS) + (rows + 1) * POINTER_BITS
    if store == "bitmap":
        return n_elements * VALUE_BITS + -(-rows * columns // 8) * 8
    raise ConfigError(f"unknown outlier store '{store}'", value=store, allowed=("csr", "bitmap"))


def top_elements(score: Tensor, share_frac: float) -> Tensor:
    """Return the mask (R, C) of the ``share_frac`` of elements with the largest scores; an exact count."""
    count = round(share_frac * score.numel())
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view(score.shape)


def with_elements(
    weight: Tensor, fmt: NumberFormat, mask: Tensor, store: Store = "csr", fit: str = "minmax"
) -> StoredResidual:
    """Return a weight (R, C) whose masked elements are kept; the rest is quantized without them.

    The ranges of the low-bit matrix do not see kept elements: they are 0 there.
    """
    rows, columns = weight.shape
    source = weight.float()
    dense = fitted_fake_quantize(source.masked_fill(mask, 0.0), fmt, fit)
    values = half_value(source[mask])
    merged = dense.clone()
    merged[mask] = values
    extra = sparse_bits(store, rows, columns, int(mask.sum()))
    if store == "csr":
        pointers = np.concatenate([[0], np.cumsum(mask.sum(1).cpu().numpy())]).astype(np.int32)
        beside: tuple[np.ndarray, ...] = (mask.nonzero()[:, 1].cpu().numpy().astype(np.uint16), pointers)
    else:
        beside = (np.packbits(mask.flatten().cpu().numpy()),)
    arrays = (values.half().cpu().numpy(), *beside)
    return StoredResidual(merged, extra, stored_bits(fmt, rows, columns) + extra, arrays)


def with_columns(weight: Tensor, fmt: NumberFormat, keep: list[int], fit: str = "minmax") -> StoredResidual:
    """Return a weight (R, C) with whole columns kept; the others are packed together and quantized."""
    rows, columns = weight.shape
    kept = torch.tensor(sorted(set(keep)), dtype=torch.long, device=weight.device)
    is_kept = torch.zeros(columns, dtype=torch.bool, device=weight.device)
    is_kept[kept] = True
    out = weight.float().clone()
    values = half_value(out[:, is_kept])
    out[:, is_kept] = values
    rest = columns - len(kept)
    bits = 0
    if rest:
        out[:, ~is_kept] = fitted_fake_quantize(out[:, ~is_kept], fmt, fit)
        bits = stored_bits(fmt, rows, rest)
    extra = len(kept) * (rows * VALUE_BITS + INDEX_BITS)
    arrays = (values.half().cpu().numpy(), kept.cpu().numpy().astype(np.uint16))
    return StoredResidual(out, extra, bits + extra, arrays)


def with_low_rank(weight: Tensor, fmt: NumberFormat, rank: int, fit: str = "minmax") -> StoredResidual:
    """Return a weight (R, C) as its rounded values plus the best rank-``rank`` part of what rounding lost."""
    rows, columns = weight.shape
    source = weight.float()
    rounded = fitted_fake_quantize(source, fmt, fit)
    left, right = low_rank_factors(source - rounded, rank)
    extra = rank * (rows + columns) * VALUE_BITS
    arrays = (left.half().cpu().numpy(), right.half().cpu().numpy())
    return StoredResidual(rounded + left @ right, extra, stored_bits(fmt, rows, columns) + extra, arrays)


def low_rank_factors(residual: Tensor, rank: int, hessian: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (A (R, r), B (r, C)) of the truncated singular value decomposition, as float16 holds them.

    Args:
        residual: (R, C); rank: r.
        hessian: (C, C) positive definite; with it the product is the best for the error of the outputs,
            tr(D H D^T) with D = residual - A B: the decomposition of residual L, H = L L^T, and B L^-1
            (Eckart-Young in the norm of H; the closed form behind LQER and QERA, arXiv 2410.06040).
    """
    source = residual.double()
    lower = None if hessian is None else torch.linalg.cholesky(hessian.double())
    u, s, v = torch.linalg.svd(source if lower is None else source @ lower, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * v[:rank]
    if lower is not None:
        right = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    return half_value(left.float()), half_value(right.float())
