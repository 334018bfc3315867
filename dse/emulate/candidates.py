"""Several precisions of one unit in one forward pass: sequence i of the batch runs with the i-th weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat


@contextmanager
def weights_by_sequence(
    model: EmulatedModel, paths: Sequence[str], formats: Sequence[NumberFormat]
) -> Iterator[None]:
    """Let sequence i of every batch inside the context see the linears rounded to ``formats[i]``.

    Args:
        model: the model, nothing applied.
        paths: of the linears; formats: one for each sequence of a batch.

    Raises:
        ConfigError: inside the context, by a linear that does not read (batch, length, channels).
    """
    linears: list[Any] = []
    try:
        for path in paths:
            linear, inputs_first = model.linear(path)
            stored = (model.store.get(path, linear.weight, fmt, inputs_first=inputs_first) for fmt in formats)
            weights = [weight.t() if inputs_first else weight for weight in stored]
            linear.forward = partial(_forward, linear, path, weights)
            linears.append(linear)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)


def _forward(linear: Any, path: str, weights: list[Tensor], x: Tensor) -> Tensor:
    if x.dim() != 3 or len(x) != len(weights):
        raise ConfigError(f"'{path}' does not read whole sequences, so its precisions cannot share a pass")
    return torch.stack(
        [nn.functional.linear(part, weight, linear.bias) for part, weight in zip(x, weights, strict=True)]
    )
