"""Log losses of single predictions, one definition for training, calibration and reports."""

import numpy as np
from numpy.typing import NDArray

# As scikit-learn's log_loss clips probabilities of float64.
_MIN_PROBABILITY = float(np.finfo(np.float64).eps)


def log_losses(y_true: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return -ln(probability of the true class) of each row, in nats.

    Parameters
    ----------
    y_true : int array of shape (n,)
        Columns of the true classes.
    probabilities : float array of shape (n, k)

    Returns
    -------
    float array of shape (n,)
        From 0 to 36.04: probabilities are clipped at the machine epsilon of float64.

    Examples
    --------
    >>> log_losses(np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
    [0.0, 0.6931]
    """
    return _losses(probabilities[np.arange(len(y_true)), y_true])


def label_log_losses(Y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the binary log loss of each label of each image, in nats.

    Parameters
    ----------
    Y : int array of shape (n, l)
        0 and 1.
    probabilities : float array of shape (n, l)
        Of 1.

    Returns
    -------
    float array of shape (n, l)
        Clipped as in `log_losses`.

    Examples
    --------
    >>> label_log_losses(np.array([[1, 0]]), np.array([[0.5, 0.0]])).round(4).tolist()
    [[0.6931, 0.0]]
    """
    return _losses(np.where(Y == 1, probabilities, 1 - probabilities))


def _losses(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    # abs instead of a minus sign: no -0.0 in reports.
    return np.abs(np.log(np.clip(probabilities, _MIN_PROBABILITY, 1.0)))
