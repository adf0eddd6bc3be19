"""Fit one head with each of several parameters: work that they share is done once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import Head, find_head, make_head
from pipeline.heads.path_solvers import PathSolver

Params = Mapping[str, Any]


class Samples(NamedTuple):
    """What a head is fitted on.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    y : ndarray of int, shape (n,)
    units : ndarray of int, shape (n,), or None
        Rows with the same value stay in one fold where a head needs folds for its temperature.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    units: NDArray[np.int64] | None = None


def fit_path(
    name: str,
    grid: Sequence[Params],
    samples: Samples,
    *,
    seed: int = 0,
    temperature: float | None = None,
    preview: bool = False,
) -> Iterator[Any]:
    """Fit one head with each of several parameters, in the order given.

    Parameters
    ----------
    name : str
        See `make_head`.
    grid : sequence of mapping
        Parameters of each fit.
    samples : Samples
    seed : int
    temperature : float or None
        Of heads that only have decision values; None to choose it from out-of-fold decisions.
    preview : bool
        Whether the heads are only compared, not kept: kernels are then computed with BLAS.

    Yields
    ------
    sklearn.pipeline.Pipeline
        Fitted, as `make_head` makes them; their classifiers have the attributes that scikit-learn's ``fit`` sets.

    Examples
    --------
    >>> X, y = np.array([[0.0], [1.0], [8.0], [9.0]], np.float32), np.array([0, 0, 1, 1])
    >>> [head.score(X, y) for head in fit_path("ridge", [{"alpha": 1.0}, {"alpha": 10.0}], Samples(X, y))]
    [1.0, 1.0]
    """
    from pipeline.heads.softmax_head import SoftmaxHead, choose_temperatures

    X, y, units = samples
    heads = [make_head(name, params, seed) for params in grid]
    wrapped = isinstance(heads[0][-1], SoftmaxHead)
    bases = [head[-1].estimator if wrapped else head[-1] for head in heads]
    row = find_head(name)
    solver = _usable(row, (preview and row.preview) or row.path, grid, bases)
    if solver is None and wrapped and not temperature:
        for head in heads:
            yield head.fit(X, y, head__units=units)
        return
    before = heads[0][:-1]
    Z = before.fit_transform(X, y)
    temperatures = [temperature or 1.0] * len(heads)
    if wrapped and not temperature:
        found = choose_temperatures(lambda inner: _fit(bases, solver, Z[inner], y[inner]), Z, y, units)
        temperatures = found or temperatures
    for head, base, chosen in zip(heads, _fit(bases, solver, Z, y), temperatures, strict=True):
        head.steps = [*before.steps, (head.steps[-1][0], SoftmaxHead.of(base, chosen) if wrapped else base)]
        yield head


def _fit(
    bases: Sequence[Any], solver: PathSolver | None, Z: NDArray[np.float32], y: NDArray[np.int64]
) -> Iterator[Any]:
    """Fit copies of the classifiers, together where there is a solver for it."""
    from sklearn.base import clone

    bases = [clone(base) for base in bases]
    classes, codes = np.unique(y, return_inverse=True)
    if solver is None or len(classes) < 2:  # of a single class scikit-learn itself raises the error
        for base in bases:
            yield base.fit(Z, y)
    else:
        yield from solver.fit(Z, codes, classes, bases)


def _usable(row: Head, solver: PathSolver | None, grid: Sequence[Params], bases: Sequence[Any]) -> PathSolver | None:
    """Return the solver if it can fit these parameters, None if scikit-learn fits them one by one."""
    if solver is None:
        return None
    (parameter,) = row.search
    values = [getattr(base, parameter, None) for base in bases]
    plain = all(isinstance(value, (int, float)) and 0 < value < solver.below for value in values)
    same = len({str({**params, parameter: None}) for params in grid}) == 1
    usable = plain and same and all(set(params) <= {parameter, *solver.also} for params in grid)
    return solver if usable else None
