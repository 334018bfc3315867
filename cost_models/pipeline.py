"""Times of a pipeline of stages: the closed forms that every planner and report uses.

The decode ring follows the corrected algebra: a new token of micro-batch 0 needs every stage, and each stage
serves every micro-batch once a round, so a round takes the larger of the two (LLM-PQ, arXiv 2403.01136,
charges (m - 1) times the slowest stage instead and nothing at all for one micro-batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class PipelineTimes:
    """Times of a batch job on a pipeline.

    Attributes:
        ttft_s: until every request of the batch has its first token (makespan of the prefill).
        tpot_s: one decode round, the time between two tokens of one sequence.
        total_s: until the last token.
        bubble_frac: idle share of the stages over the prefill.
    """

    ttft_s: float
    tpot_s: float
    total_s: float
    bubble_frac: float


def pipeline_times(
    prefill_stage_s: ArrayLike,
    decode_stage_s: ArrayLike,
    prefill_hop_s: ArrayLike,
    decode_hop_s: ArrayLike,
    n_prefill_micro_batches: int,
    n_decode_micro_batches: int,
    output_tokens: int,
) -> PipelineTimes:
    """Return the times of a batch job.

    Args:
        prefill_stage_s, decode_stage_s: (S,) time of one micro-batch on each stage.
        prefill_hop_s: (S - 1,) transfer to the next stage. A link carries one micro-batch at a time, so it
            is a station of the pipeline like a stage.
        decode_hop_s: (S - 1,) likewise; the sampled token's way back to the first stage is not counted.
        n_prefill_micro_batches, n_decode_micro_batches: micro-batches in the batch.
        output_tokens: n; the first comes out of the prefill, so there are n - 1 decode rounds.

    Notes:
        prefill: sum of all stations + (k - 1) * slowest station (flow shop with equal jobs).
        decode: (n - 1) * max(sum of stations, m * slowest station).
    """
    prefill = np.concatenate([np.asarray(prefill_stage_s, float), np.asarray(prefill_hop_s, float)])
    decode = np.concatenate([np.asarray(decode_stage_s, float), np.asarray(decode_hop_s, float)])
    ttft_s = float(prefill.sum() + (n_prefill_micro_batches - 1) * prefill.max())
    round_s = float(max(decode.sum(), n_decode_micro_batches * decode.max()))
    stages = np.asarray(prefill_stage_s, float)
    busy_frac = n_prefill_micro_batches * stages.sum() / (len(stages) * ttft_s) if ttft_s > 0 else 1.0
    return PipelineTimes(
        ttft_s, round_s, ttft_s + (output_tokens - 1) * round_s, float(1 - min(1.0, busy_frac))
    )
