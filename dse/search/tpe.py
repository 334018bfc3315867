"""Multi-objective search by Optuna's multivariate TPE, for objectives that are not separable.

A study lives in one journal file and can be killed at any moment: the next call of ``run_search`` with the
same arguments goes on, and ends with the same trials as a run that was never stopped. For that, the sampler
of the k-th finished trial gets its own seed from (seed, k), so that a suggestion depends on the finished
trials alone.

Choices are suggested as ordered integers: with seeds from an exact front that beats categories (hypervolume
29.65 against 29.14, the seeds alone 29.08, exact 29.94; 28 variables, 300 trials, the toy of
tests/unit/search/test_toy.py). So the choices of a variable should be sorted, for example by their bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dse.content import content_hash
from dse.errors import ConfigError
from dse.search.pareto import hypervolume, hypervolume_gain, pareto_front

if TYPE_CHECKING:
    import optuna

Array = NDArray[np.float64]
Choices = tuple[int, ...]
STUDY_NAME = "dse"
N_STARTUP = 16  # random trials where fewer seeds than this are given
REFERENCE_MARGIN_FRAC = 0.1


@dataclass(frozen=True)
class Evaluation:
    """What the objective returns: values to minimise, and constraints that hold where they are at most 0."""

    values: tuple[float, ...]
    constraints: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class SearchTrial:
    """A finished trial; ``number`` counts finished ones from 0, ``origin`` says who proposed it."""

    number: int
    choices: Choices
    values: tuple[float, ...]
    constraints: Mapping[str, float] = field(hash=False)
    origin: Literal["seed", "random", "tpe"] = "tpe"

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds."""
        return all(value <= 0 for value in self.constraints.values())


@dataclass(frozen=True)
class SearchOutcome:
    """Result of a search.

    Attributes:
        trials: finished ones in order; front: numbers of the feasible non-dominated ones, by values.
        reference: point of the hypervolume; hypervolume: after every trial.
        stopped: "trials" (all made) or "converged" (the hypervolume no longer grows).
    """

    trials: tuple[SearchTrial, ...]
    front: tuple[int, ...]
    objectives: tuple[str, ...]
    reference: tuple[float, ...]
    hypervolume: tuple[float, ...]
    stopped: Literal["trials", "converged"]


@dataclass(frozen=True)
class Patience:
    """Stop once the last ``n_trials`` raised the hypervolume by less than ``min_gain_frac`` of it."""

    n_trials: int = 50
    min_gain_frac: float = 1e-3


def run_search(
    objective: Callable[[Choices], Evaluation],
    space: Sequence[int],
    *,
    seeds: Sequence[Choices],
    n_trials: int,
    journal: Path,
    seed: int,
    objectives: tuple[str, ...],
    names: Sequence[str] | None = None,
    reference: tuple[float, ...] | None = None,
    patience: Patience | None = None,
    progress: Callable[[SearchTrial, int], None] | None = None,
) -> SearchOutcome:
    """Search or go on searching until ``n_trials`` are finished. One process per journal at a time.

    Args:
        objective: evaluates choices (one index per variable); called once per distinct choices.
        space: number of choices of every variable; order them, see above.
        seeds: choices to evaluate first, in order; repeated ones count once.
        n_trials: finished trials in all, seeds included.
        journal: file of the study, made where it is absent.
        seed: of all randomness.
        objectives: names, the length of every evaluation's values.
        names: of the variables, for other readers of the journal; default ``unit 0``...
        reference: of the hypervolume; None for the worst values of the opening trials plus a tenth of their
            range.
        patience: stop criterion, None to make all trials.
        progress: called after every trial of this process with the trial and ``n_trials``.

    Raises:
        ConfigError: the journal belongs to another search, or arguments do not fit together.
    """
    names = [f"unit {i}" for i in range(len(space))] if names is None else list(names)
    opening = _opening(space, seeds, names, n_trials)
    identity = content_hash(
        {
            "space": list(space),
            "names": names,
            "seeds": [list(choices) for choices in opening],
            "seed": seed,
            "objectives": list(objectives),
        }
    )
    study = _open_study(journal, objectives, identity)
    _fail_stale_trials(study)
    run = _Run(study, objective, names, list(space), opening, seed, len(objectives))
    done = run.finished()
    n_opening = min(max(len(opening), N_STARTUP), n_trials)
    tracker = _Tracker(reference, n_opening, patience)
    for trial in done:
        tracker.add(trial)
    while len(done) < n_trials and not tracker.converged:
        done.append(run.step(done))
        tracker.add(done[-1])
        if progress is not None:
            progress(done[-1], n_trials)
    return tracker.outcome(tuple(done), objectives)


def _opening(
    space: Sequence[int], seeds: Sequence[Choices], names: Sequence[str], n_trials: int
) -> list[Choices]:
    """Check the arguments and return the distinct seeds."""
    if n_trials < 1:
        raise ConfigError(f"must be at least 1, but got {n_trials}", path="n_trials", value=n_trials)
    if len(names) != len(space) or len(set(names)) != len(names):
        raise ConfigError("names must be distinct and as many as variables", path="names")
    for position, choices in enumerate(seeds):
        if len(choices) != len(space) or any(not 0 <= k < n for k, n in zip(choices, space, strict=True)):
            raise ConfigError(
                f"needs {len(space)} indices below {tuple(space)}, but got {tuple(choices)}",
                path=f"seeds.{position}",
            )
    return list(dict.fromkeys(tuple(int(k) for k in choices) for choices in seeds))


def _open_study(journal: Path, objectives: tuple[str, ...], identity: str) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.parent.mkdir(parents=True, exist_ok=True)
    _drop_half_written_line(journal)
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=STUDY_NAME,
                storage=JournalStorage(JournalFileBackend(str(journal))),
                directions=["minimize"] * len(objectives),
                sampler=optuna.samplers.RandomSampler(seed=0),
                load_if_exists=True,
            )
            known = study.user_attrs.get("identity")
            if known is None:
                study.set_metric_names(list(objectives))
                study.set_user_attr("identity", identity)
    finally:
        optuna.logging.set_verbosity(quiet)
    if known not in (None, identity):
        raise ConfigError(
            "holds another search (other space, seeds, seed or objectives): choose another file or delete it",
            file=str(journal),
        )
    return study


def _drop_half_written_line(journal: Path) -> None:
    """Cut off what a killed process wrote of its last record.

    Optuna skips such a line when it reads, but appends to it when it writes, which damages the next record.
    """
    if not journal.exists():
        return
    with journal.open("r+b") as handle:
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)


def _fail_stale_trials(study: optuna.Study) -> None:
    """Fail what a killed process left running. Its choices come again: finished trials determine them."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


@dataclass
class _Run:
    """The moving parts of one call."""

    study: optuna.Study
    objective: Callable[[Choices], Evaluation]
    names: list[str]
    space: list[int]
    opening: list[Choices]
    seed: int
    n_objectives: int

    def finished(self) -> list[SearchTrial]:
        """Read the finished trials of the journal."""
        from optuna.trial import TrialState

        found = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [
            SearchTrial(
                number,
                tuple(int(trial.params[name]) for name in self.names),
                tuple(trial.values),
                dict(trial.constraints),
                trial.user_attrs["origin"],
            )
            for number, trial in enumerate(found)
        ]

    def step(self, done: list[SearchTrial]) -> SearchTrial:
        """Make the next trial. Its choices depend on the finished ones and the seed alone."""
        from optuna.trial import TrialState

        choices, origin = self._propose(done)
        trial = self._start(choices, origin)
        known = next((t for t in done if t.choices == choices), None)
        try:
            if known is not None:
                result = Evaluation(known.values, known.constraints)
            else:
                result = self._checked(self.objective(choices))
        except Exception:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        for key, value in result.constraints.items():
            trial.set_constraint(key, value)
        self.study.tell(trial, list(result.values))
        return SearchTrial(len(done), choices, result.values, dict(result.constraints), origin)

    def _checked(self, result: Evaluation) -> Evaluation:
        numbers = (*result.values, *result.constraints.values())
        if len(result.values) != self.n_objectives or not all(math.isfinite(x) for x in numbers):
            raise ValueError(f"an evaluation needs {self.n_objectives} finite values, but got {result}")
        return Evaluation(tuple(float(v) for v in result.values), dict(result.constraints))

    def _start(self, choices: Choices, origin: str) -> optuna.Trial:
        """Enqueue the choices and take them up.

        The trial is stored with its parameters in one record; suggesting them one by one would write (and
        sync) a record for every variable.
        """
        from optuna.trial import TrialState, create_trial

        params = dict(zip(self.names, choices, strict=True))
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not any(trial.params == params for trial in waiting):
            self.study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=params,
                    distributions=self._distributions(),
                    user_attrs={"origin": origin},
                )
            )
        return self.study.ask()

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import IntDistribution

        return {name: IntDistribution(0, n - 1) for name, n in zip(self.names, self.space, strict=True)}

    def _propose(self, done: list[SearchTrial]) -> tuple[Choices, Literal["seed", "random", "tpe"]]:
        index = len(done)
        if index < len(self.opening):
            return self.opening[index], "seed"
        rng = np.random.default_rng((self.seed, index))
        if index < N_STARTUP:
            return tuple(int(rng.integers(n)) for n in self.space), "random"
        return self._sample_tpe(int(rng.integers(2**31))), "tpe"

    def _sample_tpe(self, seed: int) -> Choices:
        import optuna
        from optuna.trial import TrialState, create_trial

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # the liar is for parallel workers; unfinished trials must not change what is suggested here
            sampler = optuna.samplers.TPESampler(
                multivariate=True, seed=seed, n_startup_trials=1, constant_liar=False
            )
            # a variable with one choice is left out of the sampler's space
            space = {name: d for name, d in self._distributions().items() if d.high > 0}
            sampled = sampler.sample_relative(self.study, create_trial(state=TrialState.RUNNING), space)
        return tuple(int(sampled.get(name, 0)) for name in self.names)


@dataclass
class _Tracker:
    """Follows the hypervolume and decides when to stop."""

    reference: tuple[float, ...] | None
    n_opening: int
    patience: Patience | None
    values: list[tuple[float, ...]] = field(default_factory=list)
    feasible: list[bool] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    front: Array | None = None

    def add(self, trial: SearchTrial) -> None:
        """Take up the next finished trial."""
        self.values.append(trial.values)
        self.feasible.append(trial.feasible)
        if self.reference is None and len(self.values) < self.n_opening:
            return
        limit = np.array(self._reference())
        for i in range(len(self.progress), len(self.values)):
            self.progress.append(self._grown(i, limit))

    def _grown(self, i: int, limit: Array) -> float:
        before = self.progress[-1] if self.progress else 0.0
        if self.front is None:
            self.front = np.empty((0, len(limit)))
        if not self.feasible[i]:
            return before
        point = np.array(self.values[i])
        gain = hypervolume_gain(point, self.front, limit)
        if gain <= 0:
            return before
        together = np.concatenate([self.front, point[None]])
        self.front = together[pareto_front(together)]
        return before + gain

    def _reference(self) -> tuple[float, ...]:
        if self.reference is None:
            opening = np.array(self.values[: self.n_opening])
            worst, best = opening.max(axis=0), opening.min(axis=0)
            span = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
            self.reference = tuple(float(v) for v in worst + REFERENCE_MARGIN_FRAC * span)
        return self.reference

    @property
    def converged(self) -> bool:
        """Whether the stop criterion is met."""
        if self.patience is None or len(self.progress) <= self.n_opening + self.patience.n_trials:
            return False
        now, before = self.progress[-1], self.progress[-1 - self.patience.n_trials]
        return now - before < self.patience.min_gain_frac * now

    def outcome(self, trials: tuple[SearchTrial, ...], objectives: tuple[str, ...]) -> SearchOutcome:
        """Return the result; the final hypervolume is computed afresh."""
        good = [t for t in trials if t.feasible]
        values = np.array([t.values for t in good]).reshape(-1, len(objectives))
        front = tuple(good[i].number for i in pareto_front(values)) if good else ()
        limit = self._reference()
        progress = list(self.progress)
        if progress:
            progress[-1] = hypervolume(values, limit) if good else 0.0
        return SearchOutcome(
            trials, front, objectives, limit, tuple(progress), "converged" if self.converged else "trials"
        )
