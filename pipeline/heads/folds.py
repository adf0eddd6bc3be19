"""Stratified folds of cross-validation that keep groups together."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def make_folds(y: Any, k: int, seed: int = 0, units: Any = None) -> Folds:
    """Split rows into k folds, stratified by class as far as the units allow.

    Parameters
    ----------
    y : array of shape (n,)
        Class of each row.
    k : int
        2 to the number of units.
    seed : int
    units : array of shape (n,), optional
        Rows with the same value (views of one image, images of one group) stay in one fold.

    Returns
    -------
    list of k tuples (inner, outer)
        Rows to fit on, and rows held out. A class of fewer than k units is missing from some `outer`, a class of one
        unit from one `inner`.

    Raises
    ------
    ValueError
        From scikit-learn, if every class has fewer than k units.

    Examples
    --------
    >>> for inner, outer in make_folds([0, 0, 0, 0, 1, 1, 1, 1], 2, units=[0, 0, 1, 1, 2, 2, 3, 3]):
    ...     print(len(inner), sorted(outer.tolist()) in ([0, 1, 4, 5], [0, 1, 6, 7], [2, 3, 4, 5], [2, 3, 6, 7]))
    4 True
    4 True
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    y = np.asarray(y)
    codes = np.arange(len(y)) if units is None else np.unique(units, return_inverse=True)[1]
    _, firsts, sizes = np.unique(codes, return_index=True, return_counts=True)
    with warnings.catch_warnings():
        # The caller reports classes that are too small.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if len(set(sizes.tolist())) == 1 and (y[firsts][codes] == y).all():  # units of one size and class
            folds = StratifiedKFold(k, shuffle=True, random_state=seed).split(firsts, y[firsts])
            return [
                (np.flatnonzero(np.isin(codes, inner)), np.flatnonzero(np.isin(codes, outer))) for inner, outer in folds
            ]
        return list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(y, y, codes))
