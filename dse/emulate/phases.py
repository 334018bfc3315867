"""Precision that depends on the token: prefill and decode, or steps along the sequence (PMPD).

A token's linears run with the weights of its position, and its keys and values enter the cache as those made
them, so that one pass over a whole sequence equals prefilling and decoding with those precisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel, TensorFormats, on_columns
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.fake import fake_quantize


@dataclass(frozen=True)
class Phase:
    """Formats of the linears from position ``start`` on."""

    start: int
    formats: TensorFormats


@contextmanager
def applied_by_position(model: EmulatedModel, phases: Sequence[Phase]) -> Iterator[None]:
    """Run linears with the weights and activation formats of each token's phase inside the context.

    Raises:
        ConfigError: the first phase does not start at 0, or starts do not rise; cache formats, which belong
            to the cache as a whole.
    """
    starts = [phase.start for phase in phases]
    if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
        raise ConfigError(f"phases must start at 0 and rise, but start at {starts}")
    if any(phase.formats.kv for phase in phases):
        raise ConfigError("a phase has no cache format of its own; apply it to the whole model")
    paths = sorted(
        {path for phase in phases for path, _ in (*phase.formats.weights, *phase.formats.activations)}
    )
    with ExitStack() as undo:
        for path in paths:
            linear, inputs_first = model.linear(path)
            parts = []
            for phase in phases:
                weight_fmt = dict(phase.formats.weights).get(path)
                input_fmt = dict(phase.formats.activations).get(path)
                weight: Tensor = linear.weight
                if weight_fmt is not None:
                    weight = model.store.get(path, linear.weight, weight_fmt, inputs_first=inputs_first)
                parts.append((phase.start, weight.t() if inputs_first else weight, input_fmt))
            undo.callback(linear.__dict__.pop, "forward", None)
            linear.forward = partial(_forward, linear, parts, model.rounded_columns(path))
        yield


def decode_bits(phases: Sequence[tuple[int, float]], n_tokens: int) -> float:
    """Return the mean weight bits per token of (start, bits) phases over ``n_tokens`` tokens."""
    ends = [*(start for start, _ in phases[1:]), n_tokens]
    total = sum(
        bits * max(0, min(end, n_tokens) - start) for (start, bits), end in zip(phases, ends, strict=True)
    )
    return total / n_tokens


def _forward(
    linear: Any, parts: list[tuple[int, Tensor, NumberFormat | None]], columns: Tensor | None, x: Tensor
) -> Tensor:
    """Return the output (..., length, R) of an input (..., length, C), of which ``columns`` are rounded."""
    ends = [*(start for start, _, _ in parts[1:]), x.shape[-2]]
    outputs = []
    for (start, weight, fmt), end in zip(parts, ends, strict=True):
        part = x[..., start : min(end, x.shape[-2]), :]
        if part.shape[-2] == 0:
            continue
        if fmt is not None:
            part = on_columns(part, columns, partial(fake_quantize, fmt=fmt))
        outputs.append(nn.functional.linear(part, weight, linear.bias))
    return torch.cat(outputs, dim=-2)
