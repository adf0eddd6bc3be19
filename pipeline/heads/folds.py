"""Folds of cross-validation that part no group."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def make_folds(y: Any, k: int, seed: int = 0, units: Any = None) -> Folds:
    """Deal rows into k folds with the classes in the same shares in each, as far as that goes.

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
        Rows to fit on and rows held out. A class of fewer units than folds is missing from some `outer`,
        one of a single unit from one `inner`.

    Raises
    ------
    ValueError
        By scikit-learn, if every class has fewer units than k.

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
        # The caller decides what to say of classes that are too small.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if len(set(sizes.tolist())) == 1 and (y[firsts][codes] == y).all():  # units alike are dealt like rows
            dealt = StratifiedKFold(k, shuffle=True, random_state=seed).split(firsts, y[firsts])
            return [
                (np.flatnonzero(np.isin(codes, inner)), np.flatnonzero(np.isin(codes, outer))) for inner, outer in dealt
            ]
        return list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(y, y, codes))
