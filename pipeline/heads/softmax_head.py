"""`SoftmaxHead`: probabilities for classifiers that only have decision values."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from pipeline.heads.arrays import softmax
from pipeline.heads.folds import make_folds
from pipeline.heads.temperature import fit_temperature

# Warnings of NearestCentroid about constant columns, which its decision values allow for, and of linear discriminant
# analysis about classes of a single image.
HARMLESS = ("self.within_class_std_dev_", "Only one sample available")
_LOG_ODDS_AT_MARGIN = 2.0  # of one class against another, where the decision value of an SVC is 1, its margin


class SoftmaxHead(ClassifierMixin, BaseEstimator):
    """Add probabilities to a classifier that only has decision values.

    They are softmax(decision / temperature), with a temperature chosen on out-of-fold decision values (see
    `fit_temperature`); so a linear classifier remains an affine map followed by a softmax.

    Parameters
    ----------
    estimator : scikit-learn classifier with ``decision_function``
    folds : int
        Classes with fewer units than this are not used to choose the temperature.

    Attributes
    ----------
    estimator_ : classifier
        Fitted on all rows.
    temperature_ : float
    classes_ : array of shape (k,)

    Examples
    --------
    >>> from sklearn.linear_model import RidgeClassifier
    >>> head = SoftmaxHead(RidgeClassifier()).fit([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]], [0, 0, 0, 1, 1, 1])
    >>> head.predict_proba([[8.0]]).argmax().item()
    1
    """

    def __init__(self, estimator: Any, folds: int = 3) -> None:
        self.estimator = estimator
        self.folds = folds

    def fit(self, X: Any, y: Any, units: Any = None) -> "SoftmaxHead":
        """Fit the classifier on all rows, and the temperature on out-of-fold decision values.

        Parameters
        ----------
        X : array of shape (n, d)
        y : array of shape (n,)
            Labels of any kind.
        units : array of shape (n,), optional
            Rows with the same value stay in one fold.

        Returns
        -------
        SoftmaxHead
            self
        """
        with warnings.catch_warnings():
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            X, y = np.asarray(X), np.asarray(y)
            self.estimator_ = clone(self.estimator).fit(X, y)
            (self.temperature_,) = choose_temperatures(
                lambda inner: [clone(self.estimator).fit(X[inner], y[inner])], X, y, units, self.folds
            ) or [1.0]
        self.classes_: np.ndarray = self.estimator_.classes_
        self.n_features_in_: int = self.estimator_.n_features_in_
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the unscaled decision values, one per class even if the classifier has one per pair of classes.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        float array of shape (n, k), or (n,) for two classes
        """
        check_is_fitted(self)
        return _per_class(self.estimator_, self.estimator_.decision_function(X), len(self.classes_))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return softmax(decision / temperature).

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        float array of shape (n, k)
            Rows add up to 1; columns follow ``classes_``.
        """
        return softmax(_logits(self.decision_function(X)) / self.temperature_)

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest decision value.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        array of shape (n,)
            With the dtype of ``classes_``.
        """
        columns = _logits(self.decision_function(X)).argmax(axis=1)
        return np.asarray(self.classes_[columns])

    def tempered(self, temperature: float) -> "SoftmaxHead":
        """Return a copy whose logits are divided by a further temperature."""
        head = copy.copy(self)
        head.temperature_ = float(self.temperature_ * temperature)
        return head

    @classmethod
    def of(cls, fitted: Any, temperature: float) -> "SoftmaxHead":
        """Wrap a fitted classifier."""
        head = cls(clone(fitted))
        head.estimator_, head.temperature_ = fitted, temperature
        head.classes_, head.n_features_in_ = fitted.classes_, fitted.n_features_in_
        return head


def choose_temperatures(
    fit: Callable[[np.ndarray], Iterable[Any]], X: np.ndarray, y: np.ndarray, units: Any = None, folds: int = 3
) -> list[float]:
    """Choose the temperature of each of several classifiers on out-of-fold decision values.

    Parameters
    ----------
    fit : callable
        Takes row numbers and returns the classifiers fitted on these rows.
    X : array of shape (n, d)
    y : array of shape (n,)
    units : array of shape (n,), optional
        Rows with the same value stay in one fold.
    folds : int
        Classes with fewer units than this are not used.

    Returns
    -------
    list of float
        One per classifier; empty if fewer than two classes can be used.
    """
    units = np.arange(len(y)) if units is None else np.asarray(units)
    classes, codes = np.unique(y, return_inverse=True)
    unit_classes = np.unique(np.column_stack([codes, np.unique(units, return_inverse=True)[1]]), axis=0)[:, 0]
    usable = np.bincount(unit_classes, minlength=len(classes)) >= folds
    if usable.sum() < 2:
        return []
    rows = np.flatnonzero(usable[codes])
    labels = np.searchsorted(classes[usable], y[rows])
    decisions: list[list[np.ndarray]] = []
    truths = []
    for inner, outer in make_folds(labels, folds, units=units[rows]):
        if len(np.unique(labels[inner])) == usable.sum():  # a large group can hold all rows of a class
            held = X[rows[outer]]
            values = (_per_class(each, each.decision_function(held), len(each.classes_)) for each in fit(rows[inner]))
            decisions.append([_logits(each) for each in values])
            truths.append(labels[outer])
    return [fit_temperature(np.vstack(each), np.concatenate(truths)) for each in zip(*decisions, strict=True)]


def _per_class(estimator: Any, decision: np.ndarray, k: int) -> np.ndarray:
    """Return decision values per class (n, k), also for an SVC, which has one per pair of classes.

    The value of a class is the sum of log sigmoids of its pairwise values: the log probability that it wins against
    every other class. SVC's own values per class count pairwise wins, so the two best classes are always about 1
    apart, however close the decision between them.
    """
    if decision.ndim == 1 or getattr(estimator, "decision_function_shape", None) != "ovo":
        return np.asarray(decision)
    values = np.zeros((len(decision), k))
    for column, (first, second) in zip(decision.T, itertools.combinations(range(k), 2), strict=True):
        values[:, first] -= np.logaddexp(0.0, -_LOG_ODDS_AT_MARGIN * column)
        values[:, second] -= np.logaddexp(0.0, _LOG_ODDS_AT_MARGIN * column)
    return values


def _logits(decision: np.ndarray) -> np.ndarray:
    """Return one column per class; for two classes scikit-learn returns a single one."""
    decision = np.asarray(decision, dtype=np.float64)
    return np.column_stack([np.zeros_like(decision), decision]) if decision.ndim == 1 else decision
