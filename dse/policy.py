"""What a runtime does beyond one format per tensor: cache policies, static scales, precision by position.

- cache: which positions are quantized, how, and in what precision attention is computed.
- static activations: one range per linear, measured on calibration tokens, instead of one per input.
- integer products: whole numbers are summed as in an integer kernel, instead of rounded values.
- phases: other weights or activations from a token position on (prefill and decode; PMPD's falling widths).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from dse.formats.precision import NumberFormat

MAX_SOFTMAX_BITS = 8


@dataclass(frozen=True)
class CachePolicy:
    """How a cache is kept and read. The defaults quantize every position per token and attend exactly.

    Attributes:
        keys_per_channel: a scale for ``key_group`` neighbouring tokens of each channel of the keys (KIVI,
            arXiv 2402.02750), because outliers of keys sit in channels; values keep their scales per token.
        window: the newest positions that a query sees are read in full precision; sinks: so are the first.
        queries, probabilities: formats of the two operands of attention products that are not cached.
        softmax_bits: probabilities as powers of two, 2^-clamp(rnd(-log2 p), 0, 2^b - 1) (FQ-ViT, arXiv
            2111.13824).
    """

    keys_per_channel: bool = False
    key_group: int = 32
    window: int = 0
    sinks: int = 0
    queries: NumberFormat | None = None
    probabilities: NumberFormat | None = None
    softmax_bits: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("key_group", 1), ("window", 0), ("sinks", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}, but is {getattr(self, name)}", path=name)
        bits = self.softmax_bits
        if bits is not None and not 1 <= bits <= MAX_SOFTMAX_BITS:
            raise ConfigError(f"must be 1 to {MAX_SOFTMAX_BITS}, but is {bits}", path="softmax_bits")


@dataclass(frozen=True)
class PhaseStep:
    """From position ``start`` on, all linears of the blocks have these formats; None keeps what was."""

    start: int
    weights: NumberFormat | None = None
    activations: NumberFormat | None = None

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ConfigError(f"must be at least 1, but is {self.start}", path="start")


@dataclass(frozen=True)
class RuntimePolicy:
    """See the module. The default does nothing."""

    cache: CachePolicy = field(default_factory=CachePolicy)
    static_activations: bool = False
    integer_products: bool = False
    phases: tuple[PhaseStep, ...] = ()

    def __post_init__(self) -> None:
        starts = [step.start for step in self.phases]
        if sorted(set(starts)) != starts:
            raise ConfigError(f"positions must rise, but are {starts}", path="phases")
        if sum((self.static_activations, self.integer_products, bool(self.phases))) > 1:
            raise ConfigError(
                "static activation ranges, integer products and phases cannot be combined", path="phases"
            )

    @property
    def is_default(self) -> bool:
        """Whether nothing differs from one format per tensor."""
        return self == RuntimePolicy()

    def to_json(self) -> dict[str, Any]:
        """Return only what differs from the default: equal texts for equal policies."""
        document: dict[str, Any] = {}
        if self.cache != CachePolicy():
            document["cache"] = _changed(self.cache, CachePolicy())
        if self.static_activations:
            document["static_activations"] = True
        if self.integer_products:
            document["integer_products"] = True
        if self.phases:
            document["phases"] = [
                _changed(step, PhaseStep(1)) | {"start": step.start} for step in self.phases
            ]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RuntimePolicy:
        """Read what ``to_json`` wrote, or what a person did; format names are texts.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed; the path says where.
        """
        _check_keys(document, cls, "")
        phases = document.get("phases", [])
        if not isinstance(phases, list):
            raise ConfigError("must be a list of {start, weights, activations}", path="phases")
        return cls(
            cache=_read(CachePolicy, document.get("cache", {}), "cache"),
            static_activations=bool(document.get("static_activations", False)),
            integer_products=bool(document.get("integer_products", False)),
            phases=tuple(_read(PhaseStep, entry, f"phases.{i}") for i, entry in enumerate(phases)),
        )


_FORMAT_KEYS = frozenset({"queries", "probabilities", "weights", "activations"})


def _changed(entry: CachePolicy | PhaseStep, default: CachePolicy | PhaseStep) -> dict[str, Any]:
    found = {}
    for item in fields(entry):
        value = getattr(entry, item.name)
        if value != getattr(default, item.name):
            found[item.name] = value.name if isinstance(value, NumberFormat) else value
    return found


def _read(kind: Any, content: object, path: str) -> Any:
    """Return the dataclass ``kind`` of a mapping, with errors under ``path``."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"must be a mapping, but is {content!r}", path=path)
    _check_keys(content, kind, path)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if value is None:
            continue
        wanted = str if key in _FORMAT_KEYS else bool if key == "keys_per_channel" else int
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(f"must be {wanted.__name__}, but is {value!r}", path=f"{path}.{key}")
        try:
            values[key] = parse_format(value) if isinstance(value, str) else value
        except ConfigError as error:
            raise ConfigError(
                error.message, path=f"{path}.{key}", value=error.value, allowed=error.allowed
            ) from None
    if kind is PhaseStep and "start" not in values:
        raise ConfigError("the key 'start' is missing", path=path)
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(error.message, path=f"{path}.{error.path}") from None


def _check_keys(content: Mapping[str, Any], kind: Any, path: str) -> None:
    known = [item.name for item in fields(kind)]
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key '{key}'", path=path or None, value=key, allowed=known)
