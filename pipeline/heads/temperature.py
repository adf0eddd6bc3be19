"""The temperature of a softmax: finding it, and dividing the logits of a fitted head by it."""

from typing import Any

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature T for which softmax(logits / T) has the smallest log loss.

    Temperature scaling of Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
    Networks", 2017. It never changes which class is the most probable one. One image in n + 1 is taken to
    be of any class, so that n right decisions do not make a head infinitely sure of itself.

    Parameters
    ----------
    logits : float array of shape (n, k)
        One column per class.
    labels : int array of shape (n,)
        Columns of the true classes, 0 to k - 1.

    Returns
    -------
    float
        Between 1e-4 and 1e4.

    Examples
    --------
    >>> logits = np.array([[2.0, 0.0]] * 99)
    >>> t = fit_temperature(logits, np.array([0] * 99))  # right 99 times in 99
    >>> round(float(1 / (1 + np.exp(-2 / t))), 3)
    0.995
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    n = len(labels)
    target = (n * logits[np.arange(n), labels] + logits.mean(axis=1)) / (n + 1)

    def log_loss(log_t: float) -> float:
        scale = np.exp(-log_t)
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * target))

    bound = np.log(1e4)
    return float(np.exp(minimize_scalar(log_loss, bounds=(-bound, bound), method="bounded").x))


def temper(head: Any, degrees: float) -> bool:
    """Divide the logits of a fitted pipeline by a temperature, inside the head itself.

    Parameters
    ----------
    head : fitted pipeline of `make_head`
        Changed in place where its last step ends in a softmax of its own: logistic regression, `SoftmaxHead`,
        `KerasHead`.
    degrees : float
        The temperature, above 0.

    Returns
    -------
    bool
        False where the head has no logits, and nothing was changed.

    Examples
    --------
    >>> from pipeline.heads.classifiers import make_head
    >>> head = make_head("logreg").fit([[0.0], [1.0], [8.0], [9.0]], [0, 0, 1, 1])
    >>> before = head.predict_proba([[9.0]])[0, 1]
    >>> temper(head, 2.0), bool(0.5 < head.predict_proba([[9.0]])[0, 1] < before)
    (True, True)
    """
    from pipeline.heads.keras_head import KerasHead

    last = head[-1]
    if hasattr(last, "temperature_"):  # SoftmaxHead
        last.temperature_ = float(last.temperature_ * degrees)
    elif isinstance(last, KerasHead):
        scaled = [np.asarray(array / np.float32(degrees), np.float32) for array in last.weights_[-2:]]
        last.weights_ = [*last.weights_[:-2], *scaled]
    elif is_softmax(last):
        last.coef_ = last.coef_ / degrees
        last.intercept_ = last.intercept_ / degrees
    else:
        return False
    return True


def is_softmax(classifier: Any) -> bool:
    """Say whether a classifier is scikit-learn's logistic regression with one softmax over all classes."""
    from sklearn.linear_model import LogisticRegression

    if not isinstance(classifier, LogisticRegression):
        return False
    return classifier.solver != "liblinear" or len(classifier.classes_) == 2
