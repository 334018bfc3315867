"""Money: from a rental price and a rate of tokens to dollars per million tokens."""

from __future__ import annotations

SECONDS_PER_HOUR = 3600.0


def usd_per_mtok(price_usd_per_h: float, throughput_tokens_per_s: float) -> float:
    """Return dollars per million generated tokens at a steady rate."""
    return price_usd_per_h / SECONDS_PER_HOUR / throughput_tokens_per_s * 1e6
