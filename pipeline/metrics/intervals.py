"""Confidence intervals of scores: Wilson's for a proportion, the bootstrap for everything else."""

import numpy as np

from pipeline.metrics.losses import log_losses


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, "Probable inference ...", JASA 1927).

    Parameters
    ----------
    successes : int
        0 to n.
    n : int
        At least 1.

    Returns
    -------
    tuple of two float
        Lower and upper bound, within 0 and 1.

    Examples
    --------
    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_intervals(
    y_true: np.ndarray, p: np.ndarray, units: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, list[float]]:
    """Return 95 % percentile intervals of scores by bootstrap resampling of units.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. A unit is a whole group, because
    images of one group are not independent.

    Parameters
    ----------
    y_true : int array of shape (n,)
    p : float array of shape (n, k)
    units : int array of shape (n,)
        Unit of each row, 0 to the number of units - 1.
    seed : int
    resamples : int

    Returns
    -------
    dict
        Lower and upper bound of ``accuracy``, ``balanced_accuracy``, ``macro_f1`` and ``log_loss``.

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> bootstrap_intervals(np.array([0, 1, 0, 0]), p, np.arange(4))["accuracy"]
    [0.25, 1.0]
    """
    rng = np.random.default_rng(seed)
    k, count = p.shape[1], int(units.max()) + 1
    predicted = p.argmax(axis=1)
    correct = (predicted == y_true).astype(float)
    losses = log_losses(y_true, p)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    scores = np.empty((resamples, len(names)))
    for row in scores:
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[units].astype(float)
        hits = np.bincount(y_true, weights * correct, k)
        support = np.bincount(y_true, weights, k)
        answers = np.bincount(predicted, weights, k)
        present, seen = support > 0, support + answers > 0
        row[:] = (
            hits.sum() / weights.sum(),
            (hits[present] / support[present]).mean(),
            (2 * hits[seen] / (support + answers)[seen]).mean(),
            (weights * losses).sum() / weights.sum(),
        )
    bounds = np.percentile(scores, [2.5, 97.5], axis=0).T
    return {name: [float(low), float(high)] for name, (low, high) in zip(names, bounds, strict=True)}
