"""Smallest and largest elements of groups, at the pace of memory also when other programs use the cores."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 32767
"""Elements worked on at a time. They stay in a core's own cache through all passes, and they are fewer than
torch's threshold for using several threads, whose wake-ups cost more than these passes take."""


def low_high_of(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of each row, (n_groups, 1) float32 each; NaN where it has one."""
    if groups.shape[0] == 1 and groups.shape[1] > CHUNK:
        parts = groups.view(-1).split(CHUNK)
        low = torch.stack([part.amin() for part in parts]).amin()
        high = torch.stack([part.amax() for part in parts]).amax()
        return low.float().view(1, 1), high.float().view(1, 1)
    return groups.amin(-1, keepdim=True).float(), groups.amax(-1, keepdim=True).float()


def absmax_of(groups: Tensor) -> Tensor:
    """Return the largest magnitude of each row, (n_groups, 1) float32; NaN where the row has one."""
    low, high = low_high_of(groups)
    return torch.maximum(high, low.neg_())
