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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dse.content import canonical_json, content_hash, write_atomic
from dse.emulate.corpus import TokenSample
from dse.emulate.model import DTYPES, EmulatedModel, TensorFormats
from dse.emulate.runtime import applied_with, calibrated_ranges
from dse.emulate.static_activations import Ranges
from dse.errors import ConfigError
from dse.evaluate.quality_scores import ReferenceScores, TokenScores, compare, reference_scores
from dse.plan import Assignment
from dse.policy import RuntimePolicy

PROTOCOL = 1
BATCH_TOKENS = 1024
SCORED_ROWS = 256  # positions whose logits a score copies at a time

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
        policy: RuntimePolicy | None = None,
        calibration: TokenSample | None = None,
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            model: the model; sample: the tokens.
            cache: folder of finished evaluations, None to keep none.
            keep_prefix: reuse the unchanged blocks' outputs.
            batch_tokens: tokens of one forward pass (at least one sequence).
            policy: how quantized models run; the reference has none.
            calibration: tokens for static activation ranges, where the policy has them.
        """
        self.model = model
        self.sample = sample
        self.cache = cache
        self.keep_prefix = keep_prefix
        self.derived: dict[str, Any] = {}  # what sensitivity metrics share: passes of the model as it is
        self.policy = policy or RuntimePolicy()
        self.calibration = calibration
        self._ranges: Ranges | None = None
        self._reference_hash = model.hash
        self._n_sequences = max(1, batch_tokens // sample.sequence_length)
        self._batches: list[_ReferenceBatch] | None = None

    def identity(self) -> dict[str, Any]:
        """Return what every number from here depends on besides the assignment; part of cache keys."""
        changed = self.model.hash != self._reference_hash
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
            **({} if self.model.device.type == "cpu" else {"device": self.model.device_label}),
            **({"bos": self.sample.bos} if self.sample.bos is not None else {}),
            **({"reference": self._reference_hash} if changed and self._batches is not None else {}),
        }

    def reference(self, progress: Progress | None = None) -> Quality:
        """Return the quality of the unquantized model: its perplexity, KL 0, agreement 1."""
        return self._known_or(TensorFormats(), RuntimePolicy(), progress)

    def hold_reference(self) -> None:
        """Run the full-precision model now, so that a later change of the model is compared with it."""
        self._reference_batches()

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
        return self._known_or(formats, self.policy, progress)

    def _known_or(self, formats: TensorFormats, policy: RuntimePolicy, progress: Progress | None) -> Quality:
        place = self._place(formats, policy)
        if place is not None and place.is_file():
            return Quality(**json.loads(place.read_text(encoding="utf-8")))
        quality = self._measure(formats, policy, progress)
        if place is not None:
            write_atomic(place, canonical_json(quality.to_json()))
        return quality

    def measure(self, formats: TensorFormats, progress: Progress | None = None) -> Quality:
        """Return the quality from a forward pass, without looking at the cache."""
        return self._measure(formats, self.policy, progress)

    def mean_over_tokens(
        self, formats: TensorFormats, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> float:
        """Return the mean of a score over all positions, from a forward pass.

        Args:
            formats: what is quantized.
            score: (n,) of the reference's probabilities (n, V) and the quantized model's logits (n, V).
        """
        parts = []
        for batch, logits in self._forwards(formats, self.policy):
            rows = logits.flatten(0, 1).split(SCORED_ROWS)
            for p, part in zip(batch.scores.probabilities.split(SCORED_ROWS), rows, strict=True):
                parts.append(score(p, part))
        return float(torch.cat(parts).double().mean())

    def _measure(self, formats: TensorFormats, policy: RuntimePolicy, progress: Progress | None) -> Quality:
        batches = self._reference_batches()
        if formats.is_reference and policy.is_default:
            return self._quality([of_reference(batch.scores) for batch in batches], 0.0)
        start_s = time.perf_counter()
        scores: list[TokenScores] = []
        for batch, logits in self._forwards(formats, policy):
            scores.append(compare(logits, batch.ids, batch.scores))
            if progress is not None:
                progress(sum(len(part.kl) for part in scores), self.sample.n_tokens)
        return self._quality(scores, time.perf_counter() - start_s)

    def _forwards(
        self, formats: TensorFormats, policy: RuntimePolicy
    ) -> Iterator[tuple[_ReferenceBatch, torch.Tensor]]:
        """Yield (batch, its logits), run from the first block that differs where those before are known."""
        batches = self._reference_batches()
        first = 0 if not policy.is_default else formats.first_layer or 0
        with applied_with(self.model, formats, policy, self._ranges_for(policy)):
            for batch in batches:
                with torch.inference_mode(), self.model.replayed(batch.prefix[:first]):
                    yield batch, self.model.logits(batch.ids)

    def _ranges_for(self, policy: RuntimePolicy) -> Ranges | None:
        """Return ranges of static activations, measured once on the full-precision model."""
        if policy.static_activations and self._ranges is None:
            if self.calibration is None:
                raise ConfigError("static activation ranges need calibration tokens")
            self._ranges = calibrated_ranges(self.model, self.model.tokens(self.calibration))
        return self._ranges

    def _reference_batches(self) -> list[_ReferenceBatch]:
        if self._batches is None:
            self._batches = [
                self._reference_batch(part)
                for part in self.model.tokens(self.sample).split(self._n_sequences)
            ]
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
        return quality_of(scores, self.sample, time_s, self.model.folder.name)

    def _place(self, formats: TensorFormats, policy: RuntimePolicy) -> Path | None:
        if self.cache is None:
            return None
        key: list[Any] = [self.identity(), formats.to_json()]
        if not policy.is_default:
            used = self.calibration if policy.static_activations else None
            key.append([policy.to_json(), None if used is None else used.hash])
        return self.cache / f"{content_hash(key)}.json"


def quality_of(scores: list[TokenScores], sample: TokenSample, time_s: float, model: str) -> Quality:
    """Return the means over all tokens.

    Raises:
        ConfigError: logits that are not finite.
    """
    loss = float(torch.cat([part.nll.flatten() for part in scores]).mean())
    if not math.isfinite(loss):
        raise ConfigError(f"the logits of {model} are not finite under this assignment")
    return Quality(
        perplexity=math.exp(loss),
        kl_nats=float(torch.cat([part.kl for part in scores]).mean()),
        top1_agreement_frac=float(torch.cat([part.agrees for part in scores]).double().mean()),
        n_tokens=sample.n_tokens,
        sequence_length=sample.sequence_length,
        time_s=time_s,
    )


def of_reference(scores: ReferenceScores) -> TokenScores:
    """Return the scores of the full-precision model against itself."""
    agrees = torch.ones_like(scores.top1, dtype=torch.bool)
    return TokenScores(torch.zeros_like(scores.self_term), agrees, scores.nll)
