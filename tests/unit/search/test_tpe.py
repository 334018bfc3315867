"""The resumable search. Oracle: the uninterrupted run with the same seed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dse.errors import ConfigError
from dse.search.pareto import hypervolume
from dse.search.tpe import Choices, Evaluation, Patience, SearchOutcome, run_search

ROOT = Path(__file__).resolve().parents[3]
SPACE = (4, 3, 4, 1, 4)
SEEDS = ((0, 0, 0, 0, 0), (3, 2, 3, 0, 3), (0, 0, 0, 0, 0), (1, 1, 1, 0, 1))


def objective(choices: Choices) -> Evaluation:
    """Bits against a loss with an interaction of the first two variables; the constraint caps the bits."""
    x = np.array(choices, float)
    bits = float(x.sum())
    loss = float(np.exp2(-x).sum() + (x[0] != x[1]) * 0.3)
    return Evaluation((bits, loss), {"bits": bits - 9.0})


def search(journal: Path, n_trials: int = 40, **changes) -> SearchOutcome:
    arguments = {
        "seeds": SEEDS,
        "n_trials": n_trials,
        "journal": journal,
        "seed": 5,
        "objectives": ("bits", "loss"),
    }
    function = changes.pop("objective", objective)
    return run_search(function, SPACE, **(arguments | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchOutcome:
    return search(tmp_path_factory.mktemp("whole") / "study.log")


def test_seeds_come_first_and_once(whole: SearchOutcome) -> None:
    assert [t.choices for t in whole.trials[:3]] == list(dict.fromkeys(SEEDS))
    assert [t.origin for t in whole.trials] == ["seed"] * 3 + ["random"] * 13 + ["tpe"] * 24
    assert len(whole.trials) == 40


def test_front_and_hypervolume(whole: SearchOutcome) -> None:
    feasible = [t for t in whole.trials if t.feasible]
    assert {t.feasible for t in whole.trials} == {True, False}
    assert all(whole.trials[number].feasible for number in whole.front)
    assert len(whole.hypervolume) == 40
    assert list(whole.hypervolume) == sorted(whole.hypervolume)
    expected = hypervolume([t.values for t in feasible], whole.reference)
    assert whole.hypervolume[-1] == pytest.approx(expected)
    assert whole.hypervolume[-2] <= expected + 1e-9


def test_same_seed_same_trials_other_seed_others(whole: SearchOutcome, tmp_path: Path) -> None:
    assert search(tmp_path / "again.log") == whole
    assert search(tmp_path / "other.log", seed=6).trials != whole.trials


@pytest.mark.parametrize("stop", [2, 9, 23])
def test_resumed_equals_uninterrupted(whole: SearchOutcome, tmp_path: Path, stop: int) -> None:
    search(tmp_path / "study.log", n_trials=stop)
    assert search(tmp_path / "study.log").trials == whole.trials
    assert search(tmp_path / "study.log") == whole


def test_killed_anywhere_equals_uninterrupted(whole: SearchOutcome, tmp_path: Path) -> None:
    """A process kills itself inside the objective three times; no finished trial is lost or run twice."""
    log = tmp_path / "evaluated.txt"
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.unit.search import test_tpe as t\n"
        "left = [int(sys.argv[3])]\n"
        "def deadly(choices):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    result = t.objective(choices)\n"
        "    open(sys.argv[2], 'a').write(repr(choices) + chr(10))\n"
        "    return result\n"
        "t.search(Path(sys.argv[1]), objective=deadly)\n"
    )
    for lives in (1, 10, 8):
        command = [sys.executable, "-c", program, str(tmp_path / "study.log"), str(log), str(lives)]
        killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        assert killed.returncode == -signal.SIGKILL
    outcome = search(tmp_path / "study.log")
    assert outcome.trials == whole.trials
    evaluated = log.read_text().splitlines()
    assert len(evaluated) == 19
    assert len(set(evaluated)) == 19


def test_a_failing_objective_is_tried_again(whole: SearchOutcome, tmp_path: Path) -> None:
    calls = [0]

    def flaky(choices: Choices) -> Evaluation:
        calls[0] += 1
        if calls[0] == 20:
            raise OSError("lost connection")
        return objective(choices)

    with pytest.raises(OSError, match="lost connection"):
        search(tmp_path / "study.log", objective=flaky)
    assert search(tmp_path / "study.log").trials == whole.trials


def test_a_damaged_last_line_costs_one_trial_at_most(whole: SearchOutcome, tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    search(journal, n_trials=20)
    journal.write_bytes(journal.read_bytes()[:-7])
    assert search(journal).trials == whole.trials


def test_equal_choices_are_evaluated_once(tmp_path: Path) -> None:
    seen: list[Choices] = []

    def count(choices: Choices) -> Evaluation:
        seen.append(choices)
        return objective(choices)

    outcome = run_search(
        count,
        (2, 2),
        seeds=[(0, 0)],
        n_trials=25,
        journal=tmp_path / "s.log",
        seed=0,
        objectives=("bits", "loss"),
    )
    assert len(outcome.trials) == 25
    assert len(seen) == len(set(seen)) <= 4


def test_stops_when_the_hypervolume_does_not_grow(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s.log", n_trials=200, patience=Patience(20, 1e-3))
    assert outcome.stopped == "converged"
    assert len(outcome.trials) < 200
    assert search(tmp_path / "s.log", n_trials=200, patience=Patience(20, 1e-3)) == outcome


def test_another_search_in_the_journal_is_refused(tmp_path: Path) -> None:
    search(tmp_path / "s.log", n_trials=2)
    with pytest.raises(ConfigError, match="another search"):
        search(tmp_path / "s.log", n_trials=2, seed=99)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds\.1"):
        search(tmp_path / "s.log", seeds=[(0, 0, 0, 0, 0), (0, 0, 0, 1, 0)])
    with pytest.raises(ConfigError, match="n_trials"):
        search(tmp_path / "s.log", n_trials=0)
    with pytest.raises(ValueError, match="2 finite values"):
        search(tmp_path / "s.log", objective=lambda _: Evaluation((float("nan"), 0.0)))


def test_progress_sees_every_trial(tmp_path: Path) -> None:
    seen = []
    search(tmp_path / "s.log", n_trials=5, progress=lambda trial, n: seen.append((trial.number, n)))
    assert seen == [(i, 5) for i in range(5)]
