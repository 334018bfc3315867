"""Number formats of tensors, by name: the types. The grammar that reads and writes names is in grammar.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal[
    "float", "int", "minifloat", "mx", "nvfp4", "mxint", "codebook", "dialect", "kmeans", "nested", "binary"
]
Granularity = Literal["tensor", "row", "column", "group", "token", "head", "block"]
Grid = Literal["restricted", "full", "gptq", "asym"]
ExponentRule = Literal["floor", "ceil", "even", "up"]
ScaleCodec = Literal["plain", "int8_row", "double", "rows16"]


@dataclass(frozen=True)
class NumberFormat:
    """How the elements of one tensor are stored. Build with ``parse_format``; the name round-trips.

    Attributes:
        kind: "float" (fp32, fp16, bf16: stored as they are), "int", "minifloat" (fp8, fp6, fp4, scaled), "mx"
            (OCP microscaling, blocks of 32 with a power-of-two scale), "nvfp4" (blocks of 16, fp8 scale),
            "mxint" (MASE: a shared exponent of chosen width), "codebook" (nf4, bitmod: fixed levels),
            "dialect" (BlockDialect), "kmeans" (a table of levels per row or tensor), "nested" (any-precision
            codes with a table per width), "binary" (mean and one magnitude).
        element: the element encoding: "fp32" | "fp16" | "bf16" | "int" | "e4m3" | "e5m2" | "e2m1" | "e2m3"
            | "e3m2" | "nf4" | "bitmod3" | "bitmod4" | "dialect" | "dialect_online" | "table" | "sign".
        bits: stored bits of one element, without scales.
        granularity: which elements share a scale. "row" is one scale per output channel of a weight,
            "token" one per token of an activation, "head" one per token and head of a KV tensor.
        group_size: elements along the contraction axis that share a scale ("group", "block"), else None.
        grid: integer grid (METHODS of the literature disagree on the symmetric one, so it is explicit):
            restricted, full, gptq (symmetric), asym. None for other kinds.
        scale_bits, zero_bits: stored bits of one scale (of one table entry) and of the number beside it: a
            zero point, which codebook a group uses, or a mean.
        exponent_rule: how an MX block picks its exponent (OCP MX v1.0: floor). None for other kinds.
        block_rows: rows of a two-dimensional block, whose columns are ``group_size``; else None.
        scale_codec: how scales are stored: "plain"; "int8_row" (8-bit scales under a float16 per row);
            "double" (8-bit dynamic codes in blocks of 256, QLoRA); or "rows16" (scales, and zero points that
            are no whole numbers, of few bits between two float16 ends per 16 rows, SpQR).
        read_bits, seed_bits: of "nested" codes, the width that is read and the narrowest with a table.
    """

    kind: Kind
    element: str
    bits: int
    granularity: Granularity = "tensor"
    group_size: int | None = None
    grid: Grid | None = None
    scale_bits: int = 0
    zero_bits: int = 0
    exponent_rule: ExponentRule | None = None
    block_rows: int | None = None
    scale_codec: ScaleCodec = "plain"
    read_bits: int | None = None
    seed_bits: int | None = None

    @cached_property
    def name(self) -> str:
        """The canonical name, e.g. ``int4_g64_asym``; ``parse_format(name)`` returns an equal format."""
        from dse.formats.grammar import format_name

        return format_name(self)

    @property
    def table_entries(self) -> int:
        """Entries of the table that a row (or the tensor) stores instead of one scale; 0 without a table."""
        if self.kind == "kmeans":
            return 1 << self.bits
        if self.kind == "nested":
            return sum(1 << bits for bits in range(self.seed_bits or 0, self.bits + 1))
        return 0

    @property
    def is_float(self) -> bool:
        """Whether elements are stored unscaled (fp32, fp16, bf16), so nothing is quantized."""
        return self.kind == "float"


@dataclass(frozen=True)
class Precision:
    """The formats of one operator's weights, input activations and, where it has one, KV cache."""

    weights: NumberFormat
    activations: NumberFormat
    kv: NumberFormat

    @property
    def name(self) -> str:
        """``weights/activations/kv``, e.g. ``int4_g64/bf16/bf16``."""
        return f"{self.weights.name}/{self.activations.name}/{self.kv.name}"

    def to_json(self) -> dict[str, str]:
        """Return {"weights": ..., "activations": ..., "kv": ...} with format names."""
        return {"weights": self.weights.name, "activations": self.activations.name, "kv": self.kv.name}
