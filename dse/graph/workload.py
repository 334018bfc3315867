"""What is asked of the model: a batch of requests with prompt and output lengths."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dse.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """A batch of ``batch`` equal requests, each ``prompt_tokens`` in and ``output_tokens`` out.

    ``ttft_limit_s`` and ``tpot_limit_s`` are optional service levels (time to first token, time per
    output token); None means that no limit is set.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "output_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"must be a whole number of at least 1, but got {value!r}",
                    path=f"workload.{name}",
                    value=value,
                )
        for name in ("ttft_limit_s", "tpot_limit_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"must be above 0, but got {value!r}", path=f"workload.{name}", value=value)

    @property
    def total_context(self) -> int:
        """Positions in the cache after the last token."""
        return self.prompt_tokens + self.output_tokens

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)
