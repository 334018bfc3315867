"""Evaluators of a model's quality, as studies and commands set them up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from dse.content import cache_dir
from dse.emulate.corpus import Corpus, Split, TokenSample, bos_token, load_corpus, sample_tokens, tokenize
from dse.emulate.device import chosen_device
from dse.emulate.model import EmulatedModel
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.units import Unit
from dse.policy import RuntimePolicy
from studies.schema import QualitySpec
from studies.weights import exceeds_memory

SENSITIVITY_DTYPE = "float32"  # bfloat16 has a noise floor above the effect of 8 bits
SENSITIVITY_STORE_BYTES = 2e8  # every rounded weight is used once or twice


def sensitivity_cache() -> Path:
    """Folder of finished sensitivity cells, shared by all studies of the user."""
    return cache_dir() / "sensitivity"


@dataclass(frozen=True)
class Bench:
    """A checkpoint with its corpus, from which evaluators are made; models are loaded on demand.

    Attributes:
        device: where models run; None takes the best there is.
    """

    source: ModelSource
    graph: OperatorGraph
    units: tuple[Unit, ...]
    quality: QualitySpec
    seed: int
    corpus: Corpus
    device: torch.device | None = None

    @classmethod
    def of(
        cls,
        source: ModelSource,
        graph: OperatorGraph,
        units: tuple[Unit, ...],
        quality: QualitySpec,
        seed: int,
        device: str | None = None,
    ) -> Bench:
        """Read the corpus.

        Args:
            source, graph, units, quality, seed: see the attributes.
            device: name of one, see ``chosen_device``.

        Raises:
            ConfigError: the corpus cannot be read or is empty; no such device.
        """
        place = chosen_device(device)
        return cls(source, graph, units, quality, seed, load_corpus(quality.corpus), place)

    def finalist_evaluator(
        self, policy: RuntimePolicy | None = None, calibration: TokenSample | None = None
    ) -> QualityEvaluator:
        """Return the evaluator of whole plans: the evaluation split, in the study's dtype."""
        sample = self.evaluation_sample()
        cache = cache_dir() / "quality"
        return QualityEvaluator(self._model, sample, cache=cache, policy=policy, calibration=calibration)

    def sensitivity_evaluator(self) -> QualityEvaluator:
        """Return the evaluator of single units: the calibration split in float32, blocks before reused.

        It has a model of its own, which goes with it: it is twice the size of the others.
        """
        model = EmulatedModel.load(
            self._folder,
            self.graph,
            self.units,
            dtype=SENSITIVITY_DTYPE,
            store_bytes=SENSITIVITY_STORE_BYTES,
            device=self.device,
        )
        sample = self._sample("calibration", self.quality.sensitivity_tokens)
        return QualityEvaluator(model, sample, cache=cache_dir() / "quality", keep_prefix=True)

    def trial_evaluator(self) -> QualityEvaluator:
        """Return the evaluator of trials: the calibration split, in the study's dtype."""
        sample = self._sample("calibration", self.quality.trial_tokens)
        return QualityEvaluator(self._model, sample, cache=cache_dir() / "quality")

    def streamed_model(self) -> StreamedModel:
        """Return the model with its weights on disk."""
        return StreamedModel.open(
            self._folder,
            self.graph,
            self.units,
            dtype=self.quality.dtype,
            gguf=self._unexpanded,
            device=self.device,
        )

    @property
    def exceeds_memory(self) -> bool:
        """Whether the weights are too large to be held, or were left in a GGUF file because of that."""
        size_bytes = sum(file.stat().st_size for file in self._weight_files)
        return self._unexpanded is not None or exceeds_memory(size_bytes)

    def evaluation_sample(self) -> TokenSample:
        """Return the tokens that whole plans are measured on."""
        return self._sample("evaluation", self.quality.tokens)

    def calibration_sample(self, n_tokens: int) -> TokenSample:
        """Return tokens of the calibration split, which no evaluation sees."""
        return self._sample("calibration", n_tokens)

    def _sample(self, split: Split, n_tokens: int) -> TokenSample:
        """Draw whole sequences, at least one."""
        length, limit = self.quality.sequence_length, self.graph.max_context
        if limit is not None and length > limit:
            raise ConfigError(
                f"is {length}, but {self.graph.model} ends at {limit} tokens", path="quality.sequence_length"
            )
        return sample_tokens(
            self.corpus,
            tokenize(self.corpus, self._folder),
            n_tokens=max(n_tokens // length, 1) * length,
            sequence_length=length,
            seed=self.seed,
            split=split,
            bos=bos_token(self._folder) if self.quality.bos else None,
        )

    @cached_property
    def _model(self) -> EmulatedModel:
        """The model in the study's dtype, loaded once."""
        dtype, device = self.quality.dtype, self.device
        return EmulatedModel.load(self._folder, self.graph, self.units, dtype=dtype, device=device)

    @property
    def _unexpanded(self) -> Path | None:
        """The GGUF file that still holds the weights, None where a folder does."""
        return None if self._weight_files else self.source.gguf

    @property
    def _weight_files(self) -> list[Path]:
        return list(self._folder.glob("*.safetensors"))

    @property
    def _folder(self) -> Path:
        assert self.source.weights is not None
        return self.source.weights
