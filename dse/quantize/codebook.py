"""Fixed codebooks scaled by the absolute maximum of a group: NF4, and BitMoD's four data types.

S = absmax / max |level|, elements are the nearest level times S. Where there are several tables (BitMoD,
arXiv 2411.11745) a group takes the one with the least squared error, the first on ties. Distances to two
levels that are equal take the lower level.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dse.formats.codebooks import codebooks
from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.extremes import absmax_of
from dse.quantize.half import half_scale
from dse.quantize.quantizer import QUANTIZERS, Scales


@lru_cache(maxsize=8)
def _tables(element: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return (levels, midpoints) of each table, float32."""
    levels = [torch.tensor(table, dtype=torch.float32) for table in codebooks(element)]
    return tuple((table, (table[1:] + table[:-1]) / 2) for table in levels)


class CodebookQuantizer(GroupScaled):
    """Nearest level of a fixed table; ``Scales.zero`` is the number of the table that a group uses."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the float16 scales, and the table of each group where there are several."""
        absmax = absmax_of(groups)
        tables = _tables(fmt.element)
        if len(tables) == 1:
            return Scales(half_scale(absmax / float(tables[0][0].abs().max())))
        best, scale, choice = None, absmax, torch.zeros_like(absmax)
        for number, (levels, _) in enumerate(tables):
            candidate = half_scale(absmax / float(levels.abs().max()))
            error = (_round(groups, candidate, tables[number]) - groups).square_().sum(-1, keepdim=True)
            if best is None:
                best, scale = error, candidate
                continue
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, candidate, scale)
            choice = choice.masked_fill(better, float(number))
        return Scales(scale, choice)

    def refit_choice(self, groups: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
        """Return the number of the best table of each group for given scales (n_groups, 1)."""
        errors = [
            (_round(groups, scale, table) - groups).square_().sum(-1, keepdim=True)
            for table in _tables(fmt.element)
        ]
        return torch.stack(errors).argmin(0).float()

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place to the nearest level times S."""
        groups.copy_(self.decode(self.encode(groups, scales, fmt), scales, fmt))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the numbers of the nearest levels."""
        tables = _tables(fmt.element)
        scaled = groups / scales.scale
        codes = torch.bucketize(scaled, tables[0][1], out_int32=True)
        if scales.zero is not None:
            for number in range(1, len(tables)):
                chosen = (scales.zero == number).expand_as(groups)
                codes = torch.where(chosen, torch.bucketize(scaled, tables[number][1], out_int32=True), codes)
        return codes.to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the levels times S."""
        levels = torch.stack([table for table, _ in _tables(fmt.element)])
        index = codes.long()
        if scales.zero is not None:
            index = index + scales.zero.long() * levels.shape[1]
        return levels.view(-1)[index].mul_(scales.scale)


def _round(groups: Tensor, scale: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    levels, midpoints = table
    return levels[torch.bucketize(groups / scale, midpoints)].mul_(scale)


QUANTIZERS.register("codebook")(CodebookQuantizer())
