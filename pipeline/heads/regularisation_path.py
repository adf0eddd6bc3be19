"""Fitting one head with many strengths: work that they share is done once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import make_head
from pipeline.heads.linear_solvers import LogisticPath, Scatter

Params = Mapping[str, Any]


def fit_path(
    name: str,
    grid: Sequence[Params],
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    units: NDArray[np.int64] | None = None,
    seed: int = 0,
    temperature: float | None = None,
    rough: bool = False,
) -> Iterator[Any]:
    """Fit one head with each of several parameters, in the order given.

    Parameters
    ----------
    name : str
        See `make_head`.
    grid : sequence of mapping
        Parameters of each fit. Logistic regression is fastest from the smallest C to the largest.
    X : ndarray of float32, shape (n, d)
    y : ndarray of int, shape (n,)
    units : ndarray of int, shape (n,), optional
        Rows that may not be parted where a head needs folds for its temperature.
    seed : int
    temperature : float or None
        Of heads that have decision values alone, where it is known; None to choose it out of fold.
    rough : bool
        For comparing heads, not for keeping them: kernels are computed with BLAS.

    Yields
    ------
    sklearn.pipeline.Pipeline
        Fitted, as `make_head` makes them. The scikit-learn classifiers in them hold what their own ``fit`` finds.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [8.0], [9.0]], np.float32), np.array([0, 0, 1, 1])
    >>> [head.score(X, y) for head in fit_path("ridge", [{"alpha": 1.0}, {"alpha": 10.0}], X, y)]
    [1.0, 1.0]
    """
    from pipeline.heads.softmax_head import SoftmaxHead, choose_temperatures

    heads = [make_head(name, params, seed) for params in grid]
    wrapped = isinstance(heads[0][-1], SoftmaxHead)
    bases = [head[-1].estimator if wrapped else head[-1] for head in heads]
    solve = _solver(name, grid, bases)
    if rough and name == "svm" and all(set(params) <= {"C"} for params in grid):
        from pipeline.heads.kernel_svm import KernelSVC

        bases, solve = [KernelSVC(base) for base in bases], _kernel_machines
    if solve is None and wrapped and not temperature:
        for head in heads:
            yield head.fit(X, y, head__units=units)
        return
    before = heads[0][:-1]
    Z = before.fit_transform(X, y)
    temperatures = [temperature or 1.0] * len(heads)
    if wrapped and not temperature:
        found = choose_temperatures(lambda inner: _fit(bases, solve, Z[inner], y[inner]), Z, y, units)
        temperatures = found or temperatures
    for head, base, chosen in zip(heads, _fit(bases, solve, Z, y), temperatures, strict=True):
        head.steps = [*before.steps, (head.steps[-1][0], SoftmaxHead.of(base, chosen) if wrapped else base)]
        yield head


def _fit(bases: Sequence[Any], solve: "Solve | None", Z: NDArray[np.float32], y: NDArray[np.int64]) -> Iterator[Any]:
    """Fit copies of the classifiers, together where there is a solver for it."""
    from sklearn.base import clone

    bases = [clone(base) for base in bases]
    classes, codes = np.unique(y, return_inverse=True)
    if solve is None or len(classes) < 2:  # scikit-learn's own words about a single class
        for base in bases:
            yield base.fit(Z, y)
        return
    for base, found in zip(bases, solve(Z, codes, classes, bases), strict=True):
        for attribute, value in {**found, "classes_": classes, "n_features_in_": Z.shape[1]}.items():
            setattr(base, attribute, value)
        yield base


def _logistic(Z: NDArray[np.float32], codes: Any, classes: Any, bases: Sequence[Any]) -> Iterator[dict[str, Any]]:
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight(bases[0].class_weight, classes=classes, y=classes[codes])[codes]
    path = LogisticPath(Z, codes, None if bases[0].class_weight is None else weights, seed=bases[0].random_state)
    for base in bases:
        coef, intercept = path.fit(base.C)
        yield {"coef_": coef, "intercept_": intercept, "n_iter_": np.array([path.steps], np.int32)}


def _ridge(Z: NDArray[np.float32], codes: Any, classes: Any, bases: Sequence[Any]) -> Iterator[dict[str, Any]]:
    from sklearn.preprocessing import LabelBinarizer

    scatter = Scatter(Z, codes)
    for base in bases:
        coef, intercept = scatter.ridge(base.alpha)
        yield {
            "coef_": coef,
            "intercept_": intercept,
            "_label_binarizer": LabelBinarizer(pos_label=1, neg_label=-1).fit(classes),
        }


def _lda(Z: NDArray[np.float32], codes: Any, classes: Any, bases: Sequence[Any]) -> Iterator[dict[str, Any]]:
    scatter = Scatter(Z, codes)
    for base in bases:
        coef, intercept = scatter.lda(base.shrinkage)
        yield {"coef_": coef, "intercept_": intercept, "priors_": scatter.shares, "means_": scatter.means}


def _kernel_machines(
    Z: NDArray[np.float32], codes: Any, classes: Any, bases: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    kernel = None
    for base in bases:
        kernel = base.fit(Z, classes[codes], kernel).kernel_
        yield {"kernel_": None}  # large, and the next one has it


Solve = Callable[[NDArray[np.float32], Any, Any, Sequence[Any]], Iterator[dict[str, Any]]]
# Head: the one parameter that may differ within a path, what may be given, the bound below which it must lie, and
# what fits them together.
SHARED: dict[str, tuple[str, frozenset[str], float, Solve]] = {
    "logreg": ("C", frozenset({"C", "class_weight"}), np.inf, _logistic),
    "ridge": ("alpha", frozenset({"alpha"}), np.inf, _ridge),
    "lda": ("shrinkage", frozenset({"shrinkage"}), 1.0, _lda),
}


def _solver(name: str, grid: Sequence[Params], bases: Sequence[Any]) -> Solve | None:
    """Return what fits these parameters together, None where scikit-learn fits them one by one."""
    if name not in SHARED:
        return None
    strength, others, bound, solve = SHARED[name]
    values = [getattr(base, strength, None) for base in bases]
    plain = all(isinstance(value, (int, float)) and 0 < value < bound for value in values)
    same = len({str({**params, strength: None}) for params in grid}) == 1
    usable = plain and same and all(set(params) <= others for params in grid)
    return solve if usable else None
