"""Distributions of prompt and output lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dse.capacity.load import Counts, Load
from dse.errors import ConfigError


class Distribution(Protocol):
    """Draws lengths in tokens, each at least 1."""

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return (n,) lengths."""
        ...


class LengthPairs(Protocol):
    """Draws prompt and output lengths together, so that they may depend on each other."""

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Counts, Counts]:
        """Return (n,) prompt and (n,) output tokens."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least_one(self.tokens, "fixed")

    def draw(self, rng: np.random.Generator, n: int) -> Counts:  # noqa: ARG002  (one signature for all)
        """Return (n,) equal lengths."""
        return np.full(n, self.tokens, dtype=np.int64)


@dataclass(frozen=True)
class Lognormal:
    """Lognormal lengths by their mean and coefficient of variation, rounded and clipped to [1, ``most``].

    sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2; clipping lowers the mean where the tail is long.
    """

    mean: float
    cv: float
    most: int

    def __post_init__(self) -> None:
        _at_least_one(self.most, "lognormal.most")
        if not 1 <= self.mean < math.inf:
            raise ConfigError(
                f"must be at least 1, but got {self.mean!r}", path="lognormal.mean", value=self.mean
            )
        if not 0 < self.cv < math.inf:
            raise ConfigError(f"must be above 0, but got {self.cv!r}", path="lognormal.cv", value=self.cv)

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return (n,) lengths."""
        variance = math.log1p(self.cv**2)
        drawn = rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), n)
        return np.clip(np.rint(drawn), 1, self.most).astype(np.int64)


@dataclass(frozen=True)
class Histogram:
    """Bins of lengths: bin i holds whole numbers from ``edges[i]`` to ``edges[i + 1]`` - 1, equally likely.

    ``weights`` need not add up to 1.
    """

    edges: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.weights) + 1 or not self.weights:
            raise ConfigError("needs one edge more than weights", path="histogram.edges", value=self.edges)
        _at_least_one(self.edges[0], "histogram.edges")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ConfigError("must increase", path="histogram.edges", value=self.edges)
        if not all(0 <= weight < math.inf for weight in self.weights) or sum(self.weights) <= 0:
            raise ConfigError(
                "must be at least 0 and not all 0", path="histogram.weights", value=self.weights
            )

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return (n,) lengths."""
        shares = np.array(self.weights) / sum(self.weights)
        bins = rng.choice(len(shares), n, p=shares)
        edges = np.array(self.edges)
        return rng.integers(edges[bins], edges[bins + 1]).astype(np.int64)


@dataclass(frozen=True)
class Independent:
    """Prompt and output lengths that do not depend on each other."""

    prompt: Distribution
    output: Distribution

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Counts, Counts]:
        """Return (n,) prompt and (n,) output tokens."""
        return self.prompt.draw(rng, n), self.output.draw(rng, n)


@dataclass(frozen=True)
class LikeTrace:
    """Pairs of a trace drawn with replacement, so that prompt and output keep their dependence."""

    trace: Load

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Counts, Counts]:
        """Return (n,) prompt and (n,) output tokens."""
        drawn = rng.integers(len(self.trace), size=n)
        return self.trace.prompt_tokens[drawn], self.trace.output_tokens[drawn]


def _at_least_one(tokens: int, path: str) -> None:
    if isinstance(tokens, bool) or tokens < 1 or tokens != int(tokens):
        raise ConfigError(
            f"must be a whole number of at least 1, but got {tokens!r}", path=path, value=tokens
        )
