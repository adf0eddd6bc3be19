"""Confidence intervals of scores: Wilson's for a proportion, the bootstrap for everything else."""

import math

import numpy as np

from pipeline.metrics.losses import log_losses

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Give the 95 % score interval of a proportion (Wilson, "Probable inference ...", JASA 1927).

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
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # min and max with the share: at 0 and n rounding must not push a bound past it.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap_intervals(
    y_true: np.ndarray, p: np.ndarray, units: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, list[float]]:
    """Give 95 % percentile intervals of scores by drawing units again with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; whole groups are drawn, since images
    of one group are not independent of each other.

    Parameters
    ----------
    y_true : int array of shape (n,)
    p : float array of shape (n, k)
    units : int array of shape (n,)
        0 to the number of units less one.
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
    right = (predicted == y_true).astype(float)
    losses = log_losses(y_true, p)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    drawn = np.empty((resamples, len(names)))
    for row in drawn:
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[units].astype(float)
        hits, support, answers = (
            np.bincount(labels, each, k)
            for labels, each in ((y_true, weights * right), (y_true, weights), (predicted, weights))
        )
        present, seen = support > 0, support + answers > 0
        row[:] = (
            hits.sum() / weights.sum(),
            (hits[present] / support[present]).mean(),
            (2 * hits[seen] / (support + answers)[seen]).mean(),
            (weights * losses).sum() / weights.sum(),
        )
    bounds = np.percentile(drawn, [2.5, 97.5], axis=0).T
    return {name: [float(low), float(high)] for name, (low, high) in zip(names, bounds, strict=True)}
