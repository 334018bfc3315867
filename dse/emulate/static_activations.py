"""Static activation scales: one range per linear, measured on calibration tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel, PathFormats, on_columns
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.quantizer import QUANTIZERS, Scales

Ranges = Mapping[str, tuple[float, float]]


def measured_ranges(
    model: EmulatedModel, paths: tuple[str, ...], ids: Tensor
) -> dict[str, tuple[float, float]]:
    """Return (least, largest) input of each linear over tokens ``ids`` (n_sequences, length)."""
    with seen_ranges(model, paths) as ranges:
        for part in ids.split(1):
            model.logits(part)
    return ranges


@contextmanager
def seen_ranges(model: EmulatedModel, paths: Sequence[str]) -> Iterator[dict[str, tuple[float, float]]]:
    """Collect (least, largest) input of each linear inside the context.

    Columns that stay exact beside the format do not count.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def look(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        columns = model.rounded_columns(path)
        x = args[0] if columns is None else args[0][..., columns]
        low, high = float(x.min()), float(x.max())
        known = ranges.get(path, (low, high))
        ranges[path] = (min(low, known[0]), max(high, known[1]))

    hooks = [model.linear(path)[0].register_forward_pre_hook(partial(look, path)) for path in paths]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def static_activations(model: EmulatedModel, formats: PathFormats, ranges: Ranges) -> Iterator[None]:
    """Round the inputs of linears with fixed scales inside the context; what lies outside saturates.

    Raises:
        ConfigError: a format with more than one scale per tensor, or a linear without a range.
    """
    with ExitStack() as undo:
        for path, fmt in formats:
            if fmt.granularity != "tensor":
                raise ConfigError(f"static scales are per tensor, but '{fmt.name}' is not", value=fmt.name)
            if path not in ranges:
                raise ConfigError(f"no measured range for '{path}'", value=path, allowed=ranges)
            extremes = torch.tensor([ranges[path]], dtype=torch.float32, device=model.device)
            scales = QUANTIZERS.get(fmt.kind).fit(extremes, fmt, None)
            hook = partial(_round_static, fmt, scales, model.rounded_columns(path))
            undo.callback(model.linear(path)[0].register_forward_pre_hook(hook).remove)
        yield


def _round_static(
    fmt: NumberFormat, scales: Scales, columns: Tensor | None, _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    def rounded(x: Tensor) -> Tensor:
        work = x.float().reshape(1, -1).clone()
        QUANTIZERS.get(fmt.kind).round_(work, scales, fmt)
        return work.view(x.shape).to(x.dtype)

    return (on_columns(args[0], columns, rounded), *args[1:])
