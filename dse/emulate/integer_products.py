"""Linears whose products run as an integer kernel runs them, instead of on rounded floating-point values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from dse.emulate.model import EmulatedModel, TensorFormats
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.fake import QuantizedTensor, quantize_codes
from dse.quantize.products import integer_linear, is_integer


def has_integer_product(formats: TensorFormats, path: str) -> bool:
    """Whether weights and input of a linear are both integers."""
    weight, given = dict(formats.weights).get(path), dict(formats.activations).get(path)
    return weight is not None and given is not None and is_integer(weight) and is_integer(given)


@contextmanager
def integer_products(model: EmulatedModel, formats: TensorFormats) -> Iterator[None]:
    """Compute such linears with exact sums of whole numbers inside the context.

    Raises:
        ConfigError: no linear has integers on both sides, or one was prepared by a quantizer, whose codes are
            not kept.
    """
    weight_of, input_of = dict(formats.weights), dict(formats.activations)
    paths = [path for path in weight_of if has_integer_product(formats, path)]
    if not paths:
        raise ConfigError("integer products need integer weights and activations (int8_row, int8_token)")
    linears = []
    try:
        for path in paths:
            if model.store.is_pinned(path, weight_of[path]):
                raise ConfigError("integer products are for weights that are rounded to nearest")
            linear, inputs_first = model.linear(path)
            weight = linear.weight.t() if inputs_first else linear.weight
            codes = quantize_codes(weight.detach(), weight_of[path])
            linear.forward = partial(_forward, linear, codes, input_of[path])
            linears.append(linear)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)


def _forward(linear: Any, weight: QuantizedTensor, fmt: NumberFormat, x: Tensor) -> Tensor:
    y = integer_linear(x, fmt, weight).to(x.dtype)
    return y if linear.bias is None else y + linear.bias
