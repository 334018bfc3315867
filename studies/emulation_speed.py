"""What emulation costs: rounding all weights, and forward passes beside a plain one and other emulators.

- torchao: activations and weights through its MXTensor, quantized at every call, as its emulated path does.
- per element: the definition of MX applied element by element at every call, with the operations that
  microxcaling's Python path uses (maximum, logarithm, shift, round, clamp over whole tensors).

Times are the least of several rounds that take turns; ratios are to the plain forward of the same dtype.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dse.emulate.model import EmulatedModel
from dse.formats.grammar import parse_format, parse_precision
from dse.plan import Assignment
from dse.quantize.fake import fake_quantize

SCALAR_FORMATS = (
    *("int2_g64_asym", "int4_g64_asym", "int4_row", "int8_row", "int4_column_asym", "int8_b32x48"),
    *("fp8_e4m3_row", "fp8_e5m2_row", "fp6_e2m3_row", "fp4_e2m1_g64", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4"),
    *("mxint8", "mxint6_e4_b16", "nvfp4", "nf4_b64", "nf4_b64_dq", "bitmod3_g64", "bitmod4_g64"),
    *("dialectfp4_b32", "dialectfp4_b32_online", "binary_g64", "int4_g64_s8"),
)
LEARNED_FORMATS = ("kmeans3_row", "kmeans4_row", "any4of6_row")
PLANS = {
    "W4 weights only": "int4_g64_asym",
    "W4A8": "int4_g64_asym/int8_token/bf16",
    "W4A4": "int4_row/int4_token/bf16",
    "W4A4 KV4": "int4_row/int4_token/int4_head",
    "MXFP4 weights and activations": "mxfp4/mxfp4/bf16",
    "FP8 weights and activations": "fp8_e4m3_row/fp8_e4m3_token/bf16",
}
ROUNDS = 3
_BLOCK, _EMAX, _TOP = 32, 2, 6.0  # MXFP4


@dataclass(frozen=True)
class SpeedRow:
    """One measurement; ``ratio`` is to the plain forward, None for rounding weights."""

    name: str
    kind: str
    time_s: float
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def rounding(model: EmulatedModel, formats: tuple[str, ...]) -> Iterator[SpeedRow]:
    """Yield the time of rounding all linears of the blocks to each format."""
    paths = [model.path(unit.layer, op) for unit in model.units for op in unit.ops]
    weights = [model.linear(path)[0].weight.detach() for path in paths]
    for name in formats:
        fmt = parse_format(name)
        fake_quantize(weights[0], fmt)
        start_s = time.perf_counter()
        for weight in weights:
            fake_quantize(weight, fmt)
        yield SpeedRow(name, "round all weights", time.perf_counter() - start_s)


def forwards(model: EmulatedModel, ids: Tensor) -> list[SpeedRow]:
    """Return the times of a plain forward of ``ids`` (n_sequences, length) and of all emulated ones."""
    names = [unit.name for unit in model.units]
    contexts: dict[str, tuple[str, Callable[[], Any]]] = {"plain": ("plain", ExitStack)}
    for label, precision in PLANS.items():
        formats = model.formats_of(Assignment.uniform(tuple(names), parse_precision(precision)))
        contexts[label] = ("dse", partial(model.applied, formats))
    for label, function in _others().items():
        contexts[label] = ("other", partial(_at_every_call, model, function))
    best = dict.fromkeys(contexts, float("inf"))
    for _ in range(ROUNDS):
        for label, (_, context) in contexts.items():
            with context():
                model.logits(ids[:, :2])
                start_s = time.perf_counter()
                model.logits(ids)
                best[label] = min(best[label], time.perf_counter() - start_s)
    return [
        SpeedRow(label, contexts[label][0], time_s, time_s / best["plain"]) for label, time_s in best.items()
    ]


def per_element_mxfp4(x: Tensor) -> Tensor:
    """Return ``x`` (..., C), C a multiple of 32, rounded to MXFP4 by its definition (OCP MX v1.0, floor)."""
    blocks = x.float().unflatten(-1, (-1, _BLOCK))
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1, keepdim=True).clamp(min=2.0**-126))) - _EMAX
    scaled = blocks / torch.exp2(exponent)
    private = torch.floor(torch.log2(scaled.abs().clamp(min=2.0**-126))).clamp(min=0)
    step = torch.exp2(private - 1)
    rounded = (torch.round(scaled / step) * step).clamp(-_TOP, _TOP)
    return (rounded * torch.exp2(exponent)).flatten(-2).to(x.dtype)


def _others() -> dict[str, Callable[[Tensor], Tensor]]:
    found: dict[str, Callable[[Tensor], Tensor]] = {"MXFP4, per element": per_element_mxfp4}
    if importlib.util.find_spec("torchao") is not None:
        found["MXFP4, torchao"] = _torchao_mxfp4
    return found


def _torchao_mxfp4(x: Tensor) -> Tensor:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    packed = MXTensor.to_mx(x.contiguous(), torch.float4_e2m1fn_x2, _BLOCK)
    return packed.dequantize(x.dtype)


@contextmanager
def _at_every_call(model: EmulatedModel, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Round weights and inputs of all linears of the blocks at every call."""

    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        return nn.functional.linear(function(x), function(linear.weight), linear.bias)

    linears = [model.linear(model.path(unit.layer, op))[0] for unit in model.units for op in unit.ops]
    try:
        for linear in linears:
            linear.forward = partial(forward, linear)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)
