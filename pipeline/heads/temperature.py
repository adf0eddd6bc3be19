"""The temperature of a softmax: fit it, and divide the logits of a fitted head by it."""

import copy
from typing import Any

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature T for which softmax(logits / T) has the smallest log loss.

    Temperature scaling of Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
    Networks", 2017. It never changes which class is the most probable one. The labels are smoothed by one image
    in n + 1 that is of every class alike, so that n right decisions do not lead to infinite logits.

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


def temper(head: Any, temperature: float) -> Any:
    """Return a fitted pipeline whose logits are divided by a temperature; the given one stays as it is.

    Parameters
    ----------
    head : fitted pipeline of `make_head`
    temperature : float
        Above 0.

    Returns
    -------
    fitted pipeline or None
        Shares the steps before the classifier with `head`. None if the classifier has no softmax of its own, as
        logistic regression, `SoftmaxHead` and `KerasHead` have.

    Examples
    --------
    >>> from pipeline.heads.classifiers import make_head
    >>> head = make_head("logreg").fit([[0.0], [1.0], [8.0], [9.0]], [0, 0, 1, 1])
    >>> bool(0.5 < temper(head, 2.0).predict_proba([[9.0]])[0, 1] < head.predict_proba([[9.0]])[0, 1])
    True
    """
    from sklearn.pipeline import Pipeline

    classifier = copy.copy(head[-1])
    if hasattr(classifier, "tempered"):  # the heads of this package know how
        classifier = classifier.tempered(temperature)
    elif is_softmax(classifier):
        classifier.coef_ = classifier.coef_ / temperature
        classifier.intercept_ = classifier.intercept_ / temperature
    else:
        return None
    return Pipeline([*head.steps[:-1], (head.steps[-1][0], classifier)])


def is_softmax(classifier: Any) -> bool:
    """Return whether a classifier is scikit-learn's logistic regression with one softmax over all classes."""
    from sklearn.linear_model import LogisticRegression

    if not isinstance(classifier, LogisticRegression):
        return False
    return classifier.solver != "liblinear" or len(classifier.classes_) == 2
