"""Any-Precision LLM (arXiv 2402.10517): one set of codes that can be read at several widths.

Seed: k-means with 2^s levels. Then every cluster is split in two by the exact 2-means of its values, up to M
bits. The code of b bits is the M-bit code shifted right by M - b, and each width has a table of its own:
values are never cut, only codes are. A cluster that cannot be split hands its level to both halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.half import half_value
from dse.quantize.kmeans import SortedRows, grid_levels, lloyd, look_up, nearest, stored_levels
from dse.quantize.quantizer import QUANTIZERS, Scales


def nested_tables(x: Tensor, seed_bits: int, bits: int, weights: Tensor | None = None) -> list[Tensor]:
    """Return the tables (R, 2^b), b = seed_bits ... bits, of the rows of ``x`` (R, C)."""
    rows = SortedRows(x, weights)
    levels = half_value(lloyd(x, grid_levels(x, 1 << seed_bits), weights)).double()
    edges = rows.edges(levels)
    tables = [levels]
    for _ in range(seed_bits, bits):
        levels, edges = _split(rows, levels, edges)
        tables.append(levels)
    return tables


def _split(rows: SortedRows, levels: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Split every cell where the weighted squared error of its two means is least."""
    n, columns = rows.values.shape
    positions = torch.arange(1, columns, device=levels.device).expand(n, -1)  # cut before this element
    cell = (torch.searchsorted(edges.contiguous(), positions.contiguous(), right=True) - 1).clamp_(
        max=levels.shape[1] - 1
    )
    begin, end = edges.gather(1, cell), edges.gather(1, cell + 1)

    def between(sums: Tensor, first: Tensor, last: Tensor) -> Tensor:
        return sums.gather(1, last) - sums.gather(1, first)

    gain = torch.zeros_like(rows.values[:, 1:])
    for first, last in ((begin, positions), (positions, end)):
        mass = between(rows.weight, first, last)
        gain += torch.where(
            mass > 0, between(rows.moment, first, last).square() / mass.clamp(min=1e-300), 0.0
        )
    gain = gain.masked_fill(positions == begin, -1.0)
    best = torch.full_like(levels, -1.0).scatter_reduce_(1, cell, gain, "amax")
    is_best = (gain == best.gather(1, cell)) & (gain >= 0)
    cut = edges[:, :-1].clone()  # an empty first half where nothing can be cut
    cut.scatter_reduce_(1, cell, torch.where(is_best, positions, 0), "amax")
    both = torch.stack([edges[:, :-1], cut], -1).flatten(1)
    new_edges = torch.cat([both, edges[:, -1:]], 1)
    parents = levels.repeat_interleave(2, dim=1)
    children = half_value(rows.means(new_edges, parents)).double()
    return children, _between_siblings(rows, children, new_edges)


def _between_siblings(rows: SortedRows, children: Tensor, edges: Tensor) -> Tensor:
    """Move each cut to the middle of the two stored levels, which is where codes are told apart later."""
    middle = (children[:, ::2] + children[:, 1::2]) / 2
    cut = torch.searchsorted(rows.values, middle)
    moved = edges.clone()
    moved[:, 1::2] = torch.minimum(torch.maximum(cut, edges[:, :-1:2]), edges[:, 2::2])
    return moved


def nested_codes(x: Tensor, tables: list[Tensor]) -> Tensor:
    """Return the codes (R, C) int64 of the widest table: nearest seed level, then nearer halves."""
    codes = nearest(x, tables[0])
    for table in tables[1:]:
        low, high = look_up(2 * codes, table), look_up(2 * codes + 1, table)
        codes = 2 * codes + (x > (low + high) / 2).long()
    return codes


class NestedQuantizer(GroupScaled):
    """``Scales.scale`` holds all tables side by side, narrowest first."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the tables."""
        clean = groups.nan_to_num(0.0, 0.0, 0.0)
        tables = nested_tables(clean, fmt.seed_bits or fmt.bits, fmt.bits)
        return Scales(stored_levels(torch.cat(tables, 1), groups))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place to the levels of the width that is read."""
        groups.copy_(self.decode(self.encode(groups, scales, fmt), scales, fmt))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the codes of all stored bits."""
        return nested_codes(groups, _tables(scales.scale, fmt)).to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the levels at ``fmt.read_bits``."""
        read = fmt.read_bits or fmt.bits
        table = _tables(scales.scale, fmt)[read - (fmt.seed_bits or fmt.bits)]
        return look_up(codes.long() >> (fmt.bits - read), table)


def _tables(scale: Tensor, fmt: NumberFormat) -> list[Tensor]:
    widths = [1 << bits for bits in range(fmt.seed_bits or fmt.bits, fmt.bits + 1)]
    return list(scale.split(widths, dim=1))


QUANTIZERS.register("nested")(NestedQuantizer())
