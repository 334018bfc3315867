"""Small floating-point element encodings as data: what one code of each means.

Sources: OCP Microscaling Formats (MX) v1.0, section 5.3; OCP 8-bit Floating Point (OFP8) v1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ElementSpec:
    """A sign bit, ``exponent_bits`` and ``mantissa_bits``; unscaled.

    A magnitude code c has exponent field E = c >> mantissa_bits and mantissa field m: the value is
    m * 2^(1 - bias - mantissa_bits) for E = 0 and (1 + m / 2^mantissa_bits) * 2^(E - bias) else.

    Attributes:
        max_value: the largest finite magnitude; codes above it (e4m3: NaN; e5m2: infinity and NaN) are
            never produced, because every rounding here saturates.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max_value: float

    @property
    def bits(self) -> int:
        """Bits of one element with its sign."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value; the spacing below it is constant (subnormals)."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value, ``emax`` of the MX specification."""
        return int(self.max_value).bit_length() - 1

    def magnitude(self, code: int) -> float:
        """Return the value of a magnitude code (without the sign bit)."""
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if exponent == 0:
            return mantissa * 2.0 ** (self.min_exponent - self.mantissa_bits)
        return (1 + mantissa / (1 << self.mantissa_bits)) * 2.0 ** (exponent - self.bias)

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """All finite magnitudes in order; the index is the magnitude code."""
        values = (self.magnitude(code) for code in range(1 << (self.bits - 1)))
        return tuple(value for value in values if value <= self.max_value)


ELEMENTS: dict[str, ElementSpec] = {
    spec.name: spec
    for spec in (
        ElementSpec("e2m1", 2, 1, 1, 6.0),
        ElementSpec("e2m3", 2, 3, 1, 7.5),
        ElementSpec("e3m2", 3, 2, 3, 28.0),
        ElementSpec("e4m3", 4, 3, 7, 448.0),
        ElementSpec("e5m2", 5, 2, 15, 57344.0),
    )
}
