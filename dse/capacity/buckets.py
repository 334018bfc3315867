"""A load as length buckets with rates: what a fleet is planned for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.capacity.load import Floats, Load

PROMPT_EDGES = (1, 192, 384, 768, 1152, 1792, 3072, 4608, 9216, 18432, 36864, 73728, 147456)
OUTPUT_EDGES = (1, 48, 96, 160, 320, 640, 1280, 2560, 5120, 10240)
PEAK_WINDOW_S = 60.0
MIN_SHARE = 4e-3  # buckets with less are joined to the next longer one of their class


@dataclass(frozen=True)
class Buckets:
    """The buckets of all classes.

    Attributes:
        class_index: (D,) into ``classes`` of the load.
        prompt_tokens, output_tokens: (D,) means of the requests inside.
        share: (D,) of all requests; adds up to 1.
        rate_per_s: of all requests together.
        burstiness_cv2: squared coefficient of variation of the times between arrivals.
    """

    class_index: NDArray[np.intp]
    prompt_tokens: Floats
    output_tokens: Floats
    share: Floats
    rate_per_s: float
    burstiness_cv2: float

    def names(self, load: Load) -> tuple[str, ...]:
        """Return a name for each bucket, e.g. ``chat 512+128``."""
        return tuple(
            f"{load.classes[c].name} {p:.0f}+{n:.0f}"
            for c, p, n in zip(self.class_index, self.prompt_tokens, self.output_tokens, strict=True)
        )


def buckets_of(load: Load, rate_per_s: float | None = None) -> Buckets:
    """Sort the requests of a load into buckets.

    Args:
        load: the requests.
        rate_per_s: what to plan for; None takes the busiest minute (``peak_rate``).
    """
    row = np.digitize(load.prompt_tokens, PROMPT_EDGES[1:])
    column = np.digitize(load.output_tokens, OUTPUT_EDGES[1:])
    keys = np.stack([load.class_index, row, column], axis=1)
    cells, inverse = np.unique(keys, axis=0, return_inverse=True)
    cell = _joined(cells, inverse.ravel(), len(load))
    used = np.unique(cell)
    counts = np.array([(cell == index).sum() for index in used], dtype=np.float64)

    def mean(values: NDArray[np.int64]) -> Floats:
        return np.array([values[cell == index].mean() for index in used])

    return Buckets(
        class_index=np.array([cells[index][0] for index in used], dtype=np.intp),
        prompt_tokens=mean(load.prompt_tokens),
        output_tokens=mean(load.output_tokens),
        share=counts / len(load),
        rate_per_s=peak_rate(load) if rate_per_s is None else rate_per_s,
        burstiness_cv2=burstiness(load),
    )


def _joined(cells: NDArray[np.int64], cell: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return the cell of each request; rare ones join the next cell of their class (the last one before)."""
    counts = np.bincount(cell, minlength=len(cells)).astype(np.float64)
    target = np.arange(len(cells))
    for index in range(len(cells)):
        if counts[index] >= MIN_SHARE * n:
            continue
        after, before = index + 1, index - 1
        if after < len(cells) and cells[after][0] == cells[index][0]:
            into = after
        elif before >= 0 and cells[before][0] == cells[index][0]:
            into = int(target[before])
        else:
            continue
        counts[into] += counts[index]
        target[target == index] = into
    return target[cell]


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
