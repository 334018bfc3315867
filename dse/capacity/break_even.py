"""Which machine wins at which lengths of prompt and output."""

from __future__ import annotations

from typing import Any

import numpy as np

from dse.capacity.analytic import operating_points, serving
from dse.capacity.asked import Asked
from dse.capacity.assemble import levels_of
from dse.capacity.buckets import Buckets
from dse.capacity.options import ReplicaOption

MAP_PROMPTS = (128.0, 512.0, 2048.0, 8192.0)
MAP_OUTPUTS = (32.0, 128.0, 512.0, 2048.0)


def break_even(asked: Asked) -> dict[str, Any]:
    """Return which machine serves requests of one length cheapest, alone, at the first class's levels.

    Per (prompt, output) cell the dollars per thousand requests of each machine's best option: its price per
    request at the fullest operating point at which every level is met often enough.
    """
    cells = [(p, n) for p in MAP_PROMPTS for n in MAP_OUTPUTS]
    rows = []
    for prompt, output in cells:
        if asked.max_context_tokens is not None and prompt + output > asked.max_context_tokens:
            continue
        costs: dict[str, float] = {}
        for option in asked.short.options:
            if option.also:
                continue  # the map is of single machines
            cost = _usd_per_thousand(asked, option, prompt, output)
            name = asked.market.catalogue.nodes[option.offer].name
            if cost is not None and cost < costs.get(name, float("inf")):
                costs[name] = cost
        winner = min(costs, key=lambda name: costs[name]) if costs else None
        rows.append(
            {"prompt_tokens": prompt, "output_tokens": output, "usd_per_1000": costs, "winner": winner}
        )
    return {"cells": rows, "prompts": list(MAP_PROMPTS), "outputs": list(MAP_OUTPUTS)}


def _usd_per_thousand(asked: Asked, option: ReplicaOption, prompt: float, output: float) -> float | None:
    catalogue = asked.market.catalogue
    offer = catalogue.nodes[option.offer]
    price = catalogue.usd_per_h(offer, spot=asked.market.terms.spot)
    if price is None:
        return None
    one = Buckets(
        np.zeros(1, dtype=np.intp),
        np.array([prompt]),
        np.array([output]),
        np.ones(1),
        1.0,
        asked.market.buckets.burstiness_cv2,
    )
    served = serving(option.steps, option.room, one)
    if served is None:
        return None
    levels = [(index, level) for index, level in levels_of(asked.market.load) if index == 0]
    wanted = np.array([level.percentile / 100.0 for _, level in levels])
    rates = [
        point.rate_per_s
        for point in operating_points(served, one, levels)
        if (point.attained_frac[0] >= wanted - 1e-9).all()
    ]
    if not rates:
        return None
    parts = max(1, offer.n_devices // option.n_devices)
    machines = 1.0 / parts if option.n_devices <= offer.n_devices else option.n_devices / offer.n_devices
    return price * machines / 3600.0 / max(rates) * 1000.0
