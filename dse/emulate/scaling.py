"""Scales of input channels that fold into what comes before: AWQ's search and SmoothQuant's formula.

AWQ (arXiv 2306.00978): s = mean|x|^alpha over a grid of alpha, the one with the least squared error of the
output of what the site belongs to (attention, feed-forward, or the linear itself) with Q(W diag s) diag s^-1
in its linears. alpha = 0 is in the grid, so that on the tokens of the search no block gets worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.anatomy import BlockParts, anatomy_of
from dse.emulate.calibrate import InputStatistics, walk_blocks
from dse.emulate.model import EmulatedModel
from dse.emulate.transforms import awq_scale, scale_site, sites, smooth_scale
from dse.formats.precision import NumberFormat
from dse.quantize.fake import fake_quantize

AWQ_GRID = tuple(i / 20 for i in range(20))


SiteScale = tuple[Any, tuple[nn.Linear, ...], Tensor]
"""(what writes the channels, linears that read them, scale (channels,))."""


@dataclass(frozen=True)
class Call:
    """What a module was called with, cut to the first sequence."""

    module: nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]

    def output(self) -> Tensor:
        """Call the module again, as it is now."""
        found = self.module(*self.args, **self.options)
        return found[0] if isinstance(found, tuple) else found


def scale_channels(
    model: EmulatedModel,
    fmt_of: Mapping[str, NumberFormat],
    paths: Sequence[Sequence[str]],
    ids: Tensor,
    *,
    smooth_alpha: float | None = None,
) -> None:
    """Fold scales into every block, as seen in the full-precision model.

    Args:
        model: changed in place.
        fmt_of: weight formats by path; a site with an unquantized linear is left alone.
        paths: of the quantized linears of each block.
        ids: (n_sequences, length) calibration tokens; AWQ's outputs are compared on the first sequence.
        smooth_alpha: of SmoothQuant; None searches AWQ's scales.
    """
    blocks = anatomy_of(model).blocks
    chosen: list[SiteScale] = []

    def look(index: int, statistics: dict[str, InputStatistics]) -> dict[str, Tensor]:
        chosen.extend(site_scales(model, blocks[index], fmt_of, statistics, calls, smooth_alpha))
        return {}

    owners = [owner for block in blocks for owner in owners_of(block)]
    with first_calls(owners if smooth_alpha is None else []) as calls:
        walk_blocks(model, paths, ids, look)
    for source, linears, scale in chosen:
        scale_site(source, linears, scale)
    kind = "awq" if smooth_alpha is None else ["smooth", smooth_alpha]
    model.became([kind, [fmt.name for fmt in fmt_of.values()]])


def site_scales(
    model: EmulatedModel,
    block: BlockParts,
    fmt_of: Mapping[str, NumberFormat],
    statistics: Mapping[str, InputStatistics],
    calls: Mapping[int, Call],
    smooth_alpha: float | None,
) -> list[SiteScale]:
    """Return the scales of one block.

    Args:
        model: the model; block: one of its blocks, unscaled; fmt_of, smooth_alpha: see ``scale_channels``.
        statistics: of its linears' inputs by path; calls: of ``owners_of(block)``, for AWQ.
    """
    path_of = {id(model.linear(path)[0]): path for path in statistics}
    found: list[SiteScale] = []
    for name, (source, linears) in sites(block, with_down=smooth_alpha is None).items():
        on = [path_of.get(id(linear)) for linear in linears]
        if None in on:
            continue
        entry = statistics[str(on[0])]
        if smooth_alpha is not None:
            scale = smooth_scale(entry.absmax, linears, smooth_alpha)
        else:
            fmts = [fmt_of[str(path)] for path in on]
            scale = best_awq_scale(calls[id(_owner(block, name))], linears, fmts, entry.mean_abs)
        found.append((source, linears, scale))
    return found


def owners_of(block: BlockParts) -> list[nn.Module]:
    """Return the modules of a block whose outputs AWQ compares."""
    return [_owner(block, name) for name in sites(block, with_down=True)]


def best_awq_scale(
    call: Call, linears: Sequence[nn.Linear], fmts: Sequence[NumberFormat], mean_abs: Tensor
) -> Tensor:
    """Return the scale (C,) of AWQ's grid with the least squared error of what ``call`` gives.

    Args:
        call: a module that contains the linears, with inputs.
        linears: that read the scaled channels; fmts: their formats.
        mean_abs: (C,) mean magnitudes of the channels.
    """
    originals = [linear.weight.data for linear in linears]
    exact = call.output().float()
    best, chosen = None, torch.ones_like(mean_abs, dtype=torch.float64)
    try:
        for alpha in AWQ_GRID:
            scale = awq_scale(mean_abs, alpha)
            factor = scale.float()
            for linear, original, fmt in zip(linears, originals, fmts, strict=True):
                rounded = fake_quantize(original.float() * factor, fmt) / factor
                linear.weight.data = rounded.to(original.dtype)
            error = float((call.output().float() - exact).square().sum(dtype=torch.float64))
            if best is None or error < best:
                best, chosen = error, scale
    finally:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = original
    return chosen


@contextmanager
def first_calls(modules: Sequence[nn.Module]) -> Iterator[dict[int, Call]]:
    """Collect the first call of each module inside the context, by ``id``."""
    found: dict[int, Call] = {}

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if id(module) not in found:
            batch = next(value for value in (*args, *options.values()) if isinstance(value, Tensor)).shape[0]
            cut = partial(_first, batch)
            cut_options = {key: cut(value) for key, value in options.items()}
            found[id(module)] = Call(module, tuple(cut(value) for value in args), cut_options)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _first(batch: int, value: Any) -> Any:
    """Return the first sequence of everything that has one entry per sequence."""
    if isinstance(value, tuple):
        return tuple(_first(batch, part) for part in value)
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == batch:
        return value[:1]
    return value


def _owner(block: BlockParts, site: str) -> nn.Module:
    """Return the module at whose output the error of a site is measured."""
    owners: dict[str, nn.Module] = {
        "qkv": block.attention,
        "gate_up": block.ffn,
        "down": block.down,
        "o": block.o,
    }
    return owners[site]
