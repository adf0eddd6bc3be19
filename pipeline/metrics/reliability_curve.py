"""How far probabilities can be believed: the expected calibration error."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


def reliability(y_true: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = BINS) -> dict[str, Any]:
    """Compare how sure a head is of its answers with how often they are right.

    The expected calibration error of Naeini, Cooper and Hauskrecht ("Obtaining well calibrated probabilities
    using Bayesian binning", AAAI 2015) as Guo et al. (2017) measure it: answers are put into bins of equal
    width by the probability of the most probable class; the error is the mean distance between mean
    probability and accuracy, weighted by the answers in each bin. Its expectation is above 0 also for a perfect
    head, the more so the fewer the images.

    Parameters
    ----------
    y_true : int array of shape (n,)
        Columns of the true classes.
    probabilities : float array of shape (n, k)
    bins : int

    Returns
    -------
    dict
        Ready for JSON: ``error`` (0 to 1), ``chance`` (the error to expect from a perfectly calibrated head that is
        as sure on as many images), ``n``, and ``bins``, a list of ``{"from", "to", "n", "probability",
        "accuracy"}`` without the empty ones.

    Examples
    --------
    >>> p = np.array([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    >>> reliability(np.array([0, 0, 0, 1]), p)["error"], reliability(np.array([0, 0, 1, 1]), p)["error"]
    (0.0, 0.25)
    """
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y_true
    # The k-th bin is (k - 1, k] / bins, so that a probability of 1 has a place in the last one.
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    error = chance = 0.0
    for number in np.unique(place).tolist():
        mine = place == number
        rows.append(
            {
                "from": number / bins,
                "to": (number + 1) / bins,
                "n": int(mine.sum()),
                "probability": float(top[mine].mean()),
                "accuracy": float(right[mine].mean()),
            }
        )
        error += abs(float(top[mine].sum()) - float(right[mine].sum())) / len(top)
        # Mean distance of a normal variable of this variance from its mean.
        chance += float(np.sqrt(2 / np.pi * (top[mine] * (1 - top[mine])).sum())) / len(top)
    return {"error": error, "chance": chance, "n": len(top), "bins": rows}
