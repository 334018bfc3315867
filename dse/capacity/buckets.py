"""A load as length buckets with rates: what a fleet is planned for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.capacity.load import Counts, Floats, Load

PROMPT_EDGES = (192, 384, 768, 1152, 1792, 3072, 4608, 9216, 18432, 36864, 73728, 147456)
OUTPUT_EDGES = (48, 96, 160, 320, 640, 1280, 2560, 5120, 10240)
PEAK_WINDOW_S = 60.0
MIN_SHARE = 4e-3  # ranges with less of all requests are joined to the next ones
Range = tuple[int, int | None]


@dataclass(frozen=True)
class Buckets:
    """The buckets of all classes.

    Attributes:
        class_index: (D,) into ``classes`` of the load.
        prompt_tokens, output_tokens: (D,) means of the requests inside.
        share: (D,) of all requests; adds up to 1.
        rate_per_s: of all requests together.
        burstiness_cv2: squared coefficient of variation of the times between arrivals.
        prompt_ranges, output_ranges: (D) from the first up to and without the second, None for no bound.
    """

    class_index: NDArray[np.intp]
    prompt_tokens: Floats
    output_tokens: Floats
    share: Floats
    rate_per_s: float
    burstiness_cv2: float
    prompt_ranges: tuple[Range, ...] = ()
    output_ranges: tuple[Range, ...] = ()


def buckets_of(load: Load, rate_per_s: float | None = None) -> Buckets:
    """Sort the requests of a load into buckets of prompts, and each of those into buckets of outputs.

    Args:
        load: the requests.
        rate_per_s: what to plan for; None takes the busiest minute (``peak_rate``).
    """
    found: list[tuple[int, Range, Range, float, float, float]] = []
    n = len(load)
    for c in range(len(load.classes)):
        mine = load.class_index == c
        for prompts in _ranges(load.prompt_tokens[mine], PROMPT_EDGES, n):
            row = mine & _inside(load.prompt_tokens, prompts)
            for outputs in _ranges(load.output_tokens[row], OUTPUT_EDGES, n):
                cell = row & _inside(load.output_tokens, outputs)
                mean = (float(load.prompt_tokens[cell].mean()), float(load.output_tokens[cell].mean()))
                found.append((c, prompts, outputs, *mean, float(cell.sum()) / n))
    classes, prompts_of, outputs_of, prompt, output, share = zip(*found, strict=True)
    return Buckets(
        class_index=np.array(classes, dtype=np.intp),
        prompt_tokens=np.array(prompt),
        output_tokens=np.array(output),
        share=np.array(share),
        rate_per_s=peak_rate(load) if rate_per_s is None else rate_per_s,
        burstiness_cv2=burstiness(load),
        prompt_ranges=tuple(prompts_of),
        output_ranges=tuple(outputs_of),
    )


def _inside(values: Counts, limits: Range) -> NDArray[np.bool_]:
    low, high = limits
    return (values >= low) & (values < (np.inf if high is None else high))


def _ranges(values: Counts, edges: tuple[int, ...], n: int) -> list[Range]:
    """Return ranges that cover all lengths, each with ``MIN_SHARE`` of n (or one range with all)."""
    if not len(values):
        return []
    cuts = [1]
    for edge in edges:
        inside = int(((values >= cuts[-1]) & (values < edge)).sum())
        left = int((values >= edge).sum())
        if inside >= max(1.0, MIN_SHARE * n) and left >= max(1.0, MIN_SHARE * n):
            cuts.append(edge)
    highs: list[int | None] = [*cuts[1:], None]
    return list(zip(cuts, highs, strict=True))


def peak_rate(load: Load, window_s: float = PEAK_WINDOW_S) -> float:
    """Return the requests/s of the busiest window, or the mean of a load shorter than two windows."""
    if load.duration_s < 2 * window_s:
        return load.rate_per_s
    edges = np.arange(0.0, load.duration_s - window_s / 2, window_s)
    counts = np.histogram(load.arrival_s, bins=np.append(edges, edges[-1] + window_s))[0]
    # What a Poisson process of the mean rate would show anyway is luck of the draw, not a busy time.
    luck = 2.0 * np.sqrt(load.rate_per_s * window_s)
    return max(load.rate_per_s, float(counts.max() - luck) / window_s)


def burstiness(load: Load) -> float:
    """Return the squared coefficient of variation of times between arrivals, within spells of steady rate."""
    gaps = np.diff(load.arrival_s)
    if len(gaps) < 3 or gaps.sum() <= 0:
        return 1.0
    size = min(len(gaps), 200)
    parts = np.array_split(gaps, max(1, len(gaps) // size))
    values = [part.var() / part.mean() ** 2 for part in parts if part.mean() > 0]
    return float(np.mean(values)) if values else 1.0
