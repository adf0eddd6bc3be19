"""The reliability curve and the expected calibration error of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


def reliability(y_true: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = BINS) -> dict[str, Any]:
    """Compare the confidence of predictions with their accuracy.

    The expected calibration error of Naeini, Cooper and Hauskrecht ("Obtaining well calibrated probabilities
    using Bayesian binning", AAAI 2015) as Guo et al. (2017) measure it: predictions are put into bins of equal width
    by the probability of the most probable class; the error is the mean difference of mean probability and accuracy,
    weighted by the number of predictions in each bin. Its expectation is above 0 even for a perfectly calibrated
    head, especially with few images.

    Parameters
    ----------
    y_true : int array of shape (n,)
        Columns of the true classes.
    probabilities : float array of shape (n, k)
    bins : int

    Returns
    -------
    dict
        Ready for JSON: ``error`` (0 to 1), ``chance`` (the error expected of a perfectly calibrated head with
        the same confidence on as many images), ``n``, and ``bins``, a list of ``{"from", "to", "n", "probability",
        "accuracy"}`` without the empty ones.

    Examples
    --------
    >>> p = np.array([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    >>> reliability(np.array([0, 0, 0, 1]), p)["error"], reliability(np.array([0, 0, 1, 1]), p)["error"]
    (0.0, 0.25)
    """
    top = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y_true
    # The k-th bin is (k - 1, k] / bins, so that the last one includes 1.
    bin_of = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    error = chance = 0.0
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        rows.append(
            {
                "from": number / bins,
                "to": (number + 1) / bins,
                "n": int(inside.sum()),
                "probability": float(top[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
        error += abs(float(top[inside].sum()) - float(correct[inside].sum())) / len(top)
        # The mean absolute deviation of a normal variable with this variance.
        chance += float(np.sqrt(2 / np.pi * (top[inside] * (1 - top[inside])).sum())) / len(top)
    return {"error": error, "chance": chance, "n": len(top), "bins": rows}
