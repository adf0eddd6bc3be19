"""Abstention: the lowest threshold on the top probability that guarantees an accuracy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError, UsageError
from pipeline.metrics.intervals import wilson_interval

CONFIDENCE = 0.9
_STEPS = 100  # thresholds that are tested, at most


def learn_threshold(correct: NDArray[np.bool_], confidence: NDArray[np.float64], accuracy: float) -> float:
    """Find the lowest threshold above which answers have the given accuracy, with 90 % confidence.

    Fixed-sequence testing (Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test", 2021): a sequence fixed in
    advance accepts the most confident images first, then more and more. Each step is an exact binomial test of the
    hypothesis that the accuracy of the accepted images is below `accuracy`; the last step before the first one that
    fails gives the threshold. The probability that the threshold guarantees too much is at most 10 %, whatever the
    number of steps. The first step accepts a tenth of the images, but at least twice as many as would pass the test
    without an error.

    Parameters
    ----------
    correct : bool array of shape (n,)
        Whether the most probable class is the true one, on images that the head was not fitted on.
    confidence : float array of shape (n,)
        Probability of the most probable class.
    accuracy : float
        Above 0 and below 1.

    Returns
    -------
    float
        Answers of this probability or more are accepted; 0.0 if all can be.

    Raises
    ------
    UsageError
        If `accuracy` is out of range.
    TrainingError
        If there are too few images, or no threshold gives the accuracy.

    Examples
    --------
    >>> confidence = np.linspace(0.01, 1.0, 1000)
    >>> threshold = learn_threshold(np.arange(1000) >= 300, confidence, 0.9)  # below 0.31 all are wrong
    >>> 0.22 < threshold < 0.31
    True
    """
    from scipy.stats import binom

    if not 0 < accuracy < 1:
        raise UsageError(
            f"abstain {accuracy} is not an accuracy that can be guaranteed; give a number above 0 and below 1"
        )
    least = images_needed(accuracy)
    if len(correct) < least:
        raise TrainingError(
            f"guaranteeing an accuracy of {accuracy:g} takes at least {least} held-out images, and there are"
            f" {len(correct)}; ask for a lower accuracy, add images, or leave out --abstain"
        )
    ordered = np.sort(confidence)[::-1]
    sizes = np.unique(np.linspace(max(least, len(correct) // 10), len(correct), _STEPS).round().astype(int))
    threshold = None
    for size in sizes.tolist():
        candidate = float(ordered[size - 1])
        is_accepted = confidence >= candidate  # images of equal confidence are accepted together
        wrong = int((is_accepted & ~correct).sum())
        if binom.cdf(wrong, int(is_accepted.sum()), 1 - accuracy) > 1 - CONFIDENCE:
            break
        threshold = candidate
    if threshold is None:
        raise TrainingError(
            f"no threshold gives an accuracy of {accuracy:g} with {CONFIDENCE:.0%} confidence: of the"
            f" {is_accepted.sum()} most confident answers {wrong} are wrong; ask for a lower accuracy, or leave out"
            " --abstain"
        )
    # Slightly lower, so that equal probabilities are accepted also on a machine that rounds differently.
    return 0.0 if is_accepted.all() and candidate == threshold else threshold * (1 - 1e-9)


def images_needed(accuracy: float) -> int:
    """Return how many held-out images are needed to guarantee an accuracy.

    >>> images_needed(0.95)
    90
    """
    return 2 * int(np.ceil(np.log(1 - CONFIDENCE) / np.log(accuracy)))


def accepted(correct: NDArray[np.bool_], confidence: NDArray[np.float64], threshold: float) -> dict[str, Any]:
    """Count the images that a threshold accepts, and measure the accuracy of their answers.

    Parameters
    ----------
    correct, confidence
        As in `learn_threshold`.
    threshold : float

    Returns
    -------
    dict
        Ready for JSON: ``n``, ``accepted``, ``coverage`` (accepted / n), ``accuracy`` of the accepted images and its
        95 % ``interval`` (Wilson); the last two are None if none is accepted.

    Examples
    --------
    >>> found = accepted(np.array([True, True, False]), np.array([0.9, 0.8, 0.3]), 0.5)
    >>> found["coverage"], found["accuracy"]
    (0.6666666666666666, 1.0)
    """
    is_accepted = confidence >= threshold
    count, hits = int(is_accepted.sum()), int((is_accepted & correct).sum())
    return {
        "n": len(correct),
        "accepted": count,
        "coverage": count / len(correct),
        "accuracy": hits / count if count else None,
        "interval": list(wilson_interval(hits, count)) if count else None,
    }
