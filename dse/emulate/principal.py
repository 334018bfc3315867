"""A residual stream in the basis of its principal components (ResQ, arXiv 2412.14363).

Pooled second moments of what the attention and feed-forward parts of all blocks read have eigenvectors P, by
rising eigenvalue. The basis is P blockdiag(R_low, R_high), R random orthogonal: the last ``share_frac`` of
the channels carry most of the energy, evenly, and are the ones to keep in higher precision; inside each part
a rotation spreads what is left of outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dse.emulate.anatomy import anatomy_of
from dse.emulate.calibrate import InputStatistics, walk_blocks
from dse.emulate.model import EmulatedModel
from dse.emulate.transforms import fuse_norms, rotate_residual
from dse.quantize.rotations import pca_basis, random_orthogonal

HIGH_FRAC = 1 / 8


def rotate_to_principal(
    model: EmulatedModel,
    paths: Sequence[Sequence[str]],
    ids: Tensor,
    *,
    seed: int = 0,
    share_frac: float = HIGH_FRAC,
) -> None:
    """Fuse the norms and turn the residual stream into the basis; exact in float64.

    Args:
        model: changed in place.
        paths: linears of each block that are looked at; those that read the residual stream count, each
            tensor once.
        ids: (n_sequences, length) calibration tokens.
        seed: of the rotations inside the two parts; share_frac: of the channels in the high part.
    """
    fuse_norms(model)
    anatomy = anatomy_of(model)
    total = torch.zeros(anatomy.width, anatomy.width, dtype=torch.float64, device=model.device)

    def look(_: int, statistics: dict[str, InputStatistics]) -> dict[str, Tensor]:
        add_residual_moments(total, model, statistics)
        return {}

    walk_blocks(model, paths, ids, look)
    rotate_residual(model, principal_basis(total.cpu(), seed, share_frac))


def add_residual_moments(
    total: Tensor, model: EmulatedModel, statistics: Mapping[str, InputStatistics]
) -> None:
    """Add to ``total`` (width, width) the mean moments of what a block reads of the residual stream."""
    readers = {id(linear) for block in anatomy_of(model).blocks for linear in (block.q, block.gate)}
    for path, entry in statistics.items():
        if id(model.linear(path)[0]) in readers:
            total.add_(entry.moments.double() / max(entry.n_tokens, 1))


def principal_basis(moments: Tensor, seed: int, share_frac: float) -> Tensor:
    """Return P blockdiag(R_low, R_high) (n, n) float64 for second moments (n, n), on the processor."""
    n = len(moments)
    high = max(1, round(share_frac * n))
    inner = torch.block_diag(random_orthogonal(n - high, seed), random_orthogonal(high, seed + 1))
    return pca_basis(moments) @ inner
