"""Choosing a head and its parameters: on the validation split, by folds, or by a race of many heads."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.arrays import softmax
from pipeline.heads.classifiers import find_head
from pipeline.heads.folds import Folds
from pipeline.metrics.losses import log_losses
from pipeline.parallel import cores, in_threads
from pipeline.training.fitting import Fitter, Rows
from pipeline.wording import shorten

TIMES = ("fit_seconds", "predict_seconds_per_1000")  # what the leaderboard says of time
DEFAULT_FOLDS = 5
_CLEARLY = 2.0  # standard errors
_SHOWN = 12

Progress = Callable[[int, int], None] | None


@dataclass
class Candidate:
    """One head with its parameters, and what is known of it so far.

    Parameters
    ----------
    head : str
    params : dict
    proba : ndarray of float64, shape (n, K)
        Probabilities of held-out training rows.
    judged : ndarray of bool, shape (n,)
        Which rows those are.
    accuracies : dict of int to float
        Of each fold, by the first row that it holds out.
    temperatures, fit_seconds, predict_seconds : list of float
        One number for each fold; no temperatures where there are probabilities.
    fitted : fitted pipeline, or None
        On the whole training split.
    validation : dict
        Accuracy and log loss on the validation split, for finalists.
    """

    head: str
    params: dict[str, Any]
    proba: NDArray[np.float64] = field(repr=False)
    judged: NDArray[np.bool_] = field(repr=False)
    accuracies: dict[int, float] = field(default_factory=dict)
    temperatures: list[float] = field(default_factory=list)
    fit_seconds: list[float] = field(default_factory=list)
    predict_seconds: list[float] = field(default_factory=list)
    fitted: Any = None
    validation: dict[str, float] = field(default_factory=dict)

    def score(self, y: NDArray[np.int64]) -> dict[str, float]:
        """Return accuracy and log loss on the rows judged so far."""
        return score(y[self.judged], self.proba[self.judged])

    def row(self, y: NDArray[np.int64]) -> dict[str, Any]:
        """Return the candidate's line of the leaderboard, ready for JSON."""
        rows = int(self.judged.sum())
        accuracies = [accuracy for _, accuracy in sorted(self.accuracies.items())]
        return {
            "head": self.head,
            "params": self.params,
            **self.score(y),
            "accuracy_sd": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
            "folds": len(accuracies),
            "fit_seconds": round(float(np.mean(self.fit_seconds)), 4),
            "predict_seconds_per_1000": round(1000 * sum(self.predict_seconds) / rows, 4),
            **{f"validation_{key}": value for key, value in self.validation.items()},
        }


@dataclass(frozen=True)
class Choice:
    """What was chosen, from what, and by which images.

    Parameters
    ----------
    head : str
    params : dict
    candidates : list of dict
        The leaderboard.
    chosen_on : str
        ``"validation"``, ``"cross-validation"``, or ``""`` where there was nothing to choose.
    fitted : fitted pipeline, or None
        On the whole training split.
    folded : ndarray of float64, shape (n, K), or None
        Out-of-fold probabilities of the rows `folded_rows`: the training split, as far as the folds came.
    notes : tuple of str
    """

    head: str
    params: dict[str, Any]
    candidates: list[dict[str, Any]] = field(default_factory=list)
    chosen_on: str = ""
    fitted: Any = None
    folded: NDArray[np.float64] | None = None
    folded_rows: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    notes: tuple[str, ...] = ()


def score(truth: NDArray[np.int64], proba: NDArray[np.float64]) -> dict[str, float]:
    """Return ``accuracy`` and ``log_loss`` of probabilities (n, K)."""
    accuracy = float((proba.argmax(axis=1) == truth).mean())
    return {"accuracy": accuracy, "log_loss": float(log_losses(truth, proba).mean())}


def choose(fitter: Fitter, head: str, params: Mapping[str, Any], cv: int | None, progress: Progress = None) -> Choice:
    """Try the values of a head's main parameter, unless it is given, and take the best.

    That is the one with the smallest log loss among those whose accuracy is not clearly worse than the best.

    Parameters
    ----------
    fitter : Fitter
    head : str
    params : mapping
        Given by the user.
    cv : int or None
        Folds of the training split that choose; None leaves it to the validation split.
    progress : callable (done, total) or None
    """
    train, validation = fitter.data.rows("train"), fitter.data.rows("validation")
    row = find_head(head)
    open_names = [name for name in row.search if name not in params]
    grid = [{**params, name: value} for name in open_names[:1] for value in row.search[name]]
    if cv:
        return _choose_by_folds(fitter, head, grid or [dict(params)], fitter.folds(cv, train), progress)
    if not grid or not len(validation):
        return Choice(head, dict(params))
    truth = fitter.data.y[validation]
    tried: list[dict[str, float]] = []
    answers, heads = [], []
    for number, fitted in enumerate(fitter.fit(head, grid, train, watched=validation), start=1):
        heads.append(fitted)
        answers.append(fitter.probabilities(fitted, validation))
        tried.append(score(truth, answers[-1]))
        over = row.search_stops and _past_the_best(tried)
        if progress:
            progress(number, number if over else len(grid))
        if over:
            break
    best = _surest(answers, truth)[0]
    rows = [{"head": head, "params": params, **result} for params, result in zip(grid, tried, strict=False)]
    return Choice(head, grid[best], rows, "validation", heads[best])


def _rank(result: Mapping[str, float]) -> tuple[float, float]:
    return result["accuracy"], -result["log_loss"]


def _past_the_best(results: Sequence[Mapping[str, float]]) -> bool:
    """Say whether the last two of ever weaker regularisations were worse: the rest is slow, too."""
    last, before = results[-2:], results[:-2]
    return bool(before) and all(
        each["log_loss"] > min(result["log_loss"] for result in before)
        and each["accuracy"] <= max(result["accuracy"] for result in before)
        for each in last
    )


def _choose_by_folds(
    fitter: Fitter, head: str, grid: Sequence[dict[str, Any]], folds: Folds, progress: Progress
) -> Choice:
    entrants = _entrants(fitter, head, grid)
    jobs = 1 if find_head(head).path is None else cores()
    calls = [(fitter, entrants, inner, outer, False) for inner, outer in folds]
    for done, _ in enumerate(in_threads(jobs, _judge, calls), start=1):
        if progress:
            progress(done, len(folds))
    y, train = fitter.data.y, fitter.data.rows("train")
    best = entrants[_surest([each.proba[train] for each in entrants], y[train])[0]]
    chosen_on = "cross-validation" if len(grid) > 1 else ""
    rows = np.flatnonzero(best.judged)
    board = [each.row(y) for each in entrants]
    return Choice(head, best.params, board, chosen_on, folded=best.proba[rows], folded_rows=rows)


def _judge(fitter: Fitter, entrants: Sequence[Candidate], inner: Rows, outer: Rows, preview: bool) -> None:
    """Fit a path of candidates on `inner` and write down what they say of `outer`."""
    y, row = fitter.data.y, find_head(entrants[0].head)
    first = not entrants[0].accuracies
    judged: list[Candidate] = []
    began = time.perf_counter()
    grid = [each.params for each in entrants]
    fits = fitter.fit(row.name, grid, inner, temperature=1.0 if preview else None, preview=preview)
    spent = 0.0
    for each, fitted in zip(entrants, fits, strict=True):
        asked = time.perf_counter()
        proba = fitter.probabilities(fitted, outer)
        answered = time.perf_counter()
        spent += answered - asked
        if preview and row.softmax:
            proba, temperature = _tempered(proba, y[outer])
            each.temperatures.append(temperature)
        each.proba[outer], each.judged[outer] = proba, True
        each.accuracies[int(outer[0])] = score(y[outer], proba)["accuracy"]
        each.predict_seconds.append(answered - asked)
        judged.append(each)
        if preview and first and row.search_stops and _past_the_best([done.score(y) for done in judged]):
            break
    for each in judged:  # shared work is shared out
        each.fit_seconds.append((time.perf_counter() - began - spent) / len(judged))


def _tempered(proba: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Give decision values the temperature that suits these rows: one number, to make log losses comparable."""
    from pipeline.heads.temperature import fit_temperature

    known = np.flatnonzero(proba.any(axis=0))
    logits = np.log(np.maximum(proba[:, known], 1e-300))
    rows = np.isin(truth, known)
    if len(known) < 2 or not rows.any():
        return proba, 1.0
    temperature = fit_temperature(logits[rows], np.searchsorted(known, truth[rows]))
    logits /= temperature
    tempered = np.zeros_like(proba)
    tempered[:, known] = softmax(logits)
    return tempered, temperature


def _surest(answers: Sequence[NDArray[np.float64]], truth: NDArray[np.int64]) -> list[int]:
    """Return which answers (n, K) are not clearly less accurate than the best, the smallest log loss first.

    Accuracies that chance could swap are no ground to choose by; the log loss tells more from as many images.
    """
    right = [proba.argmax(axis=1) == truth for proba in answers]
    top = max(right, key=np.sum)
    close = []
    for number, each in enumerate(right):
        lost, won = int((top & ~each).sum()), int((each & ~top).sum())
        if lost - won <= _CLEARLY * np.sqrt(lost + won):
            close.append(number)
    return sorted(close, key=lambda number: score(truth, answers[number])["log_loss"])


def _entrants(fitter: Fitter, head: str, grid: Iterable[Mapping[str, Any]]) -> list[Candidate]:
    shape = (len(fitter.data.y), len(fitter.data.classes))
    return [Candidate(head, dict(params), np.zeros(shape), np.zeros(shape[0], bool)) for params in grid]


def format_leaderboard(candidates: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    """Lay out the best candidates for a terminal.

    Parameters
    ----------
    candidates : sequence of mapping
        From `Choice.candidates`, the best first.
    width : int
        Columns of the terminal, at least 60.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    cells = (("accuracy", 10), ("+/-", 7), ("log loss", 10), ("fit s", 8), ("s/1000", 8))
    room = width - sum(size for _, size in cells)
    lines = ["candidate".ljust(room) + "".join(title.rjust(size) for title, size in cells)]
    for row in candidates[:_SHOWN]:
        params = ", ".join(f"{key}={value}" for key, value in row["params"].items())
        spread = "" if row["accuracy_sd"] is None else f"{row['accuracy_sd']:.3f}"
        numbers = (
            f"{row['accuracy']:.3f}",
            spread,
            f"{row['log_loss']:.3f}",
            f"{row['fit_seconds']:.2f}",
            f"{row['predict_seconds_per_1000']:.3f}",
        )
        mark = " *" if row.get("chosen") else ""
        name = shorten(f"{row['head']} {params}".strip(), room - len(mark)) + mark
        lines.append(
            name.ljust(room) + "".join(text.rjust(size) for text, (_, size) in zip(numbers, cells, strict=True))
        )
    if len(candidates) > _SHOWN:
        lines.append(f"and {len(candidates) - _SHOWN} more")
    return "\n".join(lines)
