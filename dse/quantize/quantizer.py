"""The contract of a kind of number format. A kind is one module of this package that registers one object.

A quantizer sees a matrix of shape (n_groups, group_length), float32, whose rows share one scale each; how a
tensor is cut into such rows is the same for all kinds (``fake.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.registry import Registry


@dataclass(frozen=True)
class Scales:
    """What the elements of a tensor are multiplied with.

    Attributes:
        scale: (n_groups, 1) float32, already rounded to what is stored, the tensor's scale included.
        zero: (n_groups, 1) float32 whole numbers, the code of 0.0 ("asym" integers), else None.
    """

    scale: Tensor
    zero: Tensor | None = None


class Quantizer(Protocol):
    """How one kind of format chooses scales, rounds and encodes. All functions are pure but ``round_``."""

    def tensor_scale(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:
        """Return the scale () of the whole tensor ``x``, or None for a kind without one."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:
        """Return one scale per row of ``groups`` (n_groups, group_length)."""

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Replace the elements of ``groups``, in place, by the nearest values that the format holds."""

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the codes of finite elements, int16; signed integers or bit patterns, see ``signed``."""

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the float32 values of codes; equals what ``round_`` writes."""

    def signed(self, fmt: NumberFormat) -> bool:
        """Whether codes are two's complement integers."""

    def scale_codes(self, scale: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:
        """Return the stored bit patterns (int64) of scales."""

    def scale_values(self, codes: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:
        """Return the scales of stored bit patterns; inverse of ``scale_codes``."""


QUANTIZERS: Registry[Quantizer] = Registry("number-format kind")
"""Quantizers by ``NumberFormat.kind``; "float" is not among them, since nothing is scaled there."""
