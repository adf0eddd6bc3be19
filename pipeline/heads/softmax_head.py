"""`SoftmaxHead`: probabilities for classifiers that only have decision values."""

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

# NearestCentroid warns of constant columns, which its decision values take into account, and shrinkage of classes
# with a single image; both are as good as such data allow.
HARMLESS = ("self.within_class_std_dev_", "Only one sample available")
_DUEL = 2.0  # log odds of a duel whose decision value is 1, the margin of a support vector machine


class SoftmaxHead(ClassifierMixin, BaseEstimator):
    """Gives a classifier that only has decision values its probabilities.

    They are the softmax of the decision values over one temperature, which is chosen on decisions made out
    of fold (see `fit_temperature`); so a linear classifier stays an affine map followed by a softmax.

    Parameters
    ----------
    estimator : scikit-learn classifier with ``decision_function``
    folds : int
        Classes with fewer rows than this take no part in choosing the temperature.

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
        """Fit the classifier on all rows, and the temperature on decisions made out of fold.

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
            Itself.
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
        """Give the decision values of the classifier, unscaled; one a class also where it has one a pair of classes.

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
        """Give softmax(decision / temperature).

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
        """Give the class of the largest decision value.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        array of shape (n,)
            Of the type of ``classes_``.
        """
        columns = _logits(self.decision_function(X)).argmax(axis=1)
        return np.asarray(self.classes_[columns])

    @classmethod
    def of(cls, fitted: Any, temperature: float) -> "SoftmaxHead":
        """Wrap a classifier that is fitted already."""
        head = cls(clone(fitted))
        head.estimator_, head.temperature_ = fitted, temperature
        head.classes_, head.n_features_in_ = fitted.classes_, fitted.n_features_in_
        return head


def choose_temperatures(
    fit: Callable[[np.ndarray], Iterable[Any]], X: np.ndarray, y: np.ndarray, units: Any = None, folds: int = 3
) -> list[float]:
    """Choose the temperature of each of several classifiers on decisions made out of fold.

    Parameters
    ----------
    fit : callable
        From the numbers of some rows to the classifiers fitted on them.
    X : array of shape (n, d)
    y : array of shape (n,)
    units : array of shape (n,), optional
        Rows with the same value stay in one fold.
    folds : int
        Classes of fewer units than this take no part.

    Returns
    -------
    list of float
        As many as `fit` gives; empty where fewer than two classes can take part.
    """
    units = np.arange(len(y)) if units is None else np.asarray(units)
    classes, codes = np.unique(y, return_inverse=True)
    of_units = np.unique(np.column_stack([codes, np.unique(units, return_inverse=True)[1]]), axis=0)[:, 0]
    common = np.bincount(of_units, minlength=len(classes)) >= folds
    if common.sum() < 2:
        return []
    rows = np.flatnonzero(common[codes])
    labels = np.searchsorted(classes[common], y[rows])
    decisions: list[list[np.ndarray]] = []
    truths = []
    for inner, outer in make_folds(labels, folds, units=units[rows]):
        if len(np.unique(labels[inner])) == common.sum():  # groups may hold a class back
            shown = X[rows[outer]]
            values = (_per_class(each, each.decision_function(shown), len(each.classes_)) for each in fit(rows[inner]))
            decisions.append([_logits(each) for each in values])
            truths.append(labels[outer])
    return [fit_temperature(np.vstack(each), np.concatenate(truths)) for each in zip(*decisions, strict=True)]


def _per_class(estimator: Any, decision: np.ndarray, k: int) -> np.ndarray:
    """Sum up what a class wins against each other one, where an SVC has a decision value for each pair of classes.

    The sum of log sigmoids is the log of the chance to win every duel. SVC's own values of classes count duels
    won, so the first two are always about 1 apart, whether the decision between them was close or clear.
    """
    if decision.ndim == 1 or getattr(estimator, "decision_function_shape", None) != "ovo":
        return np.asarray(decision)
    values = np.zeros((len(decision), k))
    for column, (first, second) in zip(decision.T, itertools.combinations(range(k), 2), strict=True):
        values[:, first] -= np.logaddexp(0.0, -_DUEL * column)
        values[:, second] -= np.logaddexp(0.0, _DUEL * column)
    return values


def _logits(decision: np.ndarray) -> np.ndarray:
    """Give one column per class also for two classes, where scikit-learn gives a single one."""
    decision = np.asarray(decision, dtype=np.float64)
    return np.column_stack([np.zeros_like(decision), decision]) if decision.ndim == 1 else decision
