"""What most kinds share: no scale above the groups, unsigned codes, float16 scales."""

from __future__ import annotations

from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.half import half_bits, half_of_bits


class GroupScaled:
    """The parts of the ``Quantizer`` contract that do not depend on how elements are rounded."""

    def tensor_scale(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:  # noqa: ARG002
        """Return None: there is no scale above the groups."""
        return None

    def signed(self, fmt: NumberFormat) -> bool:  # noqa: ARG002
        """Codes are numbers of levels or bit patterns."""
        return False

    def scale_codes(
        self,
        scale: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the bits of the float16 scales."""
        return half_bits(scale)

    def scale_values(
        self,
        codes: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the float16 scales of their bits, as float32."""
        return half_of_bits(codes)
