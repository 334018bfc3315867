"""KL of the tokens of one sequence for all precisions of a unit, from one pass of the blocks behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dse.emulate.candidates import weights_by_sequence
from dse.emulate.differences import Differences, Passes
from dse.evaluate.quality import QualityEvaluator
from dse.evaluate.quality_scores import ReferenceScores, compare, kl_of_changes, reference_scores
from dse.formats.precision import Precision
from dse.graph.units import Unit

Values = NDArray[np.float64]


@dataclass(frozen=True)
class _Sequence:
    """One sequence: ids (1, length), scores and block outputs of the full-precision model."""

    ids: Tensor
    scores: ReferenceScores
    outputs: list[Tensor]

    def beginning(self, length: int) -> _Sequence:
        """Return the first tokens, which do not see the others."""
        scores = ReferenceScores(
            self.scores.probabilities[:length],
            self.scores.self_term[:length],
            self.scores.top1[:length],
            self.scores.nll[:, : length - 1],
        )
        return _Sequence(self.ids[:, :length], scores, [output[:, :length] for output in self.outputs])


class TokenKL:
    """Divergences of the tokens of an evaluator's sample.

    What stays in memory: of the whole sample the full-precision probabilities and block outputs, and of each
    beginning that was asked for what its linears read and gave (1 MB for each token of the demo model).
    """

    def __init__(self, evaluator: QualityEvaluator) -> None:
        """Prepare; nothing runs yet."""
        self._evaluator = evaluator
        self._model = evaluator.model
        self._differences = Differences(evaluator.model)
        self._beginnings: dict[int, Passes] = {}

    def beginning(self, unit: Unit, precisions: Sequence[Precision], row: int, length: int) -> list[Values]:
        """Return the KL (length,) in nats of each precision over the beginning of a sequence.

        Args:
            unit, precisions: what is changed; row: which sequence; length: always the same.
        """
        sequence = self._sequences[row].beginning(length)
        if not self._can_share(precisions):
            return self._alone(unit, precisions, sequence)
        if row not in self._beginnings:
            self._beginnings[row] = self._recorded(sequence, 0)
        return self._together(unit, precisions, sequence, self._beginnings[row])

    def everywhere(self, cells: Sequence[tuple[Unit, Sequence[Precision]]]) -> list[list[Values]]:
        """Return the KL (n_sequences, length) of each unit at each of its precisions."""
        rows: list[list[list[Values]]] = []
        first_layer = min(unit.layer for unit, _ in cells)
        for sequence in self._sequences:
            passes: Passes | None = None
            row = []
            for unit, precisions in cells:
                if not self._can_share(precisions):
                    row.append(self._alone(unit, precisions, sequence))
                    continue
                passes = passes or self._recorded(sequence, first_layer)
                row.append(self._together(unit, precisions, sequence, passes))
            rows.append(row)
        return [
            [np.stack([row[cell][index] for row in rows]) for index in range(len(precisions))]
            for cell, (_, precisions) in enumerate(cells)
        ]

    def _can_share(self, precisions: Sequence[Precision]) -> bool:
        """Whether a pass will do for all: formats of weights only, and logits straight from a linear."""
        weights_only = all(
            p.activations.is_float and p.kv.is_float and not p.weights.is_float for p in precisions
        )
        return weights_only and self._differences.head is not None

    def _together(
        self, unit: Unit, precisions: Sequence[Precision], sequence: _Sequence, passes: Passes
    ) -> list[Values]:
        """One pass for all, whose products are of differences: within a few thousandths of ``_alone``."""
        batch = len(precisions)
        paths = [self._model.path(unit.layer, op) for op in unit.ops]
        shared = [output.expand(batch, -1, -1) for output in sequence.outputs[: unit.layer]]
        with (
            torch.inference_mode(),
            weights_by_sequence(self._model, paths, [precision.weights for precision in precisions]),
            self._model.replayed(shared),
            self._differences.applied(passes, paths) as read,
        ):
            self._model.logits(sequence.ids.expand(batch, -1))
            kl = torch.empty(read[-1].shape[:2], dtype=torch.float64, device=read[-1].device)
            for part, changes in self._differences.logit_changes(read[-1], passes):
                for index in range(batch):
                    kl[index, part] = kl_of_changes(sequence.scores.probabilities[part], changes[index])
        return list(kl.cpu().numpy())

    def _alone(self, unit: Unit, precisions: Sequence[Precision], sequence: _Sequence) -> list[Values]:
        """One pass in float32 after the other."""
        found: list[Values] = []
        for precision in precisions:
            formats = self._model.expand([(unit, precision)])
            with self._model.applied(formats), self._model.replayed(sequence.outputs[: unit.layer]):
                logits = self._model.logits(sequence.ids)
            found.append(compare(logits, sequence.ids, sequence.scores).kl.cpu().numpy())
        return found

    def _recorded(self, sequence: _Sequence, first_layer: int) -> Passes:
        """Return what the linears from a block on do."""
        with self._model.replayed(sequence.outputs[:first_layer]), self._differences.recorded() as passes:
            self._model.logits(sequence.ids)
        return passes

    @cached_property
    def _sequences(self) -> list[_Sequence]:
        found = []
        for ids in self._model.tokens(self._evaluator.sample).split(1):
            with torch.inference_mode(), self._model.recorded() as outputs:
                logits = self._model.logits(ids)
            scores = reference_scores(logits, ids, torch.float32)
            found.append(_Sequence(ids, scores, [_hidden(output) for output in outputs]))
        return found


def _hidden(output: object) -> Tensor:
    """Return the hidden states that a block gives; older architectures wrap them in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden
