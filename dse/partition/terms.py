"""Objectives and bounds of a pipeline as convex functions of its stage times.

Every formula is a sum of weighted maxima of linear forms of (P_1..P_n, D_1..D_n), the times of a stage for
one micro-batch of the prefill and one round of the decode; so one bound and one search serve them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dse.partition.problem import Array, Formula, Objective, PipelineProblem


@dataclass(frozen=True)
class Maximum:
    """``weight * max_r(forms[r] @ x + constants[r])``: forms (R, 2n), constants (R)."""

    weight: float
    forms: Array
    constants: Array


@dataclass(frozen=True)
class Terms:
    """F(x) = linear @ x + constant + the maxima, x = (P_1..P_n, D_1..D_n).

    The maxima of all micro-batch sizes have the same rows, so that multipliers carry over between lanes.
    """

    linear: Array
    constant: float
    maxima: tuple[Maximum, ...]

    def value(self, x: Array) -> Array:
        """Evaluate rows x (..., 2n)."""
        total = x @ self.linear + self.constant
        for m in self.maxima:
            total = total + m.weight * (x @ m.forms.T + m.constants).max(axis=-1)
        return total

    def scaled(self, factor: float, constant: float = 0.0) -> Terms:
        """Return ``factor`` times the terms plus a constant."""
        return Terms(
            self.linear * factor,
            self.constant * factor + constant,
            tuple(Maximum(m.weight * factor, m.forms, m.constants) for m in self.maxima),
        )


def quantity_terms(
    problem: PipelineProblem,
    formula: Formula,
    name: Objective,
    devices: tuple[int, ...],
    micro: tuple[int, int],
    joules: float,
) -> Terms:
    """Return the part of a quantity that the stage times decide, with its constants.

    Args:
        problem: has the transfers, the batch, powers and prices.
        formula: of the whole batch's time; name: the quantity.
        devices: (n) in stage order; micro: indices of the micro-batches (prefill, decode).
        joules: of embedding, head and transfers; what else is dynamic is summed over the layers elsewhere.
    """
    p, d = micro
    n, tokens = len(devices), problem.output_tokens
    k = problem.n_prefill_passes(problem.prefill_micro_batches[p])
    m = problem.n_decode_passes(problem.decode_micro_batches[d])
    hops_p, hops_d = problem.prefill_hops_s(devices, p), problem.decode_hops_s(devices, d)
    if name == "time" and formula == "llmpq":
        return llmpq_terms(n, *_ring_hops_s(problem, devices, p, d), k, m, tokens)
    if name == "ttft":
        return ttft_terms(n, hops_p, k)
    if name == "tpot":
        return tpot_terms(n, hops_d, m)
    if name == "throughput":
        return period_terms(n, hops_p, hops_d, k, m, tokens)
    whole = round_terms(n, hops_p, hops_d, k, m, tokens, drain=formula == "makespan")
    n_tokens = problem.batch * tokens
    if name == "energy":
        assert problem.energy is not None
        static_w = float(problem.energy.static_w[list(devices)].sum())
        return whole.scaled(static_w / n_tokens, joules / n_tokens)
    if name == "cost":
        assert problem.price_usd_per_h is not None
        usd_per_h = sum(problem.price_usd_per_h[device] or 0.0 for device in devices)
        return whole.scaled(usd_per_h / 3600 * 1e6 / n_tokens)
    return whole


def _ring_hops_s(problem: PipelineProblem, devices: tuple[int, ...], p: int, d: int) -> tuple[Array, Array]:
    """Return (n) transfers of every device to the next one, of the last to the first."""
    if len(devices) == 1:
        return np.zeros(1), np.zeros(1)
    here, after = list(devices), [*devices[1:], devices[0]]
    return problem.hop_prefill_s[p, here, after], problem.hop_decode_s[d, here, after]


def round_terms(
    n: int, hops_p: Array, hops_d: Array, k: int, m: int, tokens: int, *, drain: bool = False
) -> Terms:
    """Return F of the corrected round: see ``cost_models.pipeline``.

    With ``drain`` the last round ends when its last micro-batch leaves the last stage: it takes the sum of
    the stations plus (m - 1) times the slowest, as any flow shop of equal jobs.
    """
    eye, zero, none = np.eye(n), np.zeros((n, n)), np.zeros((1, 2 * n))
    longest_p, longest_d = (float(hops.max()) if len(hops) else 0.0 for hops in (hops_p, hops_d))
    slowest_prefill = Maximum(
        float(k - 1),
        np.concatenate([np.concatenate([eye, zero], axis=1), none]),
        np.append(np.zeros(n), longest_p),
    )
    whole = np.concatenate([np.zeros(n), np.ones(n)])[None]
    whole_round = Maximum(
        float(max(tokens - 1 - drain, 0)),
        np.concatenate([whole, np.concatenate([zero, m * eye], axis=1), none]),
        np.concatenate([[float(hops_d.sum())], np.zeros(n), [m * longest_d]]),
    )
    linear = np.concatenate([np.ones(n), np.zeros(n)])
    if not drain or tokens == 1:
        return Terms(linear, float(hops_p.sum()), (slowest_prefill, whole_round))
    last_round = Maximum(
        float(m - 1),
        np.concatenate([np.concatenate([zero, eye], axis=1), none]),
        np.append(np.zeros(n), longest_d),
    )
    constant = float(hops_p.sum() + hops_d.sum())
    return Terms(np.ones(2 * n), constant, (slowest_prefill, whole_round, last_round))


def ttft_terms(n: int, hops_p: Array, k: int) -> Terms:
    """Return the seconds until every request has its first token (``cost_models.pipeline``)."""
    forms = np.concatenate([np.eye(n, 2 * n), np.zeros((1, 2 * n))])
    longest = float(hops_p.max()) if len(hops_p) else 0.0
    slowest = Maximum(float(k - 1), forms, np.append(np.zeros(n), longest))
    return Terms(np.repeat([1.0, 0.0], n), float(hops_p.sum()), (slowest,))


def tpot_terms(n: int, hops_d: Array, m: int) -> Terms:
    """Return the seconds of one decode round (``cost_models.pipeline``)."""
    whole = np.repeat([0.0, 1.0], n)[None]
    forms = np.concatenate([whole, m * np.eye(n, 2 * n, n), np.zeros((1, 2 * n))])
    longest = float(hops_d.max()) if len(hops_d) else 0.0
    constants = np.concatenate([[float(hops_d.sum())], np.zeros(n), [m * longest]])
    return Terms(np.zeros(2 * n), 0.0, (Maximum(1.0, forms, constants),))


def period_terms(n: int, hops_p: Array, hops_d: Array, k: int, m: int, tokens: int) -> Terms:
    """Return the seconds between batches in steady state, prefills and decodes of neighbours overlapping.

    A station is busy k P_s + (n - 1) m D_s for every batch, and a request stays sum P + (n - 1) sum D at
    least: with one batch in flight, its successor cannot come sooner (Little's law).
    """
    rounds = float(max(tokens - 1, 0))
    busy = k * np.eye(n, 2 * n) + rounds * m * np.eye(n, 2 * n, n)
    whole = np.repeat([1.0, rounds], n)[None]
    hop_busy = float((k * hops_p + rounds * m * hops_d).max()) if len(hops_p) else 0.0
    constants = np.concatenate([np.zeros(n), [float(hops_p.sum() + rounds * hops_d.sum()), hop_busy]])
    forms = np.concatenate([busy, whole, np.zeros((1, 2 * n))])
    return Terms(np.zeros(2 * n), 0.0, (Maximum(1.0, forms, constants),))


def llmpq_terms(n: int, floor_p: Array, floor_d: Array, k: int, m: int, tokens: int) -> Terms:
    """Return F as LLM-PQ (arXiv 2403.01136) publishes it, each stage time at least its transfer."""
    eye, none = np.eye(2 * n), np.zeros((1, 2 * n))
    floors = np.concatenate([floor_p, floor_d])
    maxima = [
        Maximum(1.0, np.concatenate([eye[i : i + 1], none]), np.array([0.0, floor]))
        for i, floor in enumerate(floors)
    ]
    for weight, rows, floor in (
        (k - 1, slice(0, n), floor_p),
        ((m - 1) * (tokens - 1), slice(n, 2 * n), floor_d),
    ):
        forms = np.concatenate([eye[rows], none])
        maxima.append(Maximum(float(weight), forms, np.append(np.zeros(n), floor.max())))
    return Terms(np.zeros(2 * n), 0.0, tuple(maxima))
