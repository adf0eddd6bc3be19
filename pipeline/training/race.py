"""A race of many heads: whoever is clearly worse drops out, the others go on to the next fold."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.heads.classifiers import HEADS
from pipeline.metrics.losses import log_losses
from pipeline.parallel import cores, in_threads
from pipeline.training.fitting import Fitter, Rows
from pipeline.training.search import (
    DEFAULT_FOLDS,
    Candidate,
    Choice,
    Progress,
    _entrants,
    _judge,
    _rank,
    _surest,
    score,
)
from pipeline.wording import count_of

DEFAULT_BUDGET = 60.0
RACERS = tuple(name for name, row in HEADS.items() if row.races)
_PILOT = 4  # a head whose time is unknown is first tried on one image in so many
_SURELY = 3.0  # the same for log losses, whose tails are long
_FINALISTS = 3


def race(fitter: Fitter, cv: int | None = None, budget: float = DEFAULT_BUDGET, progress: Progress = None) -> Choice:
    """Race the heads of `RACERS` and the values of their parameters on the training split.

    All start in the first fold; a head of one candidate that is clearly worse than the first head on a quarter
    of its images goes no further (successive halving: Jamieson and Talwalkar, AISTATS 2016). Who is clearly worse
    there than the best (by more than two standard errors of the paired difference, image by image, as in
    McNemar's test) drops out, and so does a strength that another of its head outdoes (no more accurate, and its log
    loss larger by more than three standard errors of the paired difference); the others go on, the best first,
    through the other folds (Maron and Moore, "Hoeffding Races", NIPS 1993, with a paired test). Where there are
    both a validation and a test split, the validation split then chooses among the finalists, else the folds do: the
    smallest log loss among those whose accuracy is not clearly worse than the best.

    Parameters
    ----------
    fitter : Fitter
    cv : int or None
        Folds, 5 by default.
    budget : float
        Seconds. No fit begins that would not end in time, as far as earlier ones tell. One fold of the first head
        is always raced, and fitting the finalists on the whole training split comes on top.
    progress : callable (done, total) or None

    Returns
    -------
    Choice
        Its notes say who did not finish and which images chose.

    Raises
    ------
    TrainingError
        If no class has two images (or groups) to part, or no head can be fitted.
    """
    y, train = fitter.data.y, fitter.data.rows("train")
    folds = fitter.folds(cv or _possible_folds(y[train], fitter.data.units[train]), train)
    clock = _Clock(time.monotonic() + budget)
    first = RACERS[0]
    middle = _grid(first)[len(_grid(first)) // 2 :][:1]
    clock.measure.append(_pilot(fitter, first, _entrants(fitter, first, middle), *folds[0])[1])
    entrants = {name: _entrants(fitter, name, _grid(name)) for name in RACERS}
    done = 0

    def run(plan: Sequence[tuple[str, int]], rest: int = 0) -> None:
        nonlocal done
        calls = [(fitter, clock, name, entrants[name], *folds[number]) for name, number in plan]
        total = done + len(plan) + rest
        for _ in in_threads(cores(), _take_part, calls):
            done += 1
            if progress:
                progress(done, total)

    run([(name, 0) for name in RACERS], len(RACERS) * (len(folds) - 1))
    started = [each for name in RACERS for each in entrants[name] if each.accuracies]
    if not started:
        raise TrainingError(f"no head can be fitted on these vectors: {'; '.join(clock.reasons())}")
    entrants = _survivors(started, y)
    run([(name, number) for name in entrants for number in range(1, len(folds))])
    board = sorted(started, key=lambda each: (len(each.accuracies), *_rank(each.score(y))), reverse=True)
    notes = [
        f"raced {count_of(len(board), 'candidate')} of {len({each.head for each in board})} heads in"
        f" {len(folds)} folds of the training images",
        *clock.reasons(),
    ]
    return _decide(fitter, board, notes)


def _decide(fitter: Fitter, board: list[Candidate], notes: list[str]) -> Choice:
    """Take the winner of the folds, or let the validation images choose where test images are left for the score."""
    data = fitter.data
    y, validation = data.y, data.rows("validation")
    finalists = _finalists(board, y)
    best, chosen_on = finalists[0], "cross-validation"
    if len(validation) and len(data.rows("test")) and len(finalists) > 1:
        chosen_on = "validation"
        list(in_threads(cores(), _refit, [(fitter, each) for each in finalists]))
        answers = [fitter.probabilities(each.fitted, validation) for each in finalists]
        for each, proba in zip(finalists, answers, strict=True):
            each.validation = score(y[validation], proba)
        best = finalists[_surest(answers, y[validation])[0]]
        named = ", ".join(each.head for each in finalists)
        notes.append(f"the validation images chose {best.head} among the finalists {named}")
    else:
        _refit(fitter, best)
        notes.append(f"the folds chose {best.head}")
    judged = np.flatnonzero(best.judged)
    rows = [{**each.row(y), "chosen": each is best} for each in board]
    return Choice(best.head, best.params, rows, chosen_on, best.fitted, best.proba[judged], judged, tuple(notes))


def _refit(fitter: Fitter, each: Candidate) -> None:
    """Fit on the whole training split; the folds have found the temperature already, out of fold."""
    temperature = float(np.exp(np.mean(np.log(sorted(each.temperatures))))) if each.temperatures else None
    (each.fitted,) = fitter.fit(each.head, [each.params], fitter.data.rows("train"), temperature=temperature)


@dataclass
class _Clock:
    """When the race ends, how long a fold of each head takes, and why some heads did not run."""

    deadline: float
    seconds: dict[str, float] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)
    measure: list[NDArray[np.float64]] = field(default_factory=list)  # answers of the first head on pilot's images

    def reasons(self) -> list[str]:
        return [f"{name}: {reason}" for name, reason in sorted(self.out.items())]


def _take_part(
    fitter: Fitter, clock: _Clock, name: str, entrants: Sequence[Candidate], inner: Rows, outer: Rows
) -> None:
    """Run a head through a fold, unless time does not allow it."""
    exempt = name == RACERS[0] and not clock.seconds.get(name)
    try:
        if not exempt:
            if time.monotonic() < clock.deadline and name not in clock.seconds:
                clock.seconds[name], answers = _pilot(fitter, name, entrants, inner, outer)
                if len(entrants) == 1 and len(_surest([*clock.measure, answers], fitter.data.y[outer])) < 2:
                    clock.out[name] = f"dropped, clearly worse than {RACERS[0]} on a quarter of a fold's images"
            if name in clock.out:
                return
            expected = clock.seconds.get(name, 0.0)
            if time.monotonic() + expected > clock.deadline:
                after = "not finished" if entrants[0].accuracies else "not tried"
                clock.out.setdefault(
                    name,
                    f"{after}, for the budget was spent" + (f" and a fold takes {expected:.1f} s" if expected else ""),
                )
                return
        began = time.monotonic()
        _judge(fitter, entrants, inner, outer, preview=True)
        clock.seconds[name] = time.monotonic() - began
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        clock.out.setdefault(name, f"cannot be fitted ({' '.join(str(error).split())[:120]})")


def _pilot(
    fitter: Fitter, name: str, entrants: Sequence[Candidate], inner: Rows, outer: Rows
) -> tuple[float, NDArray[np.float64]]:
    """Guess the seconds of a fold from one fit on a part of its images; return its answers, too."""
    began = time.monotonic()
    part = _part(fitter.data.y, inner)
    (fitted,) = fitter.fit(name, [entrants[0].params], part, temperature=1.0, preview=True)
    seconds = (time.monotonic() - began) * _PILOT ** HEADS[name].growth * len(entrants)
    return seconds, fitter.probabilities(fitted, outer)


def _part(y: NDArray[np.int64], rows: Rows) -> Rows:
    """Return every fourth row of each class, and the first of each."""
    ordered = rows[np.argsort(y[rows], kind="stable")]
    first = np.r_[True, np.diff(y[ordered]) != 0]
    return ordered[first | (np.arange(len(ordered)) % _PILOT == 0)]


def _survivors(started: Sequence[Candidate], y: NDArray[np.int64]) -> dict[str, list[Candidate]]:
    """Return who may still be chosen, by head, the best head first, each in the order of its path.

    That is who is not clearly less accurate than the most accurate one, and not outdone by another strength of the
    same head: no more accurate, and with a surely larger log loss, image by image.
    """
    rows = np.logical_and.reduce([each.judged for each in started])
    answers, truth = [each.proba[rows] for each in started], y[rows]
    close = _surest(answers, truth)
    leaders: dict[str, int] = {}
    for number in close:  # the smallest log loss comes first
        leaders.setdefault(started[number].head, number)
    alive = {each for each in close if not _outdone(answers[each], answers[leaders[started[each].head]], truth)}
    ranked = sorted(alive, key=lambda number: _rank(started[number].score(y)), reverse=True)
    heads = dict.fromkeys(started[number].head for number in ranked)
    return {head: [started[n] for n in sorted(alive) if started[n].head == head] for head in heads}


def _outdone(proba: NDArray[np.float64], best: NDArray[np.float64], truth: NDArray[np.int64]) -> bool:
    """Say whether answers (n, K) are no more accurate than others and their log loss is surely larger."""
    more = log_losses(truth, proba) - log_losses(truth, best)
    error = float(more.std()) / np.sqrt(len(more))
    return score(truth, proba)["accuracy"] <= score(truth, best)["accuracy"] and float(more.mean()) > _SURELY * error


def _finalists(board: Sequence[Candidate], y: NDArray[np.int64]) -> list[Candidate]:
    """Return the candidate of each of the few best heads that went as far as any and has the smallest log loss."""
    whole = [each for each in board if len(each.accuracies) == len(board[0].accuracies)]
    rows = np.logical_and.reduce([each.judged for each in whole])
    best: dict[str, Candidate] = {}
    for number in _surest([each.proba[rows] for each in whole], y[rows]):
        best.setdefault(whole[number].head, whole[number])
    return list(best.values())[:_FINALISTS]


def _grid(name: str) -> list[dict[str, Any]]:
    return [{key: value} for key, values in HEADS[name].search.items() for value in values] or [{}]


def _possible_folds(y: NDArray[np.int64], units: NDArray[np.int64]) -> int:
    """Return 5, or as many folds as the commonest class has units."""
    most = int(np.bincount(np.unique(np.column_stack([y, units]), axis=0)[:, 0]).max())
    if most < 2:
        raise TrainingError("every class has a single training image or group, so nothing can be raced; add images")
    return min(DEFAULT_FOLDS, most)
