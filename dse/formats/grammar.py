"""The grammar of format names: one parser, one writer, round trip.

::

    format    = float | integer | minifloat | mx | "nvfp4" | table
    float     = "fp32" | "fp16" | "bf16"
    integer   = "int" N ["_" scope] ["_" grid] ["_s8" | "_s" K]   N = 1 .. 8, e.g. int4_g64_asym, int8_row
    minifloat = ("fp8_e4m3" | "fp8_e5m2" | "fp6_e2m3" | "fp6_e3m2" | "fp4_e2m1") ["_" scope]
    mx        = ("mxfp8_e4m3" | "mxfp8_e5m2" | "mxfp6_e2m3" | "mxfp6_e3m2" | "mxfp4" | "mxint8") ["_" rule]
    mxint     = "mxint" W "_e" E "_b" K               MASE: W bits with the sign, E of the exponent of K
    elements table     = mxint | "nf4_b" K ["_dq"] | ("bitmod3" | "bitmod4") "_g" K ["_s8"]
              | "dialectfp4_b" K ["_online"] | "kmeans" N ["_row"]
              | "any" N "of" M ["_row"]               reads N bits of nested M-bit codes, tables from 3 bits
              | "binary_row" | "binary_g" K
    scope     = "tensor" | "row" | "column" | "token" | "head" | "g" K | "b" R "x" K      default tensor
    "_s8": 8-bit scales under a float16 per row; "_dq": double quantization of QLoRA
    "_s" K: scales and zero points of K = 2 .. 6 bits in groups of 16 rows (SpQR); integers "_g" K "_asym"
    grid      = "restricted" | "asym" | "full" | "gptq"           default restricted
    rule      = "floor" | "ceil" | "even" | "up"                  default floor (OCP MX v1.0)
    precision = format ["/" format "/" format]                    weights/activations/kv, the last two bf16

The canonical name leaves the defaults out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

from dse.errors import ConfigError
from dse.formats.precision import ExponentRule, Granularity, Grid, NumberFormat, Precision

FLOAT_FORMATS: tuple[str, ...] = ("fp32", "fp16", "bf16")
"""Formats that are stored as they are, without a scale."""

INTEGER_SCALE_BITS = 16  # a float16 scale, what deployed integer formats store
FP8_SCALE_BITS = 32  # float32, METHODS section 8
MX_BLOCK, MX_SCALE_BITS = 32, 8  # OCP MX v1.0: E8M0 per 32 elements
NVFP4_BLOCK, NVFP4_SCALE_BITS = 16, 8  # E4M3 per 16 elements
NVFP4_TENSOR_SCALE_BITS = 32
TABLE_BITS = 16  # float16 levels
NESTED_SEED_BITS = 3  # Any-Precision LLM, arXiv 2402.10517
BITMOD_SELECTOR_BITS = 2  # one of four data types
DIALECT_EXPONENT_BITS, DIALECT_SELECTOR_BITS = 5, 4  # BlockDialect, arXiv 2501.01144
TWO_LEVEL_SCALE_BITS = 8
SCALE_ROWS = 16  # rows that share second-level scales, SpQR, arXiv 2306.03078
DOUBLE_BLOCK = 256  # QLoRA, arXiv 2305.14314

_FLOAT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16}
_MX_ELEMENTS = {
    "mxfp8_e4m3": ("e4m3", 8),
    "mxfp8_e5m2": ("e5m2", 8),
    "mxfp6_e2m3": ("e2m3", 6),
    "mxfp6_e3m2": ("e3m2", 6),
    "mxfp4": ("e2m1", 4),
    "mxint8": ("int", 8),
}
_MX_NAMES = {element: name for name, element in _MX_ELEMENTS.items()}
_SIZE = r"[1-9][0-9]{0,5}"
_SCOPE = rf"(?:_(?P<scope>tensor|row|column|token|head|g{_SIZE}|b{_SIZE}x{_SIZE}))?"
_INTEGER = re.compile(
    rf"int(?P<bits>[1-8]){_SCOPE}(?:_(?P<grid>restricted|asym|full|gptq))?(?P<codec>_s[2-68])?"
)
_MINIFLOAT = re.compile(rf"(?P<base>fp8_e4m3|fp8_e5m2|fp6_e2m3|fp6_e3m2|fp4_e2m1){_SCOPE}")
_MXINT = re.compile(rf"mxint(?P<bits>[2-8])_e(?P<exponent>[2-8])_b(?P<size>{_SIZE})")
_NF4 = re.compile(rf"nf4_b(?P<size>{_SIZE})(?P<codec>_dq)?")
_BITMOD = re.compile(rf"bitmod(?P<bits>[34])_g(?P<size>{_SIZE})(?P<codec>_s8)?")
_DIALECT = re.compile(rf"dialectfp4_b(?P<size>{_SIZE})(?P<online>_online)?")
_KMEANS = re.compile(r"kmeans(?P<bits>[1-8])(?P<row>_row)?")
_NESTED = re.compile(r"any(?P<read>[3-8])of(?P<bits>[3-8])(?P<row>_row)?")
_BINARY = re.compile(rf"binary_(?:row|g(?P<size>{_SIZE}))")
_MX = re.compile(rf"(?P<base>{'|'.join(_MX_ELEMENTS)})(?:_(?P<rule>floor|ceil|even|up))?")

KNOWN_FORMATS: tuple[str, ...] = (
    *FLOAT_FORMATS,
    "int1_g64_asym",
    *(f"int{bits}{scope}" for bits in range(2, 9) for scope in ("", "_row", "_g64", "_g64_asym")),
    *(f"int{bits}_{scope}" for bits in (4, 8) for scope in ("token", "head", "row_asym", "token_asym")),
    *("int4_g32", "int4_g128", "int4_g64_full", "int4_g64_gptq", "int4_head_asym", "int8_asym"),
    *(f"fp8_{element}{scope}" for element in ("e4m3", "e5m2") for scope in ("", "_row", "_token", "_g64")),
    "fp8_e4m3_head",
    *(f"fp{name}{scope}" for name in ("6_e2m3", "6_e3m2", "4_e2m1") for scope in ("_row", "_g64")),
    *("int8_column", "int4_column_asym", "int8_b32x48", "int4_b16x64_asym", "fp8_e4m3_b128x128"),
    *(
        "int4_g64_s8",
        "int3_g16_asym_s3",
        "int2_g64_asym_s4",
        "mxint8_e8_b32",
        "mxint6_e4_b16",
        "mxint4_e8_b32",
    ),
    *("nf4_b64", "nf4_b64_dq", "bitmod3_g64", "bitmod4_g64", "bitmod3_g64_s8", "bitmod4_g32_s8"),
    *("dialectfp4_b32", "dialectfp4_b16", "dialectfp4_b32_online"),
    *("kmeans2_row", "kmeans3_row", "kmeans4_row", "kmeans4"),
    *("any3of5_row", "any4of5_row", "any5of5_row", "any4of6", "binary_row", "binary_g64"),
    *(f"{name}{rule}" for name in _MX_ELEMENTS for rule in ("", "_ceil", "_even", "_up")),
    "nvfp4",
)
"""Representatives of every kind: what messages suggest and what the conformance tests run over."""

_ROLE_SCOPES: dict[str, tuple[tuple[Granularity, ...], str]] = {
    "weights": (("tensor", "row", "column", "group", "block"), "_row or _g64"),
    "activations": (("tensor", "token", "group", "block"), "_token or _g64"),
    "kv": (("tensor", "head", "group", "block"), "_head or _g64"),
}


@lru_cache(maxsize=4096)
def parse_format(text: str) -> NumberFormat:
    """Return the format that a name means; ``format_name`` of it is the canonical name.

    Raises:
        ConfigError: not a name of the grammar; the message has the nearest known name.
    """
    name = text.strip().lower()
    if name in _FLOAT_BITS:
        return NumberFormat("float", name, _FLOAT_BITS[name])
    if name == "nvfp4":
        return NumberFormat("nvfp4", "e2m1", 4, "block", NVFP4_BLOCK, scale_bits=NVFP4_SCALE_BITS)
    if match := _INTEGER.fullmatch(name):
        return _integer(match)
    if match := _MINIFLOAT.fullmatch(name):
        granularity, group, rows = _scope(match["scope"])
        return NumberFormat(
            "minifloat",
            match["base"][4:],
            int(match["base"][2]),
            granularity,
            group,
            scale_bits=FP8_SCALE_BITS,
            block_rows=rows,
        )
    if match := _MX.fullmatch(name):
        element, bits = _MX_ELEMENTS[match["base"]]
        rule = cast("ExponentRule", match["rule"] or "floor")
        return NumberFormat(
            "mx", element, bits, "block", MX_BLOCK, scale_bits=MX_SCALE_BITS, exponent_rule=rule
        )
    table = _table(name)
    if table is not None:
        return table
    raise ConfigError(f"unknown number format '{text}'", value=text, allowed=KNOWN_FORMATS)


def format_name(fmt: NumberFormat) -> str:
    """Return the canonical name of a format, e.g. ``int4_g64_asym``; ``parse_format`` reads it back."""
    if fmt.kind == "float":
        return fmt.element
    if fmt.kind == "nvfp4":
        return "nvfp4"
    if fmt.kind == "mx":
        base = _MX_NAMES[fmt.element, fmt.bits]
        return base if fmt.exponent_rule in (None, "floor") else f"{base}_{fmt.exponent_rule}"
    codec = {"plain": "", "int8_row": "_s8", "double": "_dq", "rows16": f"_s{fmt.scale_bits}"}[
        fmt.scale_codec
    ]
    scope = {
        "tensor": "",
        "group": f"_g{fmt.group_size}",
        "block": f"_b{fmt.block_rows}x{fmt.group_size}",
    }.get(fmt.granularity, f"_{fmt.granularity}")
    if fmt.kind == "minifloat":
        return f"fp{fmt.bits}_{fmt.element}{scope}"
    if fmt.kind == "int":
        grid = "" if fmt.grid in (None, "restricted") else f"_{fmt.grid}"
        return f"int{fmt.bits}{scope}{grid}{codec}"
    return {
        "mxint": f"mxint{fmt.bits}_e{fmt.scale_bits}_b{fmt.group_size}",
        "codebook": f"{fmt.element}_{'b' if fmt.element == 'nf4' else 'g'}{fmt.group_size}{codec}",
        "dialect": f"dialectfp4_b{fmt.group_size}{'_online' if fmt.element == 'dialect_online' else ''}",
        "kmeans": f"kmeans{fmt.bits}{scope}",
        "nested": f"any{fmt.read_bits}of{fmt.bits}{scope}",
        "binary": f"binary{scope}",
    }[fmt.kind]


def parse_precision(source: str | Mapping[str, str]) -> Precision:
    """Return the precision of an operator.

    Args:
        source: ``"int4_g64/int8_token/fp8_e4m3"`` (weights/activations/kv), a single name for the weights
            with bfloat16 activations and KV cache, or a mapping with the key ``weights`` and optionally
            ``activations`` and ``kv`` (bfloat16 where absent).

    Raises:
        ConfigError: unknown names or keys, or a granularity that its tensor cannot have (a weight has no
            tokens; a KV tensor has one scale per token and head, "head").
    """
    if isinstance(source, str):
        parts = source.split("/")
        if len(parts) not in (1, 3):
            raise ConfigError(
                f"a precision is 'weights' or 'weights/activations/kv', but got '{source}'", value=source
            )
        names = dict(zip(("weights", "activations", "kv"), parts, strict=False))
    elif isinstance(source, Mapping):
        names = dict(source)
    else:
        raise ConfigError(f"a precision must be text or a mapping, but got {source!r}", value=source)
    for key in names:
        if key not in _ROLE_SCOPES:
            raise ConfigError(f"unknown key '{key}' of a precision", value=key, allowed=_ROLE_SCOPES)
    if "weights" not in names:
        raise ConfigError("a precision needs the format of its weights", path="weights")
    return Precision(
        weights=_role("weights", names["weights"]),
        activations=_role("activations", names.get("activations", "bf16")),
        kv=_role("kv", names.get("kv", "bf16")),
    )


def _role(role: str, name: str) -> NumberFormat:
    """Parse the format of one role and check that its granularity means something there."""
    if not isinstance(name, str):
        raise ConfigError(f"a number format must be a name like 'int4_g64', but got {name!r}", path=role)
    try:
        fmt = parse_format(name)
    except ConfigError as error:
        raise ConfigError(str(error), path=role) from None
    allowed, remedy = _ROLE_SCOPES[role]
    if fmt.granularity not in allowed:
        raise ConfigError(
            f"'{name}' has one scale per {fmt.granularity}, which {role} do not have (use {remedy})",
            path=role,
        )
    return fmt


def _scope(text: str | None) -> tuple[Granularity, int | None, int | None]:
    """Return (granularity, group size, rows of a 2-D block) of the scope part of a name."""
    if text is None:
        return "tensor", None, None
    if text[0] == "g":
        return "group", int(text[1:]), None
    if text[0] == "b":
        rows, columns = text[1:].split("x")
        return "block", int(columns), int(rows)
    return cast("Granularity", text), None, None


def _integer(match: re.Match[str]) -> NumberFormat:
    """Return an integer format; one bit has no symmetric grid (its largest code would be 0)."""
    bits, grid = int(match["bits"]), cast("Grid", match["grid"] or "restricted")
    if bits == 1 and grid != "asym":
        raise ConfigError("int1 needs the asymmetric grid: write int1_g64_asym", value=match[0])
    granularity, group, rows = _scope(match["scope"])
    if not match["codec"]:
        zero_bits = bits if grid == "asym" else 0
        return NumberFormat(
            "int", "int", bits, granularity, group, grid, INTEGER_SCALE_BITS, zero_bits, block_rows=rows
        )
    if match["codec"] != "_s8":
        width = int(match["codec"][2:])
        if granularity != "group" or grid != "asym":
            raise ConfigError(f"scales of {width} bits need groups and the asymmetric grid", value=match[0])
        return NumberFormat("int", "int", bits, "group", group, grid, width, width, scale_codec="rows16")
    if granularity != "group" or grid == "asym":
        raise ConfigError("two-level scales '_s8' need groups and a symmetric grid", value=match[0])
    return NumberFormat(
        "int", "int", bits, "group", group, grid, TWO_LEVEL_SCALE_BITS, scale_codec="int8_row"
    )


def _table(name: str) -> NumberFormat | None:
    """Return the format of a name of the ``table`` rule, or None."""
    if match := _MXINT.fullmatch(name):
        exponent = int(match["exponent"])
        size = int(match["size"])
        return NumberFormat("mxint", "int", int(match["bits"]), "block", size, scale_bits=exponent)
    if match := _NF4.fullmatch(name):
        if not match["codec"]:
            return NumberFormat("codebook", "nf4", 4, "group", int(match["size"]), scale_bits=16)
        return NumberFormat(
            "codebook", "nf4", 4, "group", int(match["size"]), scale_bits=8, scale_codec="double"
        )
    if match := _BITMOD.fullmatch(name):
        bits, two = int(match["bits"]), bool(match["codec"])
        return NumberFormat(
            "codebook",
            f"bitmod{bits}",
            bits,
            "group",
            int(match["size"]),
            scale_bits=TWO_LEVEL_SCALE_BITS if two else INTEGER_SCALE_BITS,
            zero_bits=BITMOD_SELECTOR_BITS,
            scale_codec="int8_row" if two else "plain",
        )
    if match := _DIALECT.fullmatch(name):
        element = "dialect_online" if match["online"] else "dialect"
        return NumberFormat(
            "dialect",
            element,
            4,
            "block",
            int(match["size"]),
            scale_bits=DIALECT_EXPONENT_BITS,
            zero_bits=DIALECT_SELECTOR_BITS,
        )
    return _learned_table(name)


def _learned_table(name: str) -> NumberFormat | None:
    """Return the format of a name whose levels are fitted to the tensor, or None."""
    if match := _KMEANS.fullmatch(name):
        scope: Granularity = "row" if match["row"] else "tensor"
        return NumberFormat("kmeans", "table", int(match["bits"]), scope, scale_bits=TABLE_BITS)
    if match := _NESTED.fullmatch(name):
        read, bits = int(match["read"]), int(match["bits"])
        if read > bits:
            raise ConfigError(f"cannot read {read} bits of {bits}-bit codes", value=name)
        return NumberFormat(
            "nested",
            "table",
            bits,
            "row" if match["row"] else "tensor",
            scale_bits=TABLE_BITS,
            read_bits=read,
            seed_bits=NESTED_SEED_BITS,
        )
    if match := _BINARY.fullmatch(name):
        size = int(match["size"]) if match["size"] else None
        return NumberFormat(
            "binary", "sign", 1, "group" if size else "row", size, scale_bits=16, zero_bits=16
        )
    return None
