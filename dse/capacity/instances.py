"""Published and seeded problems of fleets, for benchmarks and tests."""

from __future__ import annotations

import numpy as np

from dse.capacity.fleet import Demand, FleetProblem, NodeType, Option, Route, Use


def one_device_nodes(
    prices: dict[str, float],
    requests_per_s: dict[str, list[list[float]]],
    distribution: list[list[float]],
    rate_per_s: float,
    n_slices: int,
) -> FleetProblem:
    """Return Melange's problem: each device serves alone, at a known rate per length bucket.

    Args:
        prices: USD/h per device type.
        requests_per_s: what one device sustains, (input bucket, output bucket) lists; 0 cannot serve.
        distribution: share of the requests in each bucket.
        rate_per_s: of all requests.
        n_slices: slices of each bucket.
    """
    names = list(prices)
    nodes = tuple(NodeType(name, 1, prices[name]) for name in names)
    options = tuple(Option(name, ((index, 1),)) for index, name in enumerate(names))
    cells = [(i, j) for i, row in enumerate(distribution) for j, share in enumerate(row) if share > 0]
    demands = tuple(Demand("all", f"{i},{j}", distribution[i][j] * rate_per_s) for i, j in cells)
    routes = tuple(
        Route(d, (Use(o, (1.0 / requests_per_s[name][i][j],)),))
        for d, (i, j) in enumerate(cells)
        for o, name in enumerate(names)
        if requests_per_s[name][i][j] > 0
    )
    return FleetProblem(nodes, options, demands, routes, n_slices=n_slices)


def melange_example() -> FleetProblem:
    """Return the example published with Melange (arXiv 2404.14527); its optimum is 6.70 USD/h."""
    return one_device_nodes(
        {"A10G": 1.01, "A100-80GB": 3.67},
        {"A10G": [[2, 1], [5, 2]], "A100-80GB": [[20, 20], [40, 20]]},
        [[0.2, 0.1], [0.5, 0.2]],
        30.0,
        1,
    )


def seeded(n_buckets: int = 100, n_slices: int = 8, seed: int = 0, rate_per_s: float = 200.0) -> FleetProblem:
    """Return a problem of four device types that win at different lengths, after Melange's figure 3."""
    rng = np.random.default_rng(seed)
    n = round(n_buckets**0.5)
    size = np.add.outer(np.arange(n), 1.5 * np.arange(n)) / (2.5 * (n - 1))
    prices = {"L4": 0.70, "A10G": 1.01, "A100-80GB": 3.67, "H100": 7.516}
    peak, decay = [1.6, 2.6, 12.0, 24.0], [4.5, 4.0, 2.6, 2.4]
    rates = {
        name: (peak[i] * np.exp(-decay[i] * size) * rng.uniform(0.9, 1.1, (n, n))).tolist()
        for i, name in enumerate(prices)
    }
    shares = rng.dirichlet(np.full(n * n, 0.7)).reshape(n, n).tolist()
    return one_device_nodes(prices, rates, shares, rate_per_s, n_slices)
