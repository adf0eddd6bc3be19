"""Candidates: heads with their parameters, scored on held-out images, and the rules that rank them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.arrays import softmax
from pipeline.heads.classifiers import find_head
from pipeline.metrics.losses import log_losses
from pipeline.training.fitting import Fitter, Rows

DEFAULT_FOLDS = 5
_CLEARLY = 2.0  # standard errors of a difference in accuracy
_CLEARLY_IN_LOSS = 3.0  # the same for log losses, whose tails are long

Progress = Callable[[int, int], None] | None
Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class FoldScore:
    """The result of one candidate on one fold.

    Parameters
    ----------
    proba : ndarray of float64, shape (len(outer), K)
        Probabilities of the held-out rows.
    accuracy : float
    temperature : float or None
        Fitted to the decision values of these rows; None of heads that have probabilities of their own.
    fit_seconds, predict_seconds : float
        Candidates that are fitted together share the time of the fit.
    """

    proba: Probabilities
    accuracy: float
    temperature: float | None
    fit_seconds: float
    predict_seconds: float


@dataclass
class Candidate:
    """One head with its parameters, and its scores so far.

    Parameters
    ----------
    head : str
    params : dict
    proba : ndarray of float64, shape (n, K)
        Probabilities of held-out training rows.
    judged : ndarray of bool, shape (n,)
        Which rows have them.
    accuracies : dict of int to float
        Of each fold, by its first held-out row.
    temperatures, fit_seconds, predict_seconds : list of float
        One number for each fold; no temperatures of heads with probabilities of their own.
    fitted : fitted pipeline, or None
        On the whole training split.
    validation : dict
        Accuracy and log loss on the validation split, for finalists.
    """

    head: str
    params: dict[str, Any]
    proba: Probabilities = field(repr=False)
    judged: NDArray[np.bool_] = field(repr=False)
    accuracies: dict[int, float] = field(default_factory=dict)
    temperatures: list[float] = field(default_factory=list)
    fit_seconds: list[float] = field(default_factory=list)
    predict_seconds: list[float] = field(default_factory=list)
    fitted: Any = None
    validation: dict[str, float] = field(default_factory=dict)

    def add(self, outer: Rows, result: FoldScore) -> None:
        """Add the result on the held-out rows of a fold."""
        self.proba[outer], self.judged[outer] = result.proba, True
        self.accuracies[int(outer[0])] = result.accuracy
        self.temperatures += [] if result.temperature is None else [result.temperature]
        self.fit_seconds.append(result.fit_seconds)
        self.predict_seconds.append(result.predict_seconds)

    def score(self, y: Labels) -> dict[str, float]:
        """Return accuracy and log loss on the rows judged so far."""
        return score(y[self.judged], self.proba[self.judged])

    def row(self, y: Labels) -> dict[str, Any]:
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
    """What was chosen, from which candidates, and on which images.

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
        Out-of-fold probabilities of the rows `folded_rows`: those of the training split in the folds that were scored.
    notes : tuple of str
    """

    head: str
    params: dict[str, Any]
    candidates: list[dict[str, Any]] = field(default_factory=list)
    chosen_on: str = ""
    fitted: Any = None
    folded: Probabilities | None = None
    folded_rows: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    notes: tuple[str, ...] = ()


def parameter_grid(head_name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters to try: the values of the head's main parameter, none if it is among those given.

    Examples
    --------
    >>> parameter_grid("ridge", {})[:2], parameter_grid("ridge", {"alpha": 3.0})
    ([{'alpha': 10.0}, {'alpha': 100.0}], [])
    """
    open_names = [name for name in find_head(head_name).search if name not in params]
    return [{**params, name: value} for name in open_names[:1] for value in find_head(head_name).search[name]]


def make_candidates(fitter: Fitter, head_name: str, grid: Iterable[Mapping[str, Any]]) -> list[Candidate]:
    """Return a candidate without scores for each of the parameters."""
    shape = (len(fitter.data.y), len(fitter.data.classes))
    return [Candidate(head_name, dict(params), np.zeros(shape), np.zeros(shape[0], bool)) for params in grid]


def score_fold(
    fitter: Fitter,
    candidates: Sequence[Candidate],
    inner: Rows,
    outer: Rows,
    *,
    preview: bool = False,
    may_stop: bool = False,
) -> list[FoldScore]:
    """Fit candidates of one head on `inner` and score them on `outer`; the candidates themselves stay as they are.

    Parameters
    ----------
    fitter : Fitter
    candidates : sequence of Candidate
    inner, outer : ndarray of int
        Rows to fit on, and held-out rows.
    preview : bool
        Whether the fits are only compared, see `fit_path`; temperatures are then fitted to the held-out rows.
    may_stop : bool
        Whether a head with `search_stops` ends after two candidates in a row that are worse than an earlier one.

    Returns
    -------
    list of FoldScore
        In the order of the candidates, at least one.
    """
    truth, row = fitter.data.y[outer], find_head(candidates[0].head)
    answers: list[tuple[Probabilities, float | None]] = []
    scores: list[dict[str, float]] = []
    predicting: list[float] = []
    began = time.perf_counter()
    grid = [each.params for each in candidates]
    for fitted in fitter.fit(row.name, grid, inner, temperature=1.0 if preview else None, preview=preview):
        before = time.perf_counter()
        proba, temperature = fitter.probabilities(fitted, outer), None
        predicting.append(time.perf_counter() - before)
        if preview and row.softmax:
            proba, temperature = _tempered(proba, truth)
        answers.append((proba, temperature))
        scores.append(score(truth, proba))
        if may_stop and row.search_stops and past_the_best(scores):
            break
    fit_seconds = (time.perf_counter() - began - sum(predicting)) / len(answers)
    return [
        FoldScore(proba, result["accuracy"], temperature, fit_seconds, seconds)
        for (proba, temperature), result, seconds in zip(answers, scores, predicting, strict=True)
    ]


def _tempered(proba: Probabilities, truth: Labels) -> tuple[Probabilities, float]:
    """Fit the temperature of decision values to these rows: one number, to make log losses comparable."""
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


def score(truth: Labels, proba: Probabilities) -> dict[str, float]:
    """Return ``accuracy`` and ``log_loss`` of probabilities (n, K)."""
    accuracy = float((proba.argmax(axis=1) == truth).mean())
    return {"accuracy": accuracy, "log_loss": float(log_losses(truth, proba).mean())}


def rank(result: Mapping[str, float]) -> tuple[float, float]:
    """Return a key to sort scores by: the more accurate is larger, then the one with the smaller log loss."""
    return result["accuracy"], -result["log_loss"]


def past_the_best(results: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the last two scores are worse than an earlier one, in accuracy and log loss.

    Examples
    --------
    >>> results = [{"accuracy": 0.9, "log_loss": loss} for loss in (0.3, 0.4, 0.5)]
    >>> past_the_best(results[:2]), past_the_best(results)
    (False, True)
    """
    last, before = results[-2:], results[:-2]
    return bool(before) and all(
        each["log_loss"] > min(result["log_loss"] for result in before)
        and each["accuracy"] <= max(result["accuracy"] for result in before)
        for each in last
    )


def close_to_best(answers: Sequence[Probabilities], truth: Labels) -> list[int]:
    """Return which answers (n, K) are not clearly less accurate than the best, the smallest log loss first.

    Clearly is more than two standard errors of the paired difference, image by image, as in McNemar's test. Among
    accuracies that differ by chance, the log loss is the more precise measure.
    """
    right = [proba.argmax(axis=1) == truth for proba in answers]
    top = max(right, key=np.sum)
    close = []
    for number, each in enumerate(right):
        lost, won = int((top & ~each).sum()), int((each & ~top).sum())
        if lost - won <= _CLEARLY * np.sqrt(lost + won):
            close.append(number)
    return sorted(close, key=lambda number: score(truth, answers[number])["log_loss"])


def dominated(proba: Probabilities, best: Probabilities, truth: Labels) -> bool:
    """Return whether answers (n, K) are no more accurate than others and clearly have the larger log loss.

    Clearly is more than three standard errors of the paired difference, image by image.
    """
    more = log_losses(truth, proba) - log_losses(truth, best)
    error = float(more.std()) / np.sqrt(len(more))
    no_better = score(truth, proba)["accuracy"] <= score(truth, best)["accuracy"]
    return no_better and float(more.mean()) > _CLEARLY_IN_LOSS * error
