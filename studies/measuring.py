"""Evaluators of a model's quality, as studies and commands set them up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dse.content import cache_dir
from dse.emulate.corpus import Corpus, Split, load_corpus, sample_tokens, tokenize
from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.units import Unit
from studies.schema import QualitySpec

SENSITIVITY_DTYPE = "float32"  # bfloat16 has a noise floor above the effect of 8 bits


def sensitivity_cache() -> Path:
    """Folder of finished sensitivity cells, shared by all studies of the user."""
    return cache_dir() / "sensitivity"


@dataclass(frozen=True)
class Bench:
    """A checkpoint with its corpus, from which evaluators are made; models are loaded on demand."""

    source: ModelSource
    graph: OperatorGraph
    units: tuple[Unit, ...]
    quality: QualitySpec
    seed: int
    corpus: Corpus

    @classmethod
    def of(
        cls,
        source: ModelSource,
        graph: OperatorGraph,
        units: tuple[Unit, ...],
        quality: QualitySpec,
        seed: int,
    ) -> Bench:
        """Read the corpus.

        Raises:
            ConfigError: the corpus cannot be read or is empty.
        """
        path = None if quality.corpus is None else Path(quality.corpus).expanduser()
        return cls(source, graph, units, quality, seed, load_corpus(path))

    def finalist_evaluator(self) -> QualityEvaluator:
        """Return the evaluator of whole plans: the evaluation split in the study's dtype."""
        return self._evaluator("evaluation", self.quality.tokens, self.quality.dtype, keep_prefix=False)

    def sensitivity_evaluator(self) -> QualityEvaluator:
        """Return the evaluator of single units: the calibration split in float32, blocks before reused."""
        return self._evaluator(
            "calibration", self.quality.sensitivity_tokens, SENSITIVITY_DTYPE, keep_prefix=True
        )

    def trial_evaluator(self, sensitivity: QualityEvaluator) -> QualityEvaluator:
        """Return the evaluator of trials: the sensitivities' sample, in the study's dtype."""
        model = self._model(self.quality.dtype)
        return QualityEvaluator(model, sensitivity.sample, cache=cache_dir() / "quality")

    def _evaluator(self, split: Split, n_tokens: int, dtype: str, *, keep_prefix: bool) -> QualityEvaluator:
        model = self._model(dtype)
        length = self.quality.sequence_length
        limit = self.graph.max_context
        if limit is not None and length > limit:
            raise ConfigError(
                f"is {length}, but {self.graph.model} ends at {limit} tokens", path="quality.sequence_length"
            )
        sample = sample_tokens(
            self.corpus,
            tokenize(self.corpus, self._folder),
            n_tokens=max(n_tokens // length, 1) * length,
            sequence_length=length,
            seed=self.seed,
            split=split,
        )
        return QualityEvaluator(model, sample, cache=cache_dir() / "quality", keep_prefix=keep_prefix)

    def _model(self, dtype: str) -> EmulatedModel:
        return EmulatedModel.load(self._folder, self.graph, self.units, dtype=dtype)

    @property
    def _folder(self) -> Path:
        assert self.source.weights is not None
        return self.source.weights
