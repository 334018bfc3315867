"""What questions are put to: the market as planned, its answer, and the options worth asking about."""

from __future__ import annotations

from dse.capacity.market import Answer, Market


class Asked:
    """The main answer and the markets that questions are put to."""

    def __init__(
        self,
        market: Market,
        answer: Answer,
        *,
        growth_per_year_frac: float = 0.5,
        max_context_tokens: int | None = None,
    ) -> None:
        """Take the market as planned and its answer; growth is for the two-year question."""
        self.market = market
        self.answer = answer
        self.short = market.shortlist(answer)
        self.growth_per_year_frac = growth_per_year_frac
        self.max_context_tokens = max_context_tokens
