"""Fixed codebooks scaled by the absolute maximum of a group: NF4, and BitMoD's four data types.

S = absmax / max |level|, elements are the nearest level times S. Where there are several tables (BitMoD,
arXiv 2411.11745) a group takes the one with the least squared error, the first on ties. Distances to two
levels that are equal take the lower level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dse.formats.codebooks import codebooks
from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.cells import cells, look_up, midpoints
from dse.quantize.extremes import absmax_of
from dse.quantize.half import half_scale
from dse.quantize.quantizer import QUANTIZERS, Scales


@dataclass(frozen=True)
class _Tables:
    """The tables of an element: what they share, and where each one's special level takes elements from it.

    Attributes:
        levels: (T, K) each in order; top: largest magnitude of each.
        shared: (K or K - 1,) levels of all tables in order; midpoints: between them.
        special: of each table (its number in it, elements above ``low`` and up to ``high`` take it, its
            value), None for a single table.
    """

    levels: Tensor
    top: tuple[float, ...]
    shared: Tensor
    midpoints: tuple[float, ...]
    special: tuple[tuple[int, float, float, float], ...] | None


@lru_cache(maxsize=16)
def _tables(element: str, device: torch.device) -> _Tables:
    tables = codebooks(element)
    levels = torch.tensor(tables, dtype=torch.float32, device=device)
    top = tuple(float(table.abs().max()) for table in levels)
    if len(tables) == 1:
        return _Tables(levels, top, levels[0], midpoints(tables[0]), None)
    common = set.intersection(*(set(table) for table in tables))
    shared = torch.tensor(sorted(common), dtype=torch.float32, device=device)
    special = []
    for table in tables:
        number = next(i for i, value in enumerate(table) if value not in common)
        edges = (float("-inf"), *midpoints(table), float("inf"))
        special.append((number, edges[number], edges[number + 1], table[number]))
    return _Tables(levels, top, shared, midpoints(sorted(common)), tuple(special))


class CodebookQuantizer(GroupScaled):
    """Nearest level of a fixed table; ``Scales.zero`` is the number of the table that a group uses."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the float16 scales, and the table of each group where there are several."""
        absmax = absmax_of(groups)
        tables = _tables(fmt.element, groups.device)
        if tables.special is None:
            return Scales(half_scale(absmax / tables.top[0]))
        scales = {top: half_scale(absmax / top) for top in tables.top}
        errors = _errors(groups, [scales[top] for top in tables.top], tables)
        best, scale, choice = errors[0], scales[tables.top[0]], torch.zeros_like(absmax)
        for number in range(1, len(errors)):
            better = errors[number] < best
            best = torch.where(better, errors[number], best)
            scale = torch.where(better, scales[tables.top[number]], scale)
            choice = choice.masked_fill(better, float(number))
        return Scales(scale, choice)

    def refit_choice(self, groups: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
        """Return the number of the best table of each group for given scales (n_groups, 1)."""
        tables = _tables(fmt.element, groups.device)
        return torch.stack(_errors(groups, [scale] * len(tables.top), tables)).argmin(0).float()

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place to the nearest level times S."""
        groups.copy_(self.decode(self.encode(groups, scales, fmt), scales, fmt))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the numbers of the nearest levels."""
        tables = _tables(fmt.element, groups.device)
        scaled = groups / scales.scale
        codes = cells(scaled, tables.midpoints).to(torch.int16)
        if tables.special is None or scales.zero is None:
            return codes
        chosen = scales.zero.long().squeeze(-1)
        number, low, high, _ = (
            torch.tensor(part, device=groups.device)[chosen].unsqueeze(-1)
            for part in zip(*tables.special, strict=True)
        )
        above = scaled > high
        codes += above  # levels behind the special one have a number more than in the shared table
        return torch.where((scaled > low) & ~above, number.to(torch.int16), codes)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the levels times S."""
        levels = _tables(fmt.element, codes.device).levels
        index = codes.int()
        if scales.zero is not None:
            index += scales.zero.int() * levels.shape[1]
        return look_up(levels.view(-1), index).mul_(scales.scale)


def _errors(groups: Tensor, scales: Sequence[Tensor], tables: _Tables) -> list[Tensor]:
    """Return the squared errors (n_groups, 1) of every table with its scale.

    Tables of one scale differ in one level only: an element's error is the lesser of that to the nearest
    shared level and that to the special one.
    """
    assert tables.special is not None
    shared: dict[int, Tensor] = {}
    errors = []
    for scale, (_, _, _, value) in zip(scales, tables.special, strict=True):
        if id(scale) not in shared:
            nearest = look_up(tables.shared, cells(groups / scale, tables.midpoints))
            shared[id(scale)] = nearest.mul_(scale).sub_(groups).square_()
        to_special = (groups - value * scale).square_()
        errors.append(torch.minimum(shared[id(scale)], to_special).sum(-1, keepdim=True))
    return errors


QUANTIZERS.register("codebook")(CodebookQuantizer())
