"""Measured quality of an assignment: an emulated quantized forward pass against the full-precision one.

Protocol 1: perplexity is exp of the mean next-token loss over all positions but the last of each sequence,
without a beginning-of-sequence token; KL(full || quantized) and top-1 agreement are means over all positions.
The full-precision model runs in the same dtype. In bfloat16 the rounding of the residual stream and of the
logits differs between any two models that differ at all, which adds a floor of 1e-3 to 2e-3 nats to every KL
(demo model; the floor falls with the number of blocks behind the change). float32 has no such floor and costs
about twice the time, so sensitivities are measured in float32.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dse.content import canonical_json, content_hash, write_atomic
from dse.emulate.corpus import TokenSample
from dse.emulate.model import DTYPES, EmulatedModel, TensorFormats
from dse.errors import ConfigError
from dse.evaluate.quality_scores import ReferenceScores, TokenScores, compare, reference_scores
from dse.plan import Assignment

PROTOCOL = 1
BATCH_TOKENS = 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quality:
    """Quality of one assignment.

    Attributes:
        perplexity: exp(mean next-token loss); kl_nats: mean KL(full || quantized) per token;
            top1_agreement_frac: share of tokens with the same most probable next token.
        n_tokens, sequence_length: what it was measured on.
        time_s: how long the measurement took when it was made; not part of equality.
    """

    perplexity: float
    kl_nats: float
    top1_agreement_frac: float
    n_tokens: int
    sequence_length: int
    time_s: float = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True)
class _ReferenceBatch:
    """One batch of sequences with the full-precision results; ``prefix``: what each block returned."""

    ids: torch.Tensor
    scores: ReferenceScores
    prefix: list[object]


class QualityEvaluator:
    """Evaluates assignments of one model on one sample of tokens.

    The reference's probabilities are kept in memory: n_tokens x vocabulary elements of the model's dtype,
    made once, on the first evaluation that the disk cache does not answer. With ``keep_prefix`` the outputs
    of all blocks are kept too (layers x n_tokens x width), and a forward pass starts at the first block that
    an assignment changes; the result is the same to the last bit.
    """

    def __init__(
        self,
        model: EmulatedModel,
        sample: TokenSample,
        *,
        cache: Path | None = None,
        keep_prefix: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            model: the model; sample: the tokens.
            cache: folder of finished evaluations, None to keep none.
            keep_prefix: reuse the unchanged blocks' outputs.
            batch_tokens: tokens of one forward pass (at least one sequence).
        """
        self.model = model
        self.sample = sample
        self.cache = cache
        self.keep_prefix = keep_prefix
        self._n_sequences = max(1, batch_tokens // sample.sequence_length)
        self._batches: list[_ReferenceBatch] | None = None

    def identity(self) -> dict[str, Any]:
        """Return what every number from here depends on besides the assignment; part of cache keys."""
        return {
            "protocol": PROTOCOL,
            "checkpoint": self.model.hash,
            "corpus": self.sample.corpus_hash,
            "sample": self.sample.hash,
            "n_tokens": self.sample.n_tokens,
            "sequence_length": self.sample.sequence_length,
            "batch_sequences": self._n_sequences,
            "seed": self.sample.seed,
            "dtype": self.model.dtype,
            "n_threads": self.model.n_threads,
            "torch": torch.__version__,
        }

    def reference(self, progress: Progress | None = None) -> Quality:
        """Return the quality of the unquantized model: its perplexity, KL 0, agreement 1."""
        return self.evaluate_formats(TensorFormats(), progress)

    def evaluate(self, assignment: Assignment, progress: Progress | None = None) -> Quality:
        """Return the quality of an assignment, from the cache where it is known.

        Args:
            assignment: precisions of the model's units; those left out stay in full precision.
            progress: called with (tokens done, tokens in all).

        Raises:
            ConfigError: unknown units, or a format that cannot be emulated.
        """
        return self.evaluate_formats(self.model.formats_of(assignment), progress)

    def evaluate_formats(self, formats: TensorFormats, progress: Progress | None = None) -> Quality:
        """Like ``evaluate``, for expanded formats."""
        place = self._place(formats)
        if place is not None and place.is_file():
            return Quality(**json.loads(place.read_text(encoding="utf-8")))
        quality = self.measure(formats, progress)
        if place is not None:
            write_atomic(place, canonical_json(quality.to_json()))
        return quality

    def measure(self, formats: TensorFormats, progress: Progress | None = None) -> Quality:
        """Return the quality from a forward pass, without looking at the cache."""
        batches = self._reference_batches()
        start_s = time.perf_counter()
        scores: list[TokenScores] = []
        with self.model.applied(formats):
            for batch in batches:
                scores.append(self._score(batch, formats))
                if progress is not None:
                    progress(sum(len(part.kl) for part in scores), self.sample.n_tokens)
        return self._quality(scores, time.perf_counter() - start_s)

    def _score(self, batch: _ReferenceBatch, formats: TensorFormats) -> TokenScores:
        """Run one batch, from the first block that differs on where the blocks before are known."""
        if formats.is_reference:
            reference = batch.scores
            return TokenScores(
                torch.zeros_like(reference.self_term),
                torch.ones_like(reference.top1, dtype=torch.bool),
                reference.nll,
            )
        with torch.inference_mode(), self.model.replayed(batch.prefix[: formats.first_layer or 0]):
            return compare(self.model.logits(batch.ids), batch.ids, batch.scores)

    def _reference_batches(self) -> list[_ReferenceBatch]:
        if self._batches is None:
            ids = torch.from_numpy(self.sample.ids).long()
            self._batches = [self._reference_batch(part) for part in ids.split(self._n_sequences)]
        return self._batches

    def _reference_batch(self, ids: torch.Tensor) -> _ReferenceBatch:
        dtype = DTYPES[self.model.dtype]
        with torch.inference_mode():
            if not self.keep_prefix:
                return _ReferenceBatch(ids, reference_scores(self.model.logits(ids), ids, dtype), [])
            with self.model.recorded() as outputs:
                logits = self.model.logits(ids)
            return _ReferenceBatch(ids, reference_scores(logits, ids, dtype), outputs)

    def _quality(self, scores: list[TokenScores], time_s: float) -> Quality:
        loss = float(torch.cat([part.nll.flatten() for part in scores]).mean())
        if not math.isfinite(loss):
            raise ConfigError(f"the logits of {self.model.folder.name} are not finite under this assignment")
        return Quality(
            perplexity=math.exp(loss),
            kl_nats=float(torch.cat([part.kl for part in scores]).mean()),
            top1_agreement_frac=float(torch.cat([part.agrees for part in scores]).double().mean()),
            n_tokens=self.sample.n_tokens,
            sequence_length=self.sample.sequence_length,
            time_s=time_s,
        )

    def _place(self, formats: TensorFormats) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / f"{content_hash([self.identity(), formats.to_json()])}.json"
