"""What is not separable: trials of whole assignments, measured, placed and priced, led by TPE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dse.evaluate.quality import QualityEvaluator
from dse.search.pareto import hypervolume
from dse.search.tpe import Choices, Evaluation, SearchOutcome, SearchTrial, run_search
from studies.arrange import Arranger, Candidate
from studies.progress import StudyProgress

OBJECTIVES = ("kl_nats", "total_s", "energy_j_per_token", "memory_total_bytes")


@dataclass(frozen=True)
class Trials:
    """The search over assignments of a study.

    Every trial is placed exactly, priced by the cost table and measured by a forward pass on the calibration
    tokens, so the sampler sees how units interact. The sampler's choices are ordered by summed penalty, which
    makes neighbouring indices alike.
    """

    arranger: Arranger
    evaluator: QualityEvaluator

    @property
    def order(self) -> NDArray[np.int64]:
        """(K) precision indices of the search, least penalty first."""
        total = self.arranger.sensitivity.penalty.sum(axis=0)
        names = [precision.name for precision in self.arranger.sensitivity.precisions]
        usable = np.flatnonzero(self.arranger.searched[0])
        wanted = [self.arranger.prepared.precisions[q].name for q in usable]
        return usable[np.argsort([total[names.index(name)] for name in wanted], kind="stable")]

    def run(
        self, seeds: Sequence[Candidate], n_trials: int, journal: Path, progress: StudyProgress
    ) -> SearchOutcome:
        """Search or go on searching; the seeds are the first trials."""
        position = {int(q): k for k, q in enumerate(self.order)}
        opening = [
            tuple(position[q] for q in self.arranger.choices_of(seed.plan.assignment))
            for seed in seeds
            if all(q in position for q in self.arranger.choices_of(seed.plan.assignment))
        ]

        def report(trial: SearchTrial, total: int) -> None:
            progress.advance(trial.number + 1, total)

        units = self.arranger.prepared.units
        return run_search(
            self.evaluate,
            [len(self.order)] * len(units),
            seeds=opening,
            n_trials=max(n_trials, len(set(opening))),
            journal=journal,
            seed=self.arranger.study.seed,
            objectives=OBJECTIVES,
            names=[unit.name for unit in units],
            progress=report,
        )

    def evaluate(self, trial: Choices) -> Evaluation:
        """Place, price and measure one assignment; where it does not fit, the bytes that are missing."""
        choices = self.precisions_of(trial)
        candidate = self.arranger.place_or_overflow(choices, "trial", "tpe")
        measured = self.evaluator.evaluate(candidate.plan.assignment)
        predicted = candidate.predicted
        values = (
            measured.kl_nats,
            predicted.total_s,
            predicted.energy_j_per_token,
            predicted.memory_total_bytes,
        )
        return Evaluation(values, {"missing_bytes": predicted.missing_bytes})

    def precisions_of(self, trial: Choices) -> tuple[int, ...]:
        """Return the precision index of every unit of a trial.

        Where no device runs all the precisions of a layer together, the layer takes that of its first unit:
        the sampler's indices stand for the nearest assignment that can run.
        """
        supported = self.arranger.prepared.table.supported
        picks = [int(self.order[k]) for k in trial]
        layers: dict[int, list[int]] = {}
        for u, unit in enumerate(self.arranger.prepared.units):
            layers.setdefault(unit.layer, []).append(u)
        for members in layers.values():
            if not supported[:, [picks[u] for u in members]].all(axis=1).any():
                for u in members:
                    picks[u] = picks[members[0]]
        return tuple(picks)


def volumes(outcome: SearchOutcome) -> dict[str, float | None]:
    """Return the hypervolume of the seeds, of the sampler's trials, and of both, on one scale.

    Each objective is divided by its reference, so that the volume is a share of the reference box.
    """
    reference = np.array(outcome.reference)
    feasible = [trial for trial in outcome.trials if trial.feasible]

    def volume(trials: Sequence[SearchTrial]) -> float | None:
        if not trials:
            return None
        return hypervolume(np.array([trial.values for trial in trials]) / reference, np.ones(len(reference)))

    return {
        "exact": volume([trial for trial in feasible if trial.origin == "seed"]),
        "tpe": volume([trial for trial in feasible if trial.origin != "seed"]),
        "combined": volume(feasible),
    }
