"""Fit one classifier with several values of its main parameter together: work that they share is done once.

Importing this module is light; the solvers import what they need when they run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fit = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[Any], Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True)
class PathSolver:
    """Fits unfitted scikit-learn classifiers that differ in one parameter.

    Parameters
    ----------
    fit : callable
        From rows (n, d), class numbers (n,), the classes (k,) and the classifiers to the fitted classifiers, in order.
    below : float
        Values of the parameter must be numbers above 0 and below this.
    also : frozenset of str
        Other parameters that may be given, the same for all.
    """

    fit: Fit
    below: float = np.inf
    also: frozenset[str] = frozenset()


def fit_logistic(
    Z: NDArray[np.float32], codes: NDArray[np.int64], classes: NDArray[Any], bases: Sequence[Any]
) -> Iterator[Any]:
    """Fit logistic regressions, each from where the one before ended; fastest from the smallest C to the largest."""
    from sklearn.utils.class_weight import compute_class_weight

    from pipeline.heads.linear_solvers import LogisticPath

    weights = compute_class_weight(bases[0].class_weight, classes=classes, y=classes[codes])[codes]
    path = LogisticPath(Z, codes, None if bases[0].class_weight is None else weights, seed=bases[0].random_state)
    for base in bases:
        coef, intercept = path.fit(base.C)
        steps = np.array([path.steps], np.int32)
        yield _learned(base, classes, Z, coef_=coef, intercept_=intercept, n_iter_=steps)


def fit_ridge(
    Z: NDArray[np.float32], codes: NDArray[np.int64], classes: NDArray[Any], bases: Sequence[Any]
) -> Iterator[Any]:
    """Fit ridge classifiers from one scatter matrix."""
    from sklearn.preprocessing import LabelBinarizer

    from pipeline.heads.linear_solvers import Scatter

    scatter = Scatter(Z, codes)
    for base in bases:
        coef, intercept = scatter.ridge(base.alpha)
        binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)
        yield _learned(base, classes, Z, coef_=coef, intercept_=intercept, _label_binarizer=binarizer)


def fit_lda(
    Z: NDArray[np.float32], codes: NDArray[np.int64], classes: NDArray[Any], bases: Sequence[Any]
) -> Iterator[Any]:
    """Fit linear discriminant analyses from one scatter matrix."""
    from pipeline.heads.linear_solvers import Scatter

    scatter = Scatter(Z, codes)
    for base in bases:
        coef, intercept = scatter.lda(base.shrinkage)
        shares, means = scatter.shares, scatter.means
        yield _learned(base, classes, Z, coef_=coef, intercept_=intercept, priors_=shares, means_=means)


def fit_kernel_machines(
    Z: NDArray[np.float32], codes: NDArray[np.int64], classes: NDArray[Any], bases: Sequence[Any]
) -> Iterator[Any]:
    """Fit support vector machines on one kernel matrix, as `KernelSVC`, which cannot be stored."""
    from pipeline.heads.kernel_svm import KernelSVC

    kernel = None
    for base in bases:
        fitted = KernelSVC(base).fit(Z, classes[codes], kernel)
        kernel, fitted.kernel_ = fitted.kernel_, None  # large, so only one classifier holds it
        yield fitted


def _learned(base: Any, classes: NDArray[Any], Z: NDArray[np.float32], **attributes: Any) -> Any:
    """Return the classifier with the attributes that its own ``fit`` would set."""
    for name, value in {**attributes, "classes_": classes, "n_features_in_": Z.shape[1]}.items():
        setattr(base, name, value)
    return base
