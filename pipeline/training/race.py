"""A race of many heads: those that are clearly worse drop out, the others go on to the next fold."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.heads.classifiers import HEADS
from pipeline.heads.folds import Folds
from pipeline.parallel import cores, in_threads
from pipeline.training.candidates import (
    DEFAULT_FOLDS,
    Candidate,
    Choice,
    Probabilities,
    Progress,
    close_to_best,
    dominated,
    make_candidates,
    parameter_grid,
    rank,
    score,
    score_fold,
)
from pipeline.training.fitting import Fitter, Rows
from pipeline.wording import count_of

DEFAULT_BUDGET = 60.0
RACERS = tuple(name for name, row in HEADS.items() if row.races)  # the first is fitted whatever the budget
_PILOT = 4  # a head whose time is unknown is first fitted on one image in so many
_FINALISTS = 3


def race(fitter: Fitter, cv: int | None = None, budget: float = DEFAULT_BUDGET, progress: Progress = None) -> Choice:
    """Race the heads of `RACERS` and the values of their main parameters on the training split.

    All start in the first fold, except for a head without a parameter to choose that is clearly worse than the first
    head on a quarter of the fold's images (successive halving: Jamieson and Talwalkar, AISTATS 2016). After this fold
    candidates drop out whose accuracy is clearly worse than the best (by more than two standard errors of the paired
    difference, image by image, as in McNemar's test), and those that another value of the same head's parameter
    dominates (no less accurate, and a log loss that is smaller by more than three standard errors of the paired
    difference). The others go through the other folds, the best first (Maron and Moore, "Hoeffding Races", NIPS 1993,
    with a paired test). If there are both a validation and a test split, the validation split then chooses among the
    finalists, else the folds do: the smallest log loss among those whose accuracy is not clearly worse than the best.

    Parameters
    ----------
    fitter : Fitter
    cv : int or None
        Folds, 5 by default.
    budget : float
        Seconds. A fit that would end later, judged by earlier ones, does not begin. One fold of the first head
        is always raced, and fitting the finalists on the whole training split takes extra time.
    progress : callable (done, total) or None

    Returns
    -------
    Choice
        Its notes say which heads did not finish and which images chose.

    Raises
    ------
    TrainingError
        If no class has two images (or groups) to make folds of, or no head can be fitted.
    """
    y, train = fitter.data.y, fitter.data.rows("train")
    folds = fitter.folds(cv or _possible_folds(y[train], fitter.data.units[train]), train)
    candidates = {name: make_candidates(fitter, name, _grid(name)) for name in RACERS}
    schedule = _Schedule(time.monotonic() + budget)
    first = candidates[RACERS[0]]
    _, reference = _pilot(fitter, first[len(first) // 2 :][:1], *folds[0])
    runner = _Runner(fitter, folds, schedule, reference, progress)
    runner.run(candidates, [_Task(name, 0) for name in RACERS], later=len(RACERS) * (len(folds) - 1))
    started = [each for name in RACERS for each in candidates[name] if each.accuracies]
    if not started:
        raise TrainingError(f"no head can be fitted on these vectors: {'; '.join(schedule.reasons())}")
    left = _survivors(started, y)
    runner.run(left, [_Task(name, number) for name in left for number in range(1, len(folds))])
    board = sorted(started, key=lambda each: (len(each.accuracies), *rank(each.score(y))), reverse=True)
    notes = [
        f"raced {count_of(len(board), 'candidate')} of {len({each.head for each in board})} heads in"
        f" {len(folds)} folds of the training images",
        *schedule.reasons(),
    ]
    return _decide(fitter, board, notes)


class _Task(NamedTuple):
    """A fold of a head; as a pilot, one fit on a quarter of the fold's images."""

    head: str
    fold: int
    pilot: bool = False


@dataclass
class _Schedule:
    """Which tasks may begin; used and changed by the main thread only.

    Parameters
    ----------
    deadline : float
        As `time.monotonic` counts.
    seconds : dict of str to float
        How long a fold of a head takes.
    out : dict of str to str
        Heads that left the race, with the reason.
    """

    deadline: float
    seconds: dict[str, float] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)

    def admits(self, task: _Task) -> bool:
        """Return whether a task may begin; if not, its head leaves the race, and the reason is recorded."""
        if task.head in self.out:
            return False
        expected = 0.0 if task.pilot else self.seconds.get(task.head, 0.0)
        exempt = task.head == RACERS[0] and task.fold == 0
        if exempt or time.monotonic() + expected <= self.deadline:
            return True
        reached = "not tried" if task.fold == 0 else "not finished"
        estimate = f" and a fold takes {expected:.1f} s" if expected else ""
        self.out[task.head] = f"{reached}, because the budget was spent{estimate}"
        return False

    def reasons(self) -> list[str]:
        """Return a line for each head that left the race."""
        return [f"{name}: {reason}" for name, reason in sorted(self.out.items())]


@dataclass
class _Runner:
    """Runs tasks in as many threads as there are cores. Threads only compute; this object records their results.

    Parameters
    ----------
    fitter : Fitter
    folds : list of tuple
    schedule : _Schedule
    reference : ndarray of float64
        Probabilities that the first head's pilot gave.
    progress : callable (done, total) or None
    done : int
        Number of folds that were scored, or left out.
    """

    fitter: Fitter
    folds: Folds
    schedule: _Schedule
    reference: Probabilities
    progress: Progress
    done: int = 0

    def run(self, candidates: Mapping[str, list[Candidate]], tasks: Sequence[_Task], later: int = 0) -> None:
        """Run the tasks that the schedule admits; `later` more, for the progress, will follow in another call."""
        total = self.done + len(tasks) + later
        queue = deque(each._replace(pilot=each.fold == 0 and each.head != RACERS[0]) for each in tasks)
        running: dict[Future[tuple[float, Any]], _Task] = {}
        with ThreadPoolExecutor(cores()) as pool:
            while queue or running:
                while queue and len(running) < cores():
                    task = queue.popleft()
                    if self.schedule.admits(task):
                        call = self.fitter, candidates[task.head], *self.folds[task.fold], task
                        running[pool.submit(_compute, *call)] = task
                    else:
                        self._count(total)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    goes_on = self._record(candidates[task.head], task, future)
                    if task.pilot and goes_on:
                        queue.appendleft(task._replace(pilot=False))
                    else:
                        self._count(total)

    def _count(self, total: int) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, total)

    def _record(self, candidates: Sequence[Candidate], task: _Task, future: Future[tuple[float, Any]]) -> bool:
        """Record the result of a task; return whether its head stays in the race."""
        outer = self.folds[task.fold][1]
        try:
            self.schedule.seconds[task.head], result = future.result()
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            self.schedule.out.setdefault(task.head, f"cannot be fitted ({' '.join(str(error).split())[:120]})")
            return False
        if not task.pilot:
            for each, found in zip(candidates, result, strict=False):  # the search may have stopped early
                each.add(outer, found)
        elif len(candidates) == 1 and 1 not in close_to_best([self.reference, result], self.fitter.data.y[outer]):
            self.schedule.out[task.head] = f"dropped, clearly worse than {RACERS[0]} on a quarter of a fold's images"
            return False
        return True


def _compute(
    fitter: Fitter, candidates: Sequence[Candidate], inner: Rows, outer: Rows, task: _Task
) -> tuple[float, Any]:
    """Return the seconds that a fold takes, and the result of the task; no shared state is changed."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if cores() > 1 else None, "openmp"):  # OpenMP would start as many threads again in each
        if task.pilot:
            return _pilot(fitter, candidates, inner, outer)
        began = time.monotonic()
        found = score_fold(fitter, candidates, inner, outer, preview=True, may_stop=task.fold == 0)
        return time.monotonic() - began, found


def _pilot(fitter: Fitter, candidates: Sequence[Candidate], inner: Rows, outer: Rows) -> tuple[float, Probabilities]:
    """Estimate the seconds of a fold from one fit on a quarter of its images; return its probabilities, too."""
    began = time.monotonic()
    first = candidates[0]
    (fitted,) = fitter.fit(first.head, [first.params], _part(fitter.data.y, inner), temperature=1.0, preview=True)
    seconds = (time.monotonic() - began) * _PILOT ** HEADS[first.head].growth * len(candidates)
    return seconds, fitter.probabilities(fitted, outer)


def _part(y: NDArray[np.int64], rows: Rows) -> Rows:
    """Return every fourth row of each class, and the first of each."""
    ordered = rows[np.argsort(y[rows], kind="stable")]
    first = np.r_[True, np.diff(y[ordered]) != 0]
    return ordered[first | (np.arange(len(ordered)) % _PILOT == 0)]


def _survivors(started: Sequence[Candidate], y: NDArray[np.int64]) -> dict[str, list[Candidate]]:
    """Return the candidates that may still be chosen, by head, the best head first, each in the order of its grid.

    Those are the ones that are close to the best, and not dominated by another candidate of the same head.
    """
    rows = np.logical_and.reduce([each.judged for each in started])
    answers, truth = [each.proba[rows] for each in started], y[rows]
    close = close_to_best(answers, truth)
    leaders: dict[str, int] = {}
    for number in close:  # the smallest log loss comes first
        leaders.setdefault(started[number].head, number)
    alive = {each for each in close if not dominated(answers[each], answers[leaders[started[each].head]], truth)}
    ranked = sorted(alive, key=lambda number: rank(started[number].score(y)), reverse=True)
    heads = dict.fromkeys(started[number].head for number in ranked)
    return {head: [started[n] for n in sorted(alive) if started[n].head == head] for head in heads}


def _decide(fitter: Fitter, board: list[Candidate], notes: list[str]) -> Choice:
    """Take the winner of the folds, or let the validation images choose if there are test images for the score."""
    data = fitter.data
    y, validation = data.y, data.rows("validation")
    finalists = _finalists(board, y)
    best, chosen_on = finalists[0], "cross-validation"
    if len(validation) and len(data.rows("test")) and len(finalists) > 1:
        chosen_on = "validation"
        for each, fitted in in_threads(cores(), _refit, [(fitter, each) for each in finalists]):
            each.fitted = fitted
        answers = [fitter.probabilities(each.fitted, validation) for each in finalists]
        for each, proba in zip(finalists, answers, strict=True):
            each.validation = score(y[validation], proba)
        best = finalists[close_to_best(answers, y[validation])[0]]
        named = ", ".join(each.head for each in finalists)
        notes.append(f"the validation images chose {best.head} among the finalists {named}")
    else:
        _, best.fitted = _refit(fitter, best)
        notes.append(f"the folds chose {best.head}")
    judged = np.flatnonzero(best.judged)
    rows = [{**each.row(y), "chosen": each is best} for each in board]
    return Choice(best.head, best.params, rows, chosen_on, best.fitted, best.proba[judged], judged, tuple(notes))


def _finalists(board: Sequence[Candidate], y: NDArray[np.int64]) -> list[Candidate]:
    """Return the candidate with the smallest log loss of each of the best heads, among those with the most folds."""
    whole = [each for each in board if len(each.accuracies) == len(board[0].accuracies)]
    rows = np.logical_and.reduce([each.judged for each in whole])
    best: dict[str, Candidate] = {}
    for number in close_to_best([each.proba[rows] for each in whole], y[rows]):
        best.setdefault(whole[number].head, whole[number])
    return list(best.values())[:_FINALISTS]


def _refit(fitter: Fitter, each: Candidate) -> tuple[Candidate, Any]:
    """Return a candidate, and its head fitted on the whole training split.

    The temperature is the geometric mean of those of the folds.
    """
    temperature = float(np.exp(np.mean(np.log(sorted(each.temperatures))))) if each.temperatures else None
    (fitted,) = fitter.fit(each.head, [each.params], fitter.data.rows("train"), temperature=temperature)
    return each, fitted


def _grid(name: str) -> list[dict[str, Any]]:
    return parameter_grid(name, {}) or [{}]


def _possible_folds(y: NDArray[np.int64], units: NDArray[np.int64]) -> int:
    """Return 5, or as many folds as the largest class has units."""
    most = int(np.bincount(np.unique(np.column_stack([y, units]), axis=0)[:, 0]).max())
    if most < 2:
        raise TrainingError("every class has a single training image or group, so nothing can be raced; add images")
    return min(DEFAULT_FOLDS, most)
