"""The grammar of format names: one parser, one writer, round trip.

::

    format    = float | integer | fp8 | mx | "nvfp4"
    float     = "fp32" | "fp16" | "bf16"
    integer   = "int" N ["_" scope] ["_" grid]        N = 1 .. 8, e.g. int4_g64_asym, int8_row
    fp8       = "fp8_e4m3" ["_" scope] | "fp8_e5m2" ["_" scope]
    mx        = ("mxfp8_e4m3" | "mxfp8_e5m2" | "mxfp6_e2m3" | "mxfp6_e3m2" | "mxfp4" | "mxint8") ["_" rule]
    scope     = "tensor" | "row" | "token" | "head" | "g" K       default tensor
    grid      = "restricted" | "asym" | "full" | "gptq"           default restricted
    rule      = "floor" | "ceil" | "even"                         default floor (OCP MX v1.0)
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
_SCOPE = r"(?:_(?P<scope>tensor|row|token|head|g[1-9][0-9]{0,5}))?"
_INTEGER = re.compile(rf"int(?P<bits>[1-8]){_SCOPE}(?:_(?P<grid>restricted|asym|full|gptq))?")
_FP8 = re.compile(rf"fp8_(?P<element>e4m3|e5m2){_SCOPE}")
_MX = re.compile(rf"(?P<base>{'|'.join(_MX_ELEMENTS)})(?:_(?P<rule>floor|ceil|even))?")
_LATER = re.compile(r"(nf[34]|kmeans|mxint[1-7]|bitmod|dialect|any)[a-z0-9_]*")

KNOWN_FORMATS: tuple[str, ...] = (
    *FLOAT_FORMATS,
    "int1_g64_asym",
    *(f"int{bits}{scope}" for bits in range(2, 9) for scope in ("", "_row", "_g64", "_g64_asym")),
    *(f"int{bits}_{scope}" for bits in (4, 8) for scope in ("token", "head", "row_asym", "token_asym")),
    *("int4_g32", "int4_g128", "int4_g64_full", "int4_g64_gptq", "int4_head_asym", "int8_asym"),
    *(f"fp8_{element}{scope}" for element in ("e4m3", "e5m2") for scope in ("", "_row", "_token", "_g64")),
    "fp8_e4m3_head",
    *(f"{name}{rule}" for name in _MX_ELEMENTS for rule in ("", "_ceil", "_even")),
    "nvfp4",
)
"""Representatives of every kind: what messages suggest and what the conformance tests run over."""

_ROLE_SCOPES: dict[str, tuple[tuple[Granularity, ...], str]] = {
    "weights": (("tensor", "row", "group", "block"), "_row or _g64"),
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
        return _integer(int(match["bits"]), match["scope"], cast("Grid", match["grid"] or "restricted"))
    if match := _FP8.fullmatch(name):
        granularity, group = _scope(match["scope"])
        return NumberFormat("minifloat", match["element"], 8, granularity, group, scale_bits=FP8_SCALE_BITS)
    if match := _MX.fullmatch(name):
        element, bits = _MX_ELEMENTS[match["base"]]
        rule = cast("ExponentRule", match["rule"] or "floor")
        return NumberFormat(
            "mx", element, bits, "block", MX_BLOCK, scale_bits=MX_SCALE_BITS, exponent_rule=rule
        )
    if _LATER.fullmatch(name):
        raise ConfigError(f"number format '{text}' is not implemented yet", value=text, allowed=KNOWN_FORMATS)
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
    scope = {"tensor": "", "group": f"_g{fmt.group_size}"}.get(fmt.granularity, f"_{fmt.granularity}")
    if fmt.kind == "minifloat":
        return f"fp8_{fmt.element}{scope}"
    grid = "" if fmt.grid in (None, "restricted") else f"_{fmt.grid}"
    return f"int{fmt.bits}{scope}{grid}"


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


def _scope(text: str | None) -> tuple[Granularity, int | None]:
    """Return (granularity, group size) of the scope part of a name."""
    if text is None:
        return "tensor", None
    if text[0] == "g":
        return "group", int(text[1:])
    return cast("Granularity", text), None


def _integer(bits: int, scope: str | None, grid: Grid) -> NumberFormat:
    """Return an integer format; one bit has no symmetric grid (its largest code would be 0)."""
    if bits == 1 and grid != "asym":
        raise ConfigError("int1 needs the asymmetric grid: write int1_g64_asym", value="int1")
    granularity, group = _scope(scope)
    zero_bits = bits if grid == "asym" else 0
    return NumberFormat("int", "int", bits, granularity, group, grid, INTEGER_SCALE_BITS, zero_bits)
