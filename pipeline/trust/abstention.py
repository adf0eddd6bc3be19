"""When to say nothing: a threshold on the top probability that buys the accuracy that was asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError, UsageError
from pipeline.metrics.intervals import wilson_interval

CONFIDENCE = 0.9
_STEPS = 100  # sizes of the accepted part that are tested, at most


def learn_threshold(right: NDArray[np.bool_], confidence: NDArray[np.float64], asked: float) -> float:
    """Find the lowest threshold above which answers are as accurate as asked, with 90 % confidence.

    Fixed-sequence testing (Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test", 2021): the most
    confident images are accepted first, then more and more in steps that were laid down beforehand. Each step
    is an exact binomial test of "the accepted accuracy is below what was asked", and the last step before the
    first one that fails gives the threshold; so the chance that the threshold promises too much is at most
    10 %, whatever the number of steps. The first step takes a tenth of the images, and at least twice as many as
    would do without a mistake.

    Parameters
    ----------
    right : bool array of shape (n,)
        Whether the most probable class was the true one, on images that the head was not fitted on.
    confidence : float array of shape (n,)
        Probability of that class.
    asked : float
        Accuracy, above 0 and below 1.

    Returns
    -------
    float
        Answers with this probability or more are accepted; 0.0 where all can be.

    Raises
    ------
    UsageError
        If `asked` is no such number.
    TrainingError
        If there are too few images, or no threshold will do.

    Examples
    --------
    >>> confidence = np.linspace(0.01, 1.0, 1000)
    >>> threshold = learn_threshold(np.arange(1000) >= 300, confidence, 0.9)  # below 0.31 all are wrong
    >>> 0.22 < threshold < 0.31
    True
    """
    from scipy.stats import binom

    if not 0 < asked < 1:
        raise UsageError(f"abstain {asked} is no accuracy that can be promised; give one above 0 and below 1")
    least = needed(asked) // 2
    if len(right) < 2 * least:
        raise TrainingError(
            f"to promise an accuracy of {asked:g} takes {2 * least} held-out images, and there are {len(right)};"
            " ask for less, add images, or leave out --abstain"
        )
    ordered = np.sort(confidence)[::-1]
    sizes = np.unique(np.linspace(max(2 * least, len(right) // 10), len(right), _STEPS).round().astype(int))
    threshold = None
    for size in sizes.tolist():
        candidate = float(ordered[size - 1])
        accepted = confidence >= candidate  # equal ones are in or out together
        wrong = int((accepted & ~right).sum())
        if binom.cdf(wrong, int(accepted.sum()), 1 - asked) > 1 - CONFIDENCE:
            break
        threshold = candidate
    if threshold is None:
        raise TrainingError(
            f"no threshold gives an accuracy of {asked:g} with {CONFIDENCE:.0%} confidence: of the {accepted.sum()}"
            f" images that the head is surest of {wrong} are wrong; ask for less, or leave out --abstain"
        )
    # A hair lower, so that equal votes are accepted also where another machine rounds otherwise.
    return 0.0 if accepted.all() and candidate == threshold else threshold * (1 - 1e-9)


def needed(asked: float) -> int:
    """Return how many held-out images it takes to promise an accuracy.

    >>> needed(0.95)
    90
    """
    return 2 * int(np.ceil(np.log(1 - CONFIDENCE) / np.log(asked)))


def accepted(right: NDArray[np.bool_], confidence: NDArray[np.float64], threshold: float) -> dict[str, Any]:
    """Say how many images a threshold accepts, and how many of those are right.

    Parameters
    ----------
    right, confidence
        As in `learn_threshold`, of images that had no part in learning it.
    threshold : float

    Returns
    -------
    dict
        Ready for JSON: ``n``, ``accepted``, ``coverage``, ``accuracy`` of the accepted and its 95 % ``interval``
        (Wilson); both are None where none is accepted.

    Examples
    --------
    >>> found = accepted(np.array([True, True, False]), np.array([0.9, 0.8, 0.3]), 0.5)
    >>> found["coverage"], found["accuracy"]
    (0.6666666666666666, 1.0)
    """
    taken = confidence >= threshold
    count, good = int(taken.sum()), int((taken & right).sum())
    return {
        "n": len(right),
        "accepted": count,
        "coverage": count / len(right),
        "accuracy": good / count if count else None,
        "interval": list(wilson_interval(good, count)) if count else None,
    }
