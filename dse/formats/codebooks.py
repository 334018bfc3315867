"""Fixed level tables of formats that are not small floats, as data.

Sources: NF4: QLoRA (arXiv 2305.14314), quantiles of N(0, 1); BitMoD (arXiv 2411.11745): FP3 and FP4 whose
second zero is one special value, +-3 or +-6 for FP3, +-5 or +-8 for FP4; DialectFP4: see dialectfp4.json.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

NF4_LEVELS: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

_BITMOD_BASES = {"bitmod3": (1.0, 2.0, 4.0), "bitmod4": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}
_BITMOD_SPECIALS = {"bitmod3": (3.0, -3.0, 6.0, -6.0), "bitmod4": (5.0, -5.0, 8.0, -8.0)}


def bitmod_base(element: str) -> tuple[float, ...]:
    """Return the levels of the plain FP3 or FP4 under "bitmod3" or "bitmod4", in order."""
    positive = _BITMOD_BASES[element]
    return (*(-value for value in reversed(positive)), 0.0, *positive)


@lru_cache(maxsize=8)
def codebooks(element: str) -> tuple[tuple[float, ...], ...]:
    """Return the level tables of a codebook element, each in order: one for "nf4", four for BitMoD."""
    if element == "nf4":
        return (NF4_LEVELS,)
    base = bitmod_base(element)
    return tuple(tuple(sorted((*base, special))) for special in _BITMOD_SPECIALS[element])


@lru_cache(maxsize=1)
def dialects() -> tuple[tuple[float, ...], ...]:
    """Return the 8 magnitudes of each of the 16 dialects."""
    document = json.loads(files("dse.formats").joinpath("dialectfp4.json").read_text(encoding="utf-8"))
    return tuple((*document["shared"], *tail) for tail in document["tails"])
